"""Evaluation of every variant of a model, and the report on all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import has_length
from transformers.utils import logging

from hf_efficient.exporters.runtime_models import RuntimeModel
from hf_efficient.measurement.agreement import agreement, comparable_predictions
from hf_efficient.measurement.comparison import compare, model_inputs
from hf_efficient.measurement.environment import describe_environment
from hf_efficient.measurement.intervals import Interval, metrics_by_row, retained_intervals
from hf_efficient.measurement.latency import measure_throughput, sample_batches
from hf_efficient.measurement.recommendation import student_forms
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.measurement.report_rows import ModelRow
from hf_efficient.measurement.report_table import collapse_note
from hf_efficient.measurement.row_metrics import RowMetric
from hf_efficient.measurement.runtimes import RUNTIMES
from hf_efficient.models import FAMILIES, family_of
from hf_efficient.pruning.vocabulary import SplitWords
from hf_efficient.trainer.loss import Batch, select_model_inputs
from hf_efficient.trainer.techniques import Techniques
from hf_efficient.variants.compiled import compile_variant
from hf_efficient.variants.float_inputs import max_difference_without_kernels
from hf_efficient.variants.half_precision import half_precision_forms

logger = logging.get_logger(__name__)

TIMING_KEYS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
# Of encoders, decoders and both.
INNER_OUTPUTS = (
    "last_hidden_state",
    "hidden_states",
    "attentions",
    "encoder_last_hidden_state",
    "encoder_hidden_states",
    "encoder_attentions",
    "decoder_hidden_states",
    "decoder_attentions",
    "cross_attentions",
)
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
    | split_words | the words of that data that fall into more pieces since; None: not counted |
    """

    model: PreTrainedModel
    token_ids: torch.Tensor
    eval_dataset: Any
    compute_metrics: Any = None
    split_words: SplitWords | None = None


@contextmanager
def evaluated_by(trainer: Trainer, model: Any, compute_metrics: Any) -> Iterator[None]:
    """Let `trainer` evaluate `model` within the context, in the precision of its weights."""
    args, accelerator = trainer.args, trainer.accelerator
    previous_models = trainer.model, trainer.model_wrapped
    previous_metrics, previous_amp = trainer.compute_metrics, accelerator.native_amp
    previous_args = args.bf16_full_eval, args.fp16_full_eval, args.prediction_loss_only
    args.prediction_loss_only = False  # a report needs the metrics
    args.bf16_full_eval = args.fp16_full_eval = False  # they would convert the model permanently
    trainer.model = trainer.model_wrapped = model
    accelerator.native_amp = False
    trainer.compute_metrics = compute_metrics
    try:
        yield
    finally:
        trainer.model, trainer.model_wrapped = previous_models
        trainer.compute_metrics, accelerator.native_amp = previous_metrics, previous_amp
        args.bf16_full_eval, args.fp16_full_eval, args.prediction_loss_only = previous_args


def outputs_not_kept(model: Any) -> list[str]:
    """Return the outputs of `model` that no metric reads; kept for all the data, they would fill the memory."""
    return [*getattr(model.config, "keys_to_ignore_at_inference", ["past_key_values"]), *INNER_OUTPUTS]


