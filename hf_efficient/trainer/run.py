"""The order of a run: teachers, pruning and training, exports, quantization, report."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from hf_efficient.errors import UserError
from hf_efficient.exporters.export import export
from hf_efficient.exporters.inputs import take_calibration_batches
from hf_efficient.exporters.runtime_models import RuntimeModel, load_exported
from hf_efficient.functions import describe_quantization, quantize
from hf_efficient.measurement.energy import EnergyCounter
from hf_efficient.measurement.finite import check_finite_weights
from hf_efficient.measurement.report import STUDENT_FOLDER, training_resources
from hf_efficient.models import is_quantized
from hf_efficient.models.sentence_modules import copy_sentence_modules
from hf_efficient.trainer.argument_checks import check_run
from hf_efficient.trainer.checkpoints import has_resumable_run, resolve_checkpoint, save_atomically
from hf_efficient.trainer.phases import has_training_steps
from hf_efficient.trainer.training_texts import describe_similar_texts
from hf_efficient.trainer.trial import try_evaluation_and_saving

logger = logging.get_logger(__name__)


class CompressionRun:
    """One call of `train` of an `EfficientTrainer`, step by step.

    `trainer` holds the parts and the models, `train` is the `train` of its parent: it takes a checkpoint, or None.
    """

    def __init__(self, trainer: Any, train: Callable[[str | None], TrainOutput]) -> None:
        self.trainer, self.techniques, self.args = trainer, trainer.techniques, trainer.args
        self._train = train
        self._is_resumed = False

    def execute(self, resume: str | bool | None) -> TrainOutput | None:
        """Run all steps and set `trainer.report`; return the output of the last training run, if there was one."""
        trainer = self.trainer
        if is_quantized(trainer.model):
            raise UserError("the model is quantized and cannot be trained: build a trainer with the float model")
        for role, models in (("model", [trainer.model]), ("teacher", trainer.teachers)):
            for model in models:
                check_finite_weights(model, f"the {role}")
        self._is_resumed = bool(resume) and has_resumable_run(Path(self.args.output_dir))
        trainer.stages[:] = self._initial_stages()
        if self._compresses and not trainer.teachers:
            trainer.teachers = [self._default_teacher()]
        will_train = self.techniques.trains and has_training_steps(self.args)
        check_run(trainer, will_train)
        if will_train:
            try_evaluation_and_saving(trainer)
        self.set_up_distillation()
        if will_train and trainer.predicts_embeddings and (note := describe_similar_texts(trainer.train_dataset)):
            logger.warning(note)
            trainer.stages.append(note)
        start_seconds = time.perf_counter()
        try:
            with EnergyCounter(self.args.device) as counter:
                output = self.prune_and_train(resume)
        finally:
            trainer.quantization_training.close(trainer.model)
        seconds = time.perf_counter() - start_seconds
        trainer.phases.remove_autocast_wrapper(trainer.model)
        trainer.distillation_training.keep_projection(trainer.model)
        trainer.distillation_training.close()
        trainer.agreement_stopping.close()
        trainer.accumulated_loss.distiller = None

        models = self.models_by_role()
        if self.techniques.trains and (self.techniques.quantizes or self.techniques.export.formats):
            self.save_student()
        exported = self.export_variants()
        if self.techniques.quantizes:
            models["quantized"] = self.quantize_model()
        trainer.save_model(_internal_call=True)  # a failure to measure loses nothing
        # The resources used before an interruption are not known, so a resumed run reports none.
        is_complete = output is not None and not self._is_resumed
        resources = training_resources(seconds, counter.energy) if is_complete else None
        curve = tuple(trainer.agreement_stopping.curve)
        report = trainer.build_report(models, exported)
        trainer.report = trainer.complete_report(dataclasses.replace(report, training=resources, training_curve=curve))
        return output

    # ---- before training --------------------------------------------------------------------------------------------

    @property
    def _compresses(self) -> bool:
        return self.techniques.compresses or self.trainer.untrimmed is not None

    def _initial_stages(self) -> list[str]:
        untrimmed = self.trainer.untrimmed
        if untrimmed is None:
            return []
        rows = untrimmed.model.get_input_embeddings().weight.shape[0]
        words = f"; in the evaluation data, {untrimmed.split_words}" if untrimmed.split_words else ""
        return [f"kept {len(untrimmed.token_ids):,} of {rows:,} tokens of the vocabulary{words}"]

    def _default_teacher(self) -> PreTrainedModel:
        """Return the model as it is now, before it changes, or with its full vocabulary."""
        untrimmed = self.trainer.untrimmed
        return copy.deepcopy(self.trainer.model) if untrimmed is None else untrimmed.model

    def set_up_distillation(self) -> None:
        """Set up the distiller, and add generated targets or cached outputs of the teacher to the training data."""
        trainer, distillation = self.trainer, self.trainer.distillation_training
        token_ids = None if trainer.untrimmed is None else trainer.untrimmed.token_ids
        trainer.accumulated_loss.distiller = distillation.setup(trainer.model, trainer.teachers, token_ids)
        trainer.train_dataset = distillation.add_generated_targets(trainer.train_dataset)
        trainer.train_dataset, trainer.data_collator = distillation.add_teacher_outputs(
            trainer.train_dataset,
            trainer.data_collator,
            trainer.get_signature_columns,
            getattr(trainer.processing_class, "padding_side", "right"),
        )
        if self.techniques.trains and has_training_steps(self.args):
            trainer.train_dataset = trainer.agreement_stopping.hold_out(
                trainer.train_dataset, trainer.accumulated_loss.distiller
            )

    # ---- training ---------------------------------------------------------------------------------------------------

    def prune_and_train(self, resume: str | bool | None) -> TrainOutput | None:
        """Train in the phases of a pruning, once, or not at all; return the output of the last training run."""
        trainer = self.trainer
        if self.techniques.pruning.removes_anything:
            return trainer.phases.run(
                trainer.teacher,
                resume,
                self.train_once,
                trainer.stages,
                self.describe_training,
                trainer.distillation_training,
            )
        if not (self.techniques.trains and has_training_steps(self.args)):
            return None
        trainer.quantization_training.on_model_changed(trainer.model)
        output = self.train_once(resolve_checkpoint(resume, Path(self.args.output_dir)))
        trainer.stages.append(self.describe_training(output))
        return output

    def describe_training(self, output: TrainOutput) -> str:
        """Return how long and on what the model was trained, and which weights are kept, for the report."""
        supervision = self.techniques.describe_supervision(self.trainer.predicts_embeddings)
        kept = self.trainer.agreement_stopping.describe()
        return f"trained for {output.global_step} steps{supervision}{kept}"

    def train_once(self, checkpoint: str | None) -> TrainOutput:
        """Train the installed model by the parent's `train`, sharded if FSDP is requested."""
        trainer = self.trainer
        with trainer.fsdp_session.train(trainer):
            output = self._train(checkpoint)
        trainer.finite_checks.check_weights(trainer.model.named_parameters(), output.global_step)
        return output

    # ---- after training ---------------------------------------------------------------------------------------------

    def models_by_role(self) -> dict[str, PreTrainedModel]:
        """Return the models of the report: teachers, and what was trained."""
        models: dict[str, PreTrainedModel] = {}
        for number, teacher in enumerate(self.trainer.teachers if self._compresses else [], start=1):
            models["teacher" if number == 1 else f"teacher {number}"] = teacher
        if self.techniques.trains:
            # A model that is exported only is what its exports are compared with.
            single_role = "teacher" if self.techniques.export.formats else "model"
            models["student" if self._compresses else single_role] = self.trainer.model
        return models

    def save_student(self) -> None:
        """Save the float model, which quantization and exports start from, into `STUDENT_FOLDER`."""
        if self.args.should_save:
            folder = Path(self.args.output_dir) / STUDENT_FOLDER
            save_atomically(self.trainer.model, folder, self.trainer.processing_class)

    def export_variants(self) -> dict[str, RuntimeModel]:
        """Export the model to the requested formats, each into a folder of its name; return the exported models."""
        trainer, config = self.trainer, self.techniques.export
        exported: dict[str, RuntimeModel] = {}
        for format in config.formats:
            folder = Path(self.args.output_dir) / format
            calibration = None
            if config.uses_calibration(format) and trainer.train_dataset is not None:
                # In all processes: the dataloader synchronizes them.
                calibration = take_calibration_batches(trainer.get_train_dataloader())
            if self.args.should_save:
                result = export(trainer.model, folder, format, config.quantization, calibration)
                trainer.stages.append(result.describe())
            trainer.accelerator.wait_for_everyone()
            exported[format] = load_exported(folder, config.quantization, full_precision=config.quantization is None)
            copy_sentence_modules(trainer.model, exported[format])
        return exported

    def quantize_model(self) -> PreTrainedModel:
        """Quantize the model and install the result; return it."""
        trainer, config = self.trainer, self.techniques.quantization
        training = trainer.quantization_training
        batches = training.calibration_batches() if trainer.train_dataset is not None else None
        quantized = quantize(trainer.model, config, batches, training.statistics)
        trainer.stages.append(describe_quantization(trainer.model, quantized, config))
        trainer.install_model(quantized)
        return quantized
