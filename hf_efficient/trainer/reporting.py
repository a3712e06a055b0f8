"""What a trainer tells of its models: the report, the card made from it, and what is pushed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from transformers import PreTrainedModel, Trainer
from transformers.utils import PushInProgress

from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.exporters.config import ExportConfig
from hf_efficient.exporters.export import export
from hf_efficient.exporters.inputs import take_calibration_batches
from hf_efficient.exporters.runtime_models import RuntimeModel, load_exported
from hf_efficient.hub.config import PushConfig
from hf_efficient.hub.error_messages import explain_hub_errors
from hf_efficient.hub.model_card import write_report_and_card
from hf_efficient.hub.push import check_repo_is_private, push_checkpoint, push_folder, push_folder_async
from hf_efficient.measurement.comparison import compare, model_inputs
from hf_efficient.measurement.environment import describe_environment
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.models import FAMILIES, family_of
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.int8 import compile_model

TIMING_KEYS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


@dataclasses.dataclass(frozen=True)
class UntrimmedModel:
    """What a model was before rows of its vocabulary went: the teacher, and evaluation data in its own tokens.

    `compute_metrics` judges the answers to them, where that depends on the tokens.

    `token_ids` (new size,) holds the teacher's id of each of the model's tokens.
    """

    model: PreTrainedModel
    token_ids: torch.Tensor
    eval_dataset: Any
    compute_metrics: Any = None


class Reporting(Trainer):
    """A trainer whose `report` describes its models; what it saves and pushes holds no token."""

    distillation: DistillationConfig | None
    pruning: PruningConfig
    quantization: QuantizationConfig
    original: UntrimmedModel | None
    report: Any
    stages: list[str]
    base_model: str
    export: ExportConfig
    model: Any
    model_wrapped: Any
    compute_metrics: Any
    _exported: dict[str, RuntimeModel]

    def _write_exports(self, model: PreTrainedModel) -> None:
        """Write `model` for the runtimes that were asked for, into folders of their names."""
        for format in self.export.formats:
            folder = Path(self.args.output_dir) / format
            calibration = None
            if self.export.needs_calibration(format):  # all processes take part in reading
                calibration = take_calibration_batches(self.get_train_dataloader())
            if self.args.should_save:
                written = export(model, folder, format, self.export.quantization, calibration)
                self.stages.append(written.describe())
            self.accelerator.wait_for_everyone()
            self._exported[format] = load_exported(folder, self.export.quantization, full_precision=self.export.quantization is None)

    def _measure(self, models: dict[str, Any]) -> CompressionReport:
        """Return the report on `models`, by role: metrics of each, then speed of all in turn."""
        for model in models.values():
            self._move_model_to_device(model, self.args.device)
        inputs = model_inputs(self.model, self.pruning.latency_batch_size, self.pruning.latency_sequence_length)
        fast: dict[str, Any] = {}
        if self.quantization.scheme is not None:
            wanted = self.quantization.compile and self.quantization.is_int8
            run = compile_model(models["quantized"], inputs) if wanted else None
            if run is not None:
                fast = {"compiled": run}
                models = {**models, "compiled": models["quantized"]}
        models |= self._exported
        metrics = {role: self._metrics(role, fast.get(role, model)) for role, model in models.items()}
        found = next(iter(metrics.values()))
        metric = self.args.metric_for_best_model or next((name for name in found if name != "loss"), None)
        known = {family.model_type for family in FAMILIES.values()}
        rows = compare(
            models,
            inputs,
            metrics=metrics,
            metric=metric,
            names={
                **({} if models.keys() - self._exported.keys() - {"teacher"} else {"teacher": "model"}),
                "quantized": self.quantization.title,
                "compiled": f"{self.quantization.title}, compiled",
                **{role: model.title for role, model in self._exported.items()},
            },
            structures={
                role: family_of(model).structure(model.config).to_dict()
                for role, model in models.items()
                if role in ("teacher", "student") and model.config.model_type.removeprefix("pruned_") in known
            },
            compiled=fast,
            runtimes=dict.fromkeys(models.keys() & {"teacher", "student"}, self.pruning.latency_runtime),
        )
        return CompressionReport(
            metric=metric,
            stages=tuple(self.stages),
            models=rows,
            environment=describe_environment(),
            configs=self._configs(),
        )

    def _metrics(self, role: str, model: PreTrainedModel) -> dict[str, float]:
        """Return the metrics of `model` on the evaluation set, in its order and the weights' precision."""
        teaches = role.startswith("teacher")
        if self.eval_dataset is None or (teaches and self.pruning.before_training):
            return {}  # a teacher that was never trained has nothing to compare with
        data = self.original.eval_dataset if teaches and self.original else self.eval_dataset
        installed = self.model, self.model_wrapped, self.accelerator.native_amp, self.args.train_sampling_strategy
        judge, half = self.compute_metrics, (self.args.bf16_full_eval, self.args.fp16_full_eval)
        self.args.bf16_full_eval = self.args.fp16_full_eval = False  # would convert the model for good
        self.model = self.model_wrapped = model
        self.accelerator.native_amp, self.args.train_sampling_strategy = False, "random"
        if teaches and self.original and self.original.compute_metrics:
            self.compute_metrics = self.original.compute_metrics
        try:
            found = self.predict(data, metric_key_prefix=role).metrics
        finally:
            self.model, self.model_wrapped, self.accelerator.native_amp, self.args.train_sampling_strategy = installed
            self.compute_metrics, (self.args.bf16_full_eval, self.args.fp16_full_eval) = judge, half
        named = {name.removeprefix(f"{role}_"): value for name, value in found.items()}
        return {
            name: value
            for name, value in named.items()
            if name not in TIMING_KEYS and isinstance(value, float) and math.isfinite(value)
        }

    def _configs(self) -> dict[str, Any]:
        prunes, quantizes = self.pruning.removes_anything or self.pruning.vocabulary, self.quantization.scheme is not None
        configs = {
            "distillation": self.distillation,
            "pruning": self.pruning if prunes else None,
            "quantization": self.quantization if quantizes else None,
            "export": self.export if self.export.formats else None,
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
        training["attn_implementation"] = self.model.config._attn_implementation
        return {
            "training": training,
            **{name: dataclasses.asdict(config) for name, config in configs.items() if config is not None},
        }

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as the parent does, but for `training_args.bin`: it is a pickle and holds the Hub token in clear."""
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
        """Write the report, its picture and the card made from it; the parent's card where nothing was measured."""
        if self.report is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            write_report_and_card(self.report, self.args.output_dir, base_model=self.base_model)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository as the parent does. Raises PushError: the Hub refused, before anything is trained."""
        with explain_hub_errors(
            self.args.output_dir, self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        ):
            super().init_hf_repo(token, private)
            wanted = self.args.hub_private_repo if private is None else private
            if wanted and self.is_world_process_zero():
                check_repo_is_private(str(self.hub_model_id), token or self.args.hub_token)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Save, writes the card and pushes as the parent does, by `pushing.push`: what must not leave never does."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token, revision = token or self.args.hub_token, revision or self.args.hub_revision
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        name = str(self.hub_model_id)
        self.create_model_card(**{"model_name": name.rpartition("/")[2], **kwargs})
        self._finish_current_push()
        private = self.args.hub_private_repo if private is None else private
        config = PushConfig(name, private, revision, commit_message=commit_message or "End of training")
        if not blocking:
            return push_folder_async(self.args.output_dir, config, token)
        *_, commit = push_folder(self.args.output_dir, config, token).values()
        return commit

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint while training goes on; the parent would push `training_args.bin` with the token."""
        pending = getattr(self, "push_in_progress", None)
        busy = pending is not None and not pending.is_done() and not self.args.hub_always_push
        if not self.is_world_process_zero() or self.args.hub_strategy == "end" or busy:
            return
        step, token, revision = self.state.global_step, self.args.hub_token, self.args.hub_revision
        push = push_checkpoint(checkpoint_folder, str(self.hub_model_id), step, token, revision)
        self.push_in_progress = PushInProgress([push])  # the parent waits for it before the last push