class ModelEvaluator:
    """Evaluates models by the role that they have in a report, on the evaluation data of `trainer`."""

    def __init__(self, trainer: Trainer, techniques: Techniques, untrimmed: UntrimmedModel | None) -> None:
        self.trainer, self.techniques, self.untrimmed = trainer, techniques, untrimmed
        self._classes: dict[str, Any] = {}  # what each model predicts, classes or embeddings
        self._row_metrics: dict[str, dict[str, RowMetric]] = {}

    def evaluate(self, role: str, model: Any) -> dict[str, float]:
        """Return the metrics of `model`; none without evaluation data, or for a teacher that was never trained.

        Of several datasets by name, the metrics have the name of the dataset before theirs, "validation_accuracy".
        """
        datasets, compute_metrics = self._select_data(role)
        if role.startswith("teacher") and self.techniques.pruning.before_training:
            return {}
        metrics: dict[str, float] = {}
        classes: list[Any] = []
        row_metrics: dict[str, RowMetric] = {}
        with evaluated_by(self.trainer, model, compute_metrics):
            for prefix, dataset in datasets.items():
                output = self.trainer.predict(dataset, metric_key_prefix=role)
                classes.append(comparable_predictions(output.predictions, output.label_ids))
                values = {
                    key.removeprefix(f"{role}_"): value
                    for key, value in output.metrics.items()
                    if isinstance(value, float) and math.isfinite(value)
                }
                metrics |= {prefix + name: value for name, value in values.items() if name not in TIMING_KEYS}
                by_row = metrics_by_row(compute_metrics, EvalPrediction(output.predictions, output.label_ids), values)
                row_metrics |= {prefix + name: metric for name, metric in by_row.items()}
        self._classes[role] = (
            np.concatenate(classes) if classes and all(values is not None for values in classes) else None
        )
        self._row_metrics[role] = row_metrics
        return metrics

    def measure_throughput(self, models: Mapping[str, Any]) -> dict[str, float] | None:
        """Return texts a second by role, of texts of all lengths in the evaluation data; None without such data.

        A text is predicted as in an evaluation, by a forward pass or by generating its output, in batches of
        `eval_batch_size` texts of similar length. Tokenisation and metrics are not timed.
        """
        passes, num_texts = {}, {}
        for role, model in models.items():
            batches = self._sample_batches(role)
            if batches is None:
                return None
            num_texts[role] = sum(find_batch_size(batch) for batch in batches)
            passes[role] = partial(self._predict, model, batches)
        return measure_throughput(passes, num_texts)

    def _sample_batches(self, role: str) -> list[Batch] | None:
        """Return a sample of the batches that the model in this role is evaluated on; None without such data."""
        datasets, _ = self._select_data(role)
        if not datasets or not all(map(has_length, datasets.values())):
            return None
        loaders = map(self.trainer.get_test_dataloader, datasets.values())
        return sample_batches(itertools.chain.from_iterable(loaders), self.trainer.args.eval_batch_size)

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

        An int8 model has a second row, compiled, if the config requests it and the machine can compile. On a GPU the
        models in float32 have rows in half precision too.
        """
        trainer, techniques = self.trainer, self.techniques
        for model in models.values():
            trainer._move_model_to_device(model, trainer.args.device)
        pruning, quantization = techniques.pruning, techniques.quantization
        fewest_tokens = min(models.values(), key=lambda model: model.config.vocab_size, default=trainer.model)
        inputs = model_inputs(fewest_tokens, pruning.latency_batch_size, pruning.latency_sequence_length)
        half = half_precision_forms(models, trainer.args.device)
        variants = {role: model for role, model in models.items() if role != "quantized"} | half
        compiled: dict[str, Any] = {}
        if "quantized" in models:
            variants["quantized"] = models["quantized"]
            if quantization.compile and quantization.is_int8:
                forward = compile_variant(models["quantized"], inputs)
                if forward is not None:
                    compiled["compiled"], variants["compiled"] = forward, models["quantized"]
        variants |= exported
        runtime = pruning.latency_runtime if pruning.latency_runtime in RUNTIMES else "torch"
        runtimes = dict.fromkeys(models.keys() & {"teacher", "student"}, runtime)
        timed = {
            role: compiled.get(role, model)
            for role, model in variants.items()
            if runtimes.get(role, "torch") == "torch"  # else the row's times are those of another runtime
        }
        metrics = {role: self.evaluate(role, compiled.get(role, model)) for role, model in variants.items()}
        first = next(iter(metrics.values()))
        metric = next((name for name in first if not name.endswith("loss")), None)
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
        report = CompressionReport(
            metric=metric,
            stages=tuple(stages),
            models=self._add_differences(rows, models.get("quantized"), inputs),
            environment=describe_environment(),
            configs=configs,
        )
        for note in filter(None, (report.slower_form_note(), collapse_note(report.models))):
            logger.warning(note)
        return report

    def _add_differences(
        self, rows: Sequence[ModelRow], quantized: PreTrainedModel | None, inputs: Batch
    ) -> tuple[ModelRow, ...]:
        """Return `rows` with what they are compared by, example by example, with the teacher and the float student.

        Of an int8 model also its difference to other machines.
        """
        if not rows:
            return ()
        reference, *forms = student_forms(rows)
        agreements = {
            form.role: agreement(self._classes.get(form.role), self._classes.get(reference.role)) for form in forms
        }
        difference = None
        if quantized is not None:
            is_decoder = quantized.config.is_encoder_decoder  # whose inputs a batch need not have
            batches = (None if is_decoder else self._sample_batches("quantized")) or [inputs]
            batches = [select_model_inputs(quantized, self.trainer._prepare_inputs(dict(batch))) for batch in batches]
            difference = max_difference_without_kernels(quantized, batches)
        return tuple(
            replace(
                row,
                agreement=agreements.get(row.role),
                teacher_agreement=self._agreement_with_teacher(row.role),
                retained_intervals=self._intervals(row.role),
                max_difference_without_kernels=difference if row.role == "quantized" else None,
            )
            for row in rows
        )

    def _agreement_with_teacher(self, role: str) -> float | None:
        return None if role == "teacher" else agreement(self._classes.get(role), self._classes.get("teacher"))

    def _intervals(self, role: str) -> dict[str, Interval]:
        if role == "teacher":
            return {}
        return retained_intervals(self._row_metrics.get(role, {}), self._row_metrics.get("teacher", {}))


def describe_training(args: TrainingArguments, model: PreTrainedModel) -> dict[str, Any]:
    """Return the settings of training that a report names."""
    settings = {name: getattr(args, name) for name in REPORTED_ARGUMENTS}
    return {**settings, "attn_implementation": model.config._attn_implementation}
