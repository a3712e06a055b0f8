"""Trainers that prune, distil and quantize around stock training runs: the one place where the techniques meet."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from transformers import PreTrainedModel, Seq2SeqTrainer
from transformers.trainer_utils import TrainOutput, get_last_checkpoint
from transformers.utils import PushInProgress, logging

from hf_efficient import hub
from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.distillation.distiller import check_same_task
from hf_efficient.distillation.teacher import load_teacher
from hf_efficient.distilling import Distilling
from hf_efficient.measurement.comparison import compare, model_inputs
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.measurement.runtime import environment
from hf_efficient.models import FAMILIES, family_of, is_quantized
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.quantization import aware
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.int8 import compiled
from hf_efficient.quantizing import describe, quantize
from hf_efficient.rounds import PruningRounds, save_whole

logger = logging.get_logger(__name__)

Teachers: TypeAlias = PreTrainedModel | str | Sequence[PreTrainedModel | str] | None
NOT_METRICS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


@dataclasses.dataclass(frozen=True)
class Original:
    """What a model was before rows of its vocabulary went: the teacher, and evaluation data in its own tokens.

    `token_ids` (new size,) holds the teacher's id of each of the model's tokens.
    """

    model: PreTrainedModel
    token_ids: torch.Tensor
    eval_dataset: Any


class _Compression(PruningRounds, Distilling):
    """What both trainers share; see `EfficientTrainer`."""

    def __init__(
        self,
        *args: Any,
        teacher: Teachers = None,
        distillation: DistillationConfig | None = None,
        pruning: PruningConfig | None = None,
        quantization: QuantizationConfig | None = None,
        original: Original | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.distillation = distillation
        self.pruning = pruning or PruningConfig()
        self.quantization = quantization or QuantizationConfig(scheme=None)
        self.original = original
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
        """Returns the teacher that was given, or the one of that name with the head of the model."""
        if teacher is self.model:
            return copy.deepcopy(teacher)  # as it is now: it would go on changing
        if isinstance(teacher, str):
            head = type(self.model).__name__.partition("For")[2]
            auto = {"": "AutoModel", "ConditionalGeneration": "AutoModelForSeq2SeqLM"}.get(head, f"AutoModelFor{head}")
            answers = self.distillation is not None and self.distillation.uses_logits
            return load_teacher(teacher, getattr(transformers, auto), answers)
        return teacher

    def _check(self, teachers: Sequence[PreTrainedModel | str]) -> None:
        """Refuses what cannot work before any of the work is done."""
        self.check_pruning()
        if self.distillation is not None and self.compute_loss_func is not None:
            raise ValueError("compute_loss_func would replace the distillation loss: give one of the two")
        if self.model_init is not None and self.distillation is not None and self.distillation.looks_inside:
            raise ValueError(
                "model_init makes another model after the layers of this one were mapped to the teacher's: give "
                "`model`"
            )
        if self.quantization.aware:
            aware.check(self.model, self.quantization)
            if self.model_init is not None:
                raise ValueError("model_init makes another model, which would not round as in 8 bits: give `model`")
        if teachers and self.distillation is None:
            raise ValueError("a teacher without distillation teaches nothing: add distillation=DistillationConfig()")

    # ---- the run ---------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput | None:
        """Prunes and trains, in rounds if asked for, then quantizes; `self.model` is the small model afterwards.

        Without pruning it is the parent's `train`, and nothing is trained when quantization is all that was asked
        for. `resume_from_checkpoint=True` goes on with what is there, and starts when nothing is.

        Raises NonFiniteLossError: the loss is not a number; the last checkpoint stays as it is.
        """
        if is_quantized(self.model):
            raise ValueError("the model is quantized already and cannot be trained: build a trainer on its float form")
        self.stages = (
            [] if self.original is None else [f"kept {len(self.original.token_ids)} tokens of the vocabulary"]
        )
        compressed = self.distillation is not None or self.pruning.active or self.quantization.scheme is not None
        compressed = compressed or self.original is not None
        if compressed and not self.teachers:
            self.teachers = [self.original.model if self.original else copy.deepcopy(self.model)]
        if self.distillation is not None:
            self.begin_distilling(self.teachers, self.distillation, self.original.token_ids if self.original else None)
        learns = self.distillation is not None or self.pruning.active or self.quantization.aware
        trains = learns or self.quantization.scheme is None

        output: TrainOutput | None = None
        if self.pruning.active:
            output = self.train_in_rounds(resume_from_checkpoint, *args, **kwargs)
        elif trains and self.trains:
            checkpoint = _found(resume_from_checkpoint, self.args.output_dir)
            self._round_as_in_8_bits(self.model)
            output = super().train(checkpoint, *args, **kwargs)
            self.stages.append(f"trained for {output.global_step} steps{self._from_teacher()}")
        self._restore_forward(self.model)
        aware.restore(self.model)
        self.distiller = None  # nothing more is learned

        models: dict[str, PreTrainedModel] = {}
        for number, each in enumerate(self.teachers if compressed else [], start=1):
            models["teacher" if number == 1 else f"teacher {number}"] = each
        if trains:
            models["student" if compressed else "model"] = self.model
        if self.quantization.scheme is not None:
            if trains and self.args.should_save:
                save_whole(self.model, Path(self.args.output_dir) / "_student", self.processing_class)
            quantized = quantize(self.model, self.quantization)
            self.stages.append(describe(self.model, quantized, self.quantization))
            self._install(quantized)
            models["quantized"] = self.model
        self.report = self._measure(models)
        return output

    def _install(self, model: PreTrainedModel) -> None:
        """Also maps the new model's layers to the teacher's, and lets it round."""
        self._round_as_in_8_bits(model)
        super()._install(model)
        if self.distiller is not None:
            self.distiller.prepare(model)

    def _round_as_in_8_bits(self, model: PreTrainedModel) -> None:
        if self.quantization.aware and not is_quantized(model):
            aware.prepare(model, self.quantization)

    def _beside(self) -> Any:
        return self.distiller if self._projections else None

    def _load_beside(self, folder: Path) -> None:
        if self.distiller is not None:
            self.distiller.load_projections(folder)

    def _from_teacher(self) -> str:
        taught = "" if self.distillation is None else f" on {self.distillation.describe()}"
        return f"{taught}, rounding as in 8 bits" if self.quantization.aware else taught

    # ---- what is measured and what leaves the machine --------------------------------------------------------------

    def _measure(self, models: dict[str, PreTrainedModel]) -> CompressionReport:
        """Returns the report on `models`, by role: metrics of each, then speed of all in turn."""
        for model in models.values():
            self._move_model_to_device(model, self.args.device)
        inputs = model_inputs(self.model, self.pruning.latency_batch_size, self.pruning.latency_sequence_length)
        fast: dict[str, Any] = {}
        if self.quantization.scheme is not None:
            wanted = self.quantization.compile and self.quantization.is_int8
            run = compiled(models["quantized"], inputs) if wanted else None
            if run is not None:
                fast = {"compiled": run}
                models = {**models, "compiled": models["quantized"]}
        metrics = {role: self._metrics(role, fast.get(role, model)) for role, model in models.items()}
        found = next(iter(metrics.values()))
        metric = self.args.metric_for_best_model or next((name for name in found if name != "loss"), None)
        known = {family.model_type for family in FAMILIES.values()}
        rows = compare(
            models,
            inputs,
            metrics=metrics,
            metric=metric,
            names={"quantized": self.quantization.title, "compiled": f"{self.quantization.title}, compiled"},
            structures={
                role: family_of(model).structure(model.config).to_dict()
                for role, model in models.items()
                if role in ("teacher", "student") and model.config.model_type.removeprefix("pruned_") in known
            },
            compiled=fast,
            runtimes=dict.fromkeys(models.keys() & {"teacher", "student"}, self.pruning.latency_runtime),
        )
        return CompressionReport(
            metric=metric, stages=tuple(self.stages), models=rows, environment=environment(), configs=self._configs()
        )

    def _metrics(self, role: str, model: PreTrainedModel) -> dict[str, float]:
        """Returns the metrics of `model` on the evaluation set, in its order and the weights' precision."""
        teaches = role.startswith("teacher")
        if self.eval_dataset is None or (teaches and self.pruning.before_training):
            return {}  # a teacher that was never trained has nothing to compare with
        data = self.original.eval_dataset if teaches and self.original else self.eval_dataset
        installed = self.model, self.model_wrapped, self.accelerator.native_amp, self.args.train_sampling_strategy
        self.model = self.model_wrapped = model
        self.accelerator.native_amp, self.args.train_sampling_strategy = False, "random"
        try:
            found = self.predict(data, metric_key_prefix=role).metrics
        finally:
            self.model, self.model_wrapped, self.accelerator.native_amp, self.args.train_sampling_strategy = installed
        named = {name.removeprefix(f"{role}_"): value for name, value in found.items()}
        return {name: value for name, value in named.items() if name not in NOT_METRICS and isinstance(value, float)}

    def _configs(self) -> dict[str, Any]:
        prunes, quantizes = self.pruning.active or self.pruning.vocabulary, self.quantization.scheme is not None
        configs = {
            "distillation": self.distillation,
            "pruning": self.pruning if prunes else None,
            "quantization": self.quantization if quantizes else None,
        }
        names = (
            "learning_rate",
            "num_train_epochs",
            "max_steps",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "seed",
            "bf16",
            "fp16",
        )
        training = {name: getattr(self.args, name) for name in (*names, "gradient_accumulation_steps")}
        return {
            "training": training,
            **{name: dataclasses.asdict(config) for name, config in configs.items() if config is not None},
        }

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Saves as the parent does, but for `training_args.bin`: it is a pickle and holds the Hub token in clear."""
        with self._without_tokens():
            super()._save(output_dir, state_dict)
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)

    @contextmanager
    def _without_tokens(self) -> Iterator[None]:
        token, self.args.hub_token = self.args.hub_token, None
        try:
            yield
        finally:
            self.args.hub_token = token

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the report, its picture and the card made from it; the parent's card where nothing was measured."""
        if self.report is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            hub.write_documents(self.report, self.args.output_dir, base_model=self.base_model)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes a checkpoint while training goes on; the parent would push `training_args.bin` with the token."""
        pending = getattr(self, "push_in_progress", None)
        busy = pending is not None and not pending.is_done() and not self.args.hub_always_push
        if not self.is_world_process_zero() or self.args.hub_strategy == "end" or busy:
            return
        step, token, revision = self.state.global_step, self.args.hub_token, self.args.hub_revision
        push = hub.push_checkpoint(checkpoint_folder, self.hub_model_id, step, token, revision)
        self.push_in_progress = PushInProgress([push])  # the parent waits for it before the last push


class EfficientTrainer(_Compression):
    """A `transformers.Trainer` that makes its model small and fast.

    Takes what `Trainer` takes, and besides:

    | argument | meaning |
    | --- | --- |
    | teacher | a model or a name; None: a frozen copy of `model` before pruning |
    | distillation | train towards the teacher's soft labels; None: on the labels alone |
    | pruning | remove heads, neurons and layers, in rounds of pruning and training |
    | quantization | 8 bits at the end; alone, nothing is trained |
    | original | of a model with a trimmed vocabulary, what it was before; it is the teacher unless another is given |

    With all of them None it is `Trainer`, but for gradient accumulation, which is exact: the loss is summed over the
    accumulation window and divided by the window's count. `report` holds what was measured once `train` is done.

    Raises ValueError: the arguments contradict each other, or teacher and model differ in vocabulary or labels.
    Raises TypeError: the architecture cannot be pruned.
    """


class EfficientSeq2SeqTrainer(_Compression, Seq2SeqTrainer):
    """A `transformers.Seq2SeqTrainer` with the additions of `EfficientTrainer`."""


def _found(resume: str | bool | None, folder: str) -> str | None:
    """Returns the checkpoint to go on from: the given one, the last in `folder` for True, or None to start."""
    if isinstance(resume, str):
        return resume
    return get_last_checkpoint(folder) if resume and Path(folder).is_dir() else None
