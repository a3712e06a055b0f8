"""`EfficientTrainer` and `EfficientSeq2SeqTrainer`: overrides of `Trainer` that call the parts in this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Seq2SeqTrainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput

from hf_efficient.data.label_names import complete_label_names
from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.distillation.distiller import check_same_task
from hf_efficient.distillation.head_outputs import get_head_outputs
from hf_efficient.distillation.teacher import has_teacher_inputs, teacher_inputs_of
from hf_efficient.exporters.config import ExportConfig
from hf_efficient.files.replacing import replacing_model
from hf_efficient.hub.publisher import HubPublisher
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.tasks.score_activation import complete_score_activation
from hf_efficient.trainer.agreement_stopping import AgreementStopping
from hf_efficient.trainer.argument_checks import check_report_to
from hf_efficient.trainer.checkpoints import CheckpointState, without_secrets
from hf_efficient.trainer.distillation import DistillationTraining, ProjectionGradients, TeacherLike, load_teachers
from hf_efficient.trainer.evaluation import ModelEvaluator, UntrimmedModel, outputs_not_kept
from hf_efficient.trainer.finite import FiniteChecks
from hf_efficient.trainer.fsdp import FSDPSession, uses_fsdp
from hf_efficient.trainer.loss import AccumulatedLoss, Batch, add_decoder_inputs, select_model_inputs
from hf_efficient.trainer.ordered_evaluation import OrderedEvaluation
from hf_efficient.trainer.pair_loss import compute_pair_loss, prepare_for_embeddings
from hf_efficient.trainer.phases import PruningPhases
from hf_efficient.trainer.publishing import PublishingMixin
from hf_efficient.trainer.quantization import QuantizationTraining
from hf_efficient.trainer.run import CompressionRun
from hf_efficient.trainer.sampling import seed_by_epoch
from hf_efficient.trainer.scoring import Batches, PruningScorer
from hf_efficient.trainer.techniques import Techniques
from hf_efficient.trainer.validation import check_arguments


class CompressionMixin(PublishingMixin):
    """What both trainers share; see `EfficientTrainer`."""

    model: Any
    train_dataset: Any
    data_collator: Any

    def __init__(
        self,
        *args: Any,
        teacher: TeacherLike = None,
        distillation: DistillationConfig | None = None,
        pruning: PruningConfig | None = None,
        quantization: QuantizationConfig | None = None,
        export: ExportConfig | None = None,
        untrimmed: UntrimmedModel | None = None,
        **kwargs: Any,
    ) -> None:
        check_report_to(args[1] if len(args) > 1 else kwargs.get("args"))
        super().__init__(*args, **kwargs)
        self.techniques = Techniques(
            distillation,
            pruning or PruningConfig(),
            quantization or QuantizationConfig(scheme=None),
            export or ExportConfig(),
        )
        self.untrimmed = untrimmed
        self.stages: list[str] = []
        self.report: Any = None  # a CompressionReport once `train` has ended
        if teacher is None or isinstance(teacher, (str, PreTrainedModel)):
            teacher = () if teacher is None else (teacher,)
        check_arguments(self, self.techniques, teacher)
        complete_label_names(self.model.config)
        complete_score_activation(self.model.config, self.model.config._name_or_path, local_files_only=True)
        self.predicts_embeddings = prepare_for_embeddings(self)
        self.teachers: list[PreTrainedModel] = load_teachers(teacher, self.model, distillation)
        shares_tokens = not has_teacher_inputs(getattr(self.train_dataset, "column_names", None) or ())
        for loaded in self.teachers:
            check_same_task(self.model if untrimmed is None else untrimmed.model, loaded, shares_tokens)
        if self.model_init is None:
            self.techniques = self.techniques.resolve_defaults(self.model, self.teachers)
        self._build_parts()

    def _build_parts(self) -> None:
        args, accelerator, techniques = self.args, self.accelerator, self.techniques
        # The loss of a head that is not known here is the parent's, which is not divided by the items of the window.
        self.loss_is_scaled_for_ga = None if get_head_outputs(self.model) is None else True
        masks_tokens = bool(getattr(self.data_collator, "mlm", False))
        self.accumulated_loss = AccumulatedLoss(args, accelerator, labels_are_sampled=masks_tokens)
        self.distillation_training = DistillationTraining(techniques.distillation, args, accelerator)
        self.scorer = PruningScorer(techniques.pruning, args, accelerator)
        self.quantization_training = QuantizationTraining(techniques.quantization, self.draw_calibration_batches)
        self.agreement_stopping = AgreementStopping(self, self.quantization_training.on_weights_replaced)
        self.phases = PruningPhases(
            techniques.pruning,
            args,
            accelerator,
            self.scorer,
            get_model=lambda: self.model,
            install_model=self.install_model,
            draw_batches=self.draw_scoring_batches,
            add_callback=self.add_callback,
            remove_callback=self.remove_callback,
            pop_callback=self.pop_callback,
            stopping=self.agreement_stopping,
        )
        self.fsdp_session = FSDPSession()
        self.finite_checks = FiniteChecks(args, accelerator)
        self.ordered_evaluation = OrderedEvaluation(self)
        self.evaluator = ModelEvaluator(self, techniques, self.untrimmed)
        self.publisher = HubPublisher(self.model.config._name_or_path)
        self.checkpoint_states: list[CheckpointState] = [
            self.distillation_training,
            self.phases,
            self.quantization_training,
            self.agreement_stopping,
        ]
        self.on_model_changed = [
            self.quantization_training.on_model_changed,
            self.distillation_training.on_model_changed,
        ]
        projection_gradients = ProjectionGradients(self.distillation_training)
        for callback in (
            self.accumulated_loss,
            projection_gradients,
            self.quantization_training,
            self.agreement_stopping,
            self.fsdp_session,
        ):
            self.add_callback(callback)
        if uses_fsdp(accelerator):  # only a training run shards the model
            self.is_fsdp_enabled, self.place_model_on_device = False, True
            self._move_model_to_device(self.model, args.device)

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The teacher that the student is compared with, the first of several; None if there is none yet."""
        return self.teachers[0] if self.teachers else None

    # ---- the run ----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput | None:
        """Prune and train, in rounds if requested, then export and quantize; `self.model` is the small model then.

        Without techniques it is the `train` of the parent. A quantization alone, without `aware`, trains nothing.
        `resume_from_checkpoint=True` resumes what `output_dir` holds, and starts if it holds nothing.

        Raises NonFiniteLossError if the loss, the gradients or the weights are NaN or infinite; they are not saved.
        """
        parent_train = super().train
        return CompressionRun(self, lambda path: parent_train(path, *args, **kwargs)).execute(resume_from_checkpoint)

    def install_model(self, model: PreTrainedModel) -> None:
        """Make `model` the one that is trained, evaluated and saved; all of these attributes belong together."""
        self.accelerator.free_memory()
        if self.place_model_on_device:
            self._move_model_to_device(model, self.args.device)
        self.model = self.model_wrapped = self.callback_handler.model = model
        self.optimizer = self.lr_scheduler = None
        self._created_lr_scheduler = False
        model.config.use_cache = self.args.use_cache
        for prepare in self.on_model_changed:
            prepare(model)

    def build_report(self, models: Mapping[str, Any], exported: Mapping[str, Any]) -> CompressionReport:
        """Return the report on `models` and `exported`, by role."""
        return self.evaluator.build_report(models, exported, self.stages)

    # ---- data -------------------------------------------------------------------------------------------------------

    def draw_scoring_batches(self) -> Batches:
        """Return the batches of the training data that pruning scores are computed on."""
        return self.scorer.draw_batches(
            self.model, self.train_dataset, self._get_scoring_dataloader, self.get_train_dataloader
        )

    def draw_calibration_batches(self) -> Batches:
        """Return the batches of training data that activations are observed on, the same in all processes."""
        return self.scorer.gather_batches(self.draw_scoring_batches())

    def _get_scoring_dataloader(self, dataset: Any) -> Any:
        return self._get_dataloader(dataset, "scoring", self.args.eval_batch_size, super()._get_eval_sampler)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        return self.ordered_evaluation.build_sampler(eval_dataset)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate texts of similar length together; the results are in the order of the data."""
        return self.ordered_evaluation.run(super().evaluation_loop, *args, **kwargs)

    def get_signature_columns(self) -> list[str]:
        """Return the columns of the data that reach the model or the distiller."""
        self._set_signature_columns_if_needed()
        return list(self._signature_columns)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = self.distillation_training.columns()
        self._signature_columns += [name for name in columns if name not in self._signature_columns]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[int] | None:
        # The dataset that `Trainer` gives has lost its column of lengths, by which rows are grouped.
        sampler, queries = super()._get_train_sampler(self.train_dataset), self.distillation_training.queries_of
        return seed_by_epoch(sampler, self.args, lambda: self.state.epoch, queries(self.train_dataset))

    # ---- the loss ---------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Also count what the losses of the accumulation window are divided by; read nothing after the last step.

        A training that is resumed after its last step would make another one.
        """
        if not self.control.should_training_stop and 0 < self.state.max_steps <= self.state.global_step:
            self.control.should_training_stop = True
            return [], None
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.accumulated_loss.count_window(self.model, batches, device)
        return batches, num_items

    def compute_loss(
        self, model: torch.nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the exact loss while training, see `AccumulatedLoss`, and the parent's otherwise."""
        if (
            not model.training
            or self.compute_loss_func is not None
            or self.accumulated_loss.uses_parent_loss(self.model)
        ):
            inputs = add_decoder_inputs(self.args, self.model, select_model_inputs(self.model, inputs))
            return self._compute_task_loss(model, inputs, return_outputs, num_items_in_batch)
        progress = self.state.global_step / max(1, self.state.max_steps)
        loss, outputs = self.accumulated_loss(model, self.model, inputs, self._compute_task_loss, progress)
        return (loss, outputs) if return_outputs else loss

    def _compute_task_loss(self, *args: Any, **kwargs: Any) -> Any:
        return (compute_pair_loss if self.predicts_embeddings else super().compute_loss)(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Also stop at a loss or at gradients that are NaN or infinite."""
        with self.distillation_training.replace_dropout(self.model):
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.finite_checks.watch_loss(loss, self.state.global_step)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        self.finite_checks.watch_norm(norm, self.state.global_step + 1)
        return norm

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Pass only the inputs that the model accepts, and keep no hidden states or attention of all the data."""
        has_default = ignore_keys is None and self.compute_metrics is not None
        ignored = outputs_not_kept(self.model) if has_default else ignore_keys
        is_teacher = any(self.model is teacher for teacher in self.teachers)
        batch = select_model_inputs(self.model, teacher_inputs_of(inputs) if is_teacher else inputs)
        return super().prediction_step(model, batch, prediction_loss_only, ignored, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Also train the projections of the distiller, by an optimizer that was given too."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        self.distillation_training.add_to_optimizer(optimizer)
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms of the distillation loss, after a look at what must be finite."""
        self.finite_checks.check()
        self.accumulated_loss.add_logs(logs, self.state.global_step)
        super().log(logs, start_time)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        weights = self.model.named_parameters() if state_dict is None else state_dict.items()
        self.finite_checks.check_weights(weights, self.state.global_step)
        is_checkpoint = folder.name.startswith(PREFIX_CHECKPOINT_DIR)  # complete when `Trainer` has written its state
        target = replacing_model(folder) if self.args.should_save and not is_checkpoint else nullcontext(folder)
        with target as written_dir, without_secrets(self.args, written_dir):
            super()._save(str(written_dir), state_dict)
        for part in self.checkpoint_states if is_checkpoint else ():
            part.save_state(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for part in self.checkpoint_states:
            part.load_state(Path(resume_from_checkpoint))


class EfficientTrainer(CompressionMixin):
    """A `transformers.Trainer` that makes its model small and fast.

    Takes the arguments of `Trainer`, and:

    | argument | meaning |
    | --- | --- |
    | teacher | a model, a name, or several of them; None: a frozen copy of `model` before it changes |
    | distillation | train on the outputs of the teacher too; None: on the labels alone |
    | pruning | remove heads, neurons, layers or connections, in rounds of pruning and training |
    | quantization | quantize at the end; alone, nothing is trained |
    | export | also write the model for ONNX Runtime or OpenVINO, into folders of `output_dir` |
    | untrimmed | for a model with a trimmed vocabulary: the model before; it is the teacher unless another is given |

    With all of them None it is `Trainer`, except that gradient accumulation is exact: the loss is summed over the
    accumulation window and divided by the number of items in it, and that texts of similar length are evaluated
    together, with results in the order of the data. `report` holds the measurements after `train`.

    Raises UserError if arguments contradict each other, or teacher and model differ in vocabulary or labels, and
    UnsupportedModelError if the architecture is not supported by a technique.
    """


class EfficientSeq2SeqTrainer(CompressionMixin, Seq2SeqTrainer):
    """A `transformers.Seq2SeqTrainer` with the arguments of `EfficientTrainer`."""
