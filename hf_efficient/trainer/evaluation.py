"""Evaluation of every variant of a model, and the report on all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import has_length

from hf_efficient.exporters.runtime_models import RuntimeModel
from hf_efficient.measurement.comparison import compare, model_inputs
from hf_efficient.measurement.environment import describe_environment
from hf_efficient.measurement.latency import measure_throughput, sample_batches
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.models import FAMILIES, family_of
from hf_efficient.quantization.int8 import compile_model
from hf_efficient.trainer.loss import Batch
from hf_efficient.trainer.techniques import Techniques

TIMING_KEYS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
REPORTED_ARGUMENTS = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "seed",
    "bf16",
    "fp16",
    "gradient_accumulation_steps",
)


@dataclass(frozen=True)
class UntrimmedModel:
    """A model before tokens were removed from its vocabulary: the teacher of the trimmed one.

    | field | meaning |
    | --- | --- |
    | model | the model with the full vocabulary |
    | token_ids | (new vocabulary size,) the id that each token of the trimmed model has in this one |
    | eval_dataset | the evaluation data in the tokens of this model |
    | compute_metrics | for predictions on that data; None: those of the trainer |
    """

    model: PreTrainedModel
    token_ids: torch.Tensor
    eval_dataset: Any
    compute_metrics: Any = None


@contextmanager
def evaluated_by(trainer: Trainer, model: Any, compute_metrics: Any) -> Iterator[None]:
    """Let `trainer` evaluate `model` within the context, in the precision of its weights."""
    args, accelerator = trainer.args, trainer.accelerator
    previous_models = trainer.model, trainer.model_wrapped
    previous_metrics, previous_amp = trainer.compute_metrics, accelerator.native_amp
    previous_args = args.bf16_full_eval, args.fp16_full_eval
    args.bf16_full_eval = args.fp16_full_eval = False  # they would convert the model permanently
    trainer.model = trainer.model_wrapped = model
    accelerator.native_amp = False
    trainer.compute_metrics = compute_metrics
    try:
        yield
    finally:
        trainer.model, trainer.model_wrapped = previous_models
        trainer.compute_metrics, accelerator.native_amp = previous_metrics, previous_amp
        args.bf16_full_eval, args.fp16_full_eval = previous_args


class ModelEvaluator:
    """Evaluates models by the role that they have in a report, on the evaluation data of `trainer`."""

    def __init__(self, trainer: Trainer, techniques: Techniques, untrimmed: UntrimmedModel | None) -> None:
        self.trainer, self.techniques, self.untrimmed = trainer, techniques, untrimmed

    def evaluate(self, role: str, model: Any) -> dict[str, float]:
        """Return the metrics of `model`; none without evaluation data, or for a teacher that was never trained.

        Of several datasets by name, the metrics have the name of the dataset before theirs, "validation_accuracy".
        """
        datasets, compute_metrics = self._select_data(role)
        if role.startswith("teacher") and self.techniques.pruning.before_training:
            return {}
        metrics = {}
        with evaluated_by(self.trainer, model, compute_metrics):
            for prefix, dataset in datasets.items():
                output = self.trainer.predict(dataset, metric_key_prefix=role)
                for key, value in output.metrics.items():
                    name = key.removeprefix(f"{role}_")
                    if name not in TIMING_KEYS and isinstance(value, float) and math.isfinite(value):
                        metrics[prefix + name] = value
        return metrics

    def measure_throughput(self, models: Mapping[str, Any]) -> dict[str, float] | None:
        """Return texts a second by role, of texts of all lengths in the evaluation data; None without such data.

        A text is predicted as in an evaluation, by a forward pass or by generating its output, in batches of
        `eval_batch_size` texts of similar length. Tokenisation and metrics are not timed.
        """
        trainer, batch_size = self.trainer, self.trainer.args.eval_batch_size
        passes, num_texts = {}, {}
        for role, model in models.items():
            datasets, _ = self._select_data(role)
            if not datasets or not all(map(has_length, datasets.values())):
                return None
            loaders = map(trainer.get_test_dataloader, datasets.values())
            batches = sample_batches(itertools.chain.from_iterable(loaders), batch_size)
            num_texts[role] = sum(find_batch_size(batch) for batch in batches)
            passes[role] = partial(self._predict, model, batches)
        return measure_throughput(passes, num_texts)

    def _predict(self, model: Any, batches: Iterable[Batch]) -> None:
        with evaluated_by(self.trainer, model, self.trainer.compute_metrics):
            for batch in batches:
                self.trainer.prediction_step(model, dict(batch), prediction_loss_only=False)

    def _select_data(self, role: str) -> tuple[Mapping[str, Any], Any]:
        """Return the datasets that the model in this role is evaluated on, by a prefix of their metrics, and those."""
        dataset, compute_metrics = self.trainer.eval_dataset, self.trainer.compute_metrics
        if dataset is not None and role.startswith("teacher") and self.untrimmed is not None:
            dataset = self.untrimmed.eval_dataset
            compute_metrics = self.untrimmed.compute_metrics or compute_metrics
        if isinstance(dataset, dict):
            return {f"{name}_": values for name, values in dataset.items()}, compute_metrics
        return {} if dataset is None else {"": dataset}, compute_metrics

    def build_report(
        self, models: Mapping[str, Any], exported: Mapping[str, RuntimeModel], stages: list[str]
    ) -> CompressionReport:
        """Return the report on `models` and `exported`, by role: metrics of each, then measurements of all.

        An int8 model has a second row, compiled, if the config requests it and the machine can compile.
        """
        trainer, techniques = self.trainer, self.techniques
        for model in models.values():
            trainer._move_model_to_device(model, trainer.args.device)
        pruning, quantization = techniques.pruning, techniques.quantization
        inputs = model_inputs(trainer.model, pruning.latency_batch_size, pruning.latency_sequence_length)
        compiled: dict[str, Any] = {}
        variants = dict(models)
        if quantization.scheme is not None and quantization.compile and quantization.is_int8:
            forward = compile_model(models["quantized"], inputs)
            if forward is not None:
                compiled["compiled"], variants["compiled"] = forward, models["quantized"]
        variants |= exported
        runtimes = dict.fromkeys(models.keys() & {"teacher", "student"}, pruning.latency_runtime)
        timed = {
            role: compiled.get(role, model)
            for role, model in variants.items()
            if runtimes.get(role, "torch") == "torch"  # else the row's times are those of another runtime
        }
        metrics = {role: self.evaluate(role, compiled.get(role, model)) for role, model in variants.items()}
        first = next(iter(metrics.values()))
        metric = trainer.args.metric_for_best_model or next(
            (name for name in first if not name.endswith("loss")), None
        )
        is_plain_export = not variants.keys() - exported.keys() - {"teacher"}
        rows = compare(
            variants,
            inputs,
            metrics=metrics,
            metric=metric,
            names={
                **({"teacher": "model"} if is_plain_export else {}),
                "quantized": quantization.title,
                "compiled": f"{quantization.title}, compiled",
                **{role: model.title for role, model in exported.items()},
            },
            structures={
                role: family_of(models[role]).structure(models[role].config).to_dict()
                for role in ("teacher", "student")
                if role in models and models[role].config.model_type.removeprefix("pruned_") in FAMILIES
            },
            compiled=compiled,
            runtimes=runtimes,
            throughput=self.measure_throughput(timed),
        )
        configs = {"training": describe_training(trainer.args, trainer.model), **techniques.to_dict()}
        return CompressionReport(
            metric=metric, stages=tuple(stages), models=rows, environment=describe_environment(), configs=configs
        )


def describe_training(args: TrainingArguments, model: PreTrainedModel) -> dict[str, Any]:
    """Return the settings of training that a report names."""
    settings = {name: getattr(args, name) for name in REPORTED_ARGUMENTS}
    return {**settings, "attn_implementation": model.config._attn_implementation}
