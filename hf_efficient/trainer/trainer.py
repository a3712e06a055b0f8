"""Trainers that prune, distil and quantize around stock training runs: the one place where the techniques meet."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import transformers
from transformers import PreTrainedModel, Seq2SeqTrainer
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.distillation.distiller import check_same_task
from hf_efficient.distillation.teacher import load_teacher
from hf_efficient.errors import UserError
from hf_efficient.exporters.config import ExportConfig
from hf_efficient.exporters.export import check_export
from hf_efficient.functions import describe_quantization, quantize
from hf_efficient.measurement.energy import EnergyCounter
from hf_efficient.measurement.report import training_resources
from hf_efficient.models import is_quantized
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.fake_quantization import disable_fake_quantization, enable_fake_quantization
from hf_efficient.quantization.validation import check_quantization
from hf_efficient.trainer.checkpoints import has_resumable_run, last_complete_checkpoint, save_atomically
from hf_efficient.trainer.distilling import Distilling
from hf_efficient.trainer.fsdp import Sharding
from hf_efficient.trainer.reporting import Reporting, UntrimmedModel
from hf_efficient.trainer.rounds import PruningRounds
from hf_efficient.trainer.sampling import Ordering

logger = logging.get_logger(__name__)

TeacherLike: TypeAlias = PreTrainedModel | str | Sequence[PreTrainedModel | str] | None


class CompressionMixin(PruningRounds, Distilling, Reporting, Ordering, Sharding):
    """What both trainers share; see `EfficientTrainer`."""

    def __init__(
        self,
        *args: Any,
        teacher: TeacherLike = None,
        distillation: DistillationConfig | None = None,
        pruning: PruningConfig | None = None,
        quantization: QuantizationConfig | None = None,
        export: ExportConfig | None = None,
        original: UntrimmedModel | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.distillation = distillation
        self.pruning = pruning or PruningConfig()
        self.quantization = quantization or QuantizationConfig(scheme=None)
        self.export = export or ExportConfig()
        self.original = original
        self._exported = {}
        self.report: Any = None
        self.stages: list[str] = []
        self.base_model: str = self.model.config._name_or_path
        named: list[Any] = [teacher] if isinstance(teacher, (str, PreTrainedModel)) else list(teacher or ())
        self._check(named)
        self.teachers = [self._teacher(each) for each in named]
        for each in self.teachers:
            check_same_task(self.original.model if self.original else self.model, each)

    @property
    def teacher(self) -> Any:
        """The teacher that the student is measured against, the first of several; None before there is one."""
        return self.teachers[0] if self.teachers else None

    def _teacher(self, teacher: PreTrainedModel | str) -> PreTrainedModel:
        """Return the teacher that was given, or the one of that name with the head of the model."""
        if teacher is self.model:
            return copy.deepcopy(teacher)  # as it is now: it would go on changing
        if isinstance(teacher, str):
            head = type(self.model).__name__.partition("For")[2]
            auto = {"": "AutoModel", "ConditionalGeneration": "AutoModelForSeq2SeqLM"}.get(head, f"AutoModelFor{head}")
            answers = self.distillation is not None and self.distillation.uses_logits
            attention = self.model.config._attn_implementation
            return load_teacher(teacher, getattr(transformers, auto), answers, attn_implementation=attention)
        return teacher

    def _check(self, teachers: Sequence[PreTrainedModel | str]) -> None:
        """Check what cannot work before any of the work is done."""
        self.check_pruning()
        if self.distillation is not None and self.compute_loss_func is not None:
            raise UserError("compute_loss_func would replace the distillation loss: give one of the two")
        if self.model_init is not None and self.distillation is not None and self.distillation.uses_intermediate_outputs:
            raise UserError(
                "model_init makes another model after the layers of this one were mapped to the teacher's: give "
                "`model`"
            )
        if self.quantization.scheme is not None and not is_quantized(self.model):
            check_quantization(self.model, self.quantization)
        if self.quantization.aware and self.model_init is not None:
            raise UserError("model_init makes another model, which would not round as in 8 bits: give `model`")
        for format in self.export.formats:
            check_export(self.model, format, self.export.quantization)
            if self.export.needs_calibration(format) and self.train_dataset is None:
                raise UserError(
                    "OpenVINO's int8 fixes the ranges of activations on training data, and there is none: give "
                    "train_dataset, or export_quantization='int8_weight_only'"
                )
        if teachers and self.distillation is None:
            raise UserError("a teacher without distillation teaches nothing: add distillation=DistillationConfig()")

    # ---- the run ---------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput | None:
        """Prune and trains, in rounds if asked for, then quantizes; `self.model` is the small model afterwards.

        Without pruning it is the parent's `train`, and nothing is trained when quantization is all that was asked
        for. `resume_from_checkpoint=True` goes on with what is there, and starts when nothing is.

        Raises NonFiniteLossError: the loss is not a number; the last checkpoint stays as it is.
        """
        if is_quantized(self.model):
            raise UserError("the model is quantized already and cannot be trained: build a trainer on its float form")
        self.stages = (
            [] if self.original is None else [f"kept {len(self.original.token_ids)} tokens of the vocabulary"]
        )
        compressed = self.distillation is not None or self.pruning.removes_anything or self.quantization.scheme is not None
        compressed = compressed or self.original is not None
        if compressed and not self.teachers:
            self.teachers = [self.original.model if self.original else copy.deepcopy(self.model)]
        if self.distillation is not None:
            self.begin_distilling(self.teachers, self.distillation, self.original.token_ids if self.original else None)
        learns = self.distillation is not None or self.pruning.removes_anything or self.quantization.aware
        trains = learns or self.quantization.scheme is None

        output: TrainOutput | None = None
        goes_on = bool(resume_from_checkpoint) and has_resumable_run(Path(self.args.output_dir))
        begun = time.perf_counter()
        try:
            with EnergyCounter(self.args.device) as counter:
                if self.pruning.removes_anything:
                    output = self.train_in_rounds(resume_from_checkpoint, *args, **kwargs)
                elif trains and self.trains:
                    checkpoint = resolve_checkpoint(resume_from_checkpoint, self.args.output_dir)
                    self._round_as_in_8_bits(self.model)
                    output = super().train(checkpoint, *args, **kwargs)
                    self.stages.append(f"trained for {output.global_step} steps{self._from_teacher()}")
        finally:
            disable_fake_quantization(self.model)
        whole = output is not None and not goes_on  # what was spent before an interruption is not known
        training = training_resources(time.perf_counter() - begun, counter.energy) if whole else None
        self._restore_forward(self.model)
        self.distiller = None  # nothing more is learned

        models: dict[str, PreTrainedModel] = {}
        for number, each in enumerate(self.teachers if compressed else [], start=1):
            models["teacher" if number == 1 else f"teacher {number}"] = each
        if trains:
            alone = "teacher" if self.export.formats else "model"
            models["student" if compressed else alone] = self.model
        if trains and self.args.should_save and (self.quantization.scheme is not None or self.export.formats):
            save_atomically(self.model, Path(self.args.output_dir) / "_student", self.processing_class)
        self._write_exports(self.model)
        if self.quantization.scheme is not None:
            quantized = quantize(self.model, self.quantization)
            self.stages.append(describe_quantization(self.model, quantized, self.quantization))
            self._install(quantized)
            models["quantized"] = self.model
        self.report = dataclasses.replace(self._measure(models), training=training)
        return output

    def _install(self, model: PreTrainedModel) -> None:
        """Also maps the new model's layers to the teacher's, and lets it round."""
        self._round_as_in_8_bits(model)
        super()._install(model)
        if self.distiller is not None:
            self.distiller.prepare(model)

    def _round_as_in_8_bits(self, model: PreTrainedModel) -> None:
        if self.quantization.aware and not is_quantized(model):
            enable_fake_quantization(model, self.quantization)

    def _beside(self) -> Any:
        return self.distiller if self._projections else None

    def _load_beside(self, folder: Path) -> None:
        if self.distiller is not None:
            self.distiller.load_projections(folder)

    def _from_teacher(self) -> str:
        taught = "" if self.distillation is None else f" on {self.distillation.describe()}"
        return f"{taught}, rounding as in 8 bits" if self.quantization.aware else taught


class EfficientTrainer(CompressionMixin):
    """A `transformers.Trainer` that makes its model small and fast.

    Takes what `Trainer` takes, and besides:

    | argument | meaning |
    | --- | --- |
    | teacher | a model or a name; None: a frozen copy of `model` before pruning |
    | distillation | train towards the teacher's soft labels; None: on the labels alone |
    | pruning | remove heads, neurons and layers, in rounds of pruning and training |
    | quantization | 8 bits at the end; alone, nothing is trained |
    | export | also write the model for ONNX Runtime or OpenVINO, in folders of `output_dir` |
    | original | of a model with a trimmed vocabulary, what it was before; it is the teacher unless another is given |

    With all of them None it is `Trainer`, but for gradient accumulation, which is exact: the loss is summed over the
    accumulation window and divided by the window's count. `report` holds what was measured once `train` is done.

    Raises ValueError: the arguments contradict each other, or teacher and model differ in vocabulary or labels.
    Raises TypeError: the architecture cannot be pruned.
    """


class EfficientSeq2SeqTrainer(CompressionMixin, Seq2SeqTrainer):
    """A `transformers.Seq2SeqTrainer` with the additions of `EfficientTrainer`."""


def resolve_checkpoint(resume: str | bool | None, folder: str) -> str | None:
    """Return the checkpoint to go on from: the given one, the last in `folder` for True, or None to start."""
    if isinstance(resume, str):
        return resume
    return last_complete_checkpoint(Path(folder)) if resume else None
