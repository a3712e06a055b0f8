"""A trial, before the first step, of what a run does after its last one."""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import CONFIG_MAPPING, EvalPrediction, PreTrainedModel, Trainer
from transformers.trainer_utils import has_length

from hf_efficient.errors import UserError
from hf_efficient.hub.model_card import build_model_card
from hf_efficient.measurement.environment import describe_environment
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.measurement.report_rows import ModelRow
from hf_efficient.trainer.argument_checks import check_selection_metric
from hf_efficient.trainer.evaluation import TIMING_KEYS, describe_training, evaluated_by

BATCHES = 2


def try_evaluation_and_saving(trainer: Any) -> None:
    """Evaluate two batches of each evaluation dataset; save, load and describe the model in a temporary folder.

    An error of the metric, of the data, of the model's files or of its card stops the run before anything is trained.
    A push is tried before, when the trainer is built: its repository is created. A copy of the model is evaluated:
    accelerate prepares a model once, and one prepared to evaluate would be trained neither in several processes
    together nor in mixed precision.

    Raises UserError if the metric that models are selected by is not computed, or `output_dir` cannot be written.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    with torch.random.fork_rng():  # data loaders draw random numbers, and the training must not depend on it
        metrics = _evaluate_two_batches(trainer, copy.deepcopy(model))
    check_selection_metric(trainer.args, metrics)
    if trainer.args.should_save and isinstance(model, PreTrainedModel):
        with _temporary_folder(trainer.args.output_dir) as directory:
            folder = Path(directory) / Path(trainer.args.output_dir).resolve().name  # the title of the card
            for part in (model, trainer.processing_class):
                if hasattr(part, "save_pretrained"):
                    part.save_pretrained(folder)
            type(model).from_pretrained(folder, dtype=model.dtype)
            if model.config.model_type in CONFIG_MAPPING or trainer.args.push_to_hub:
                report = trainer.complete_report(_report_without_measurements(trainer, metrics))
                report.to_json()
                build_model_card(report, folder)


def _report_without_measurements(trainer: Any, metrics: Mapping[str, Any]) -> CompressionReport:
    """Return a report with the rows, metrics and settings that the report of the run will have."""
    named = {name.removeprefix("eval_"): value for name, value in metrics.items() if isinstance(value, float)}
    values = {name: value for name, value in named.items() if name not in TIMING_KEYS}
    roles = ("teacher", "student") if trainer.teachers else ("model",)
    return CompressionReport(
        metric=next((name for name in values if not name.endswith("loss")), None),
        stages=tuple(trainer.stages),
        models=tuple(ModelRow(role, role, values) for role in roles),
        environment=describe_environment(),
        configs={"training": describe_training(trainer.args, trainer.model), **trainer.techniques.to_dict()},
    )


def _temporary_folder(output_dir: str) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="_trial-", dir=output_dir)
    except OSError as error:
        raise UserError(f"output_dir={output_dir!r} cannot be written: {error.strerror}") from error


def _evaluate_two_batches(trainer: Trainer, model: Any) -> dict[str, float]:
    """Return the metrics of `model` on two batches of each evaluation dataset, named as those of an evaluation."""
    data = trainer.eval_dataset
    named = {f"eval_{name}": dataset for name, dataset in data.items()} if isinstance(data, dict) else {"eval": data}
    metrics: dict[str, float] = {}
    for prefix, dataset in named.items():
        rows = _first_rows(dataset, BATCHES * trainer.args.eval_batch_size)
        if rows:
            count = len(dataset) if has_length(dataset) else len(rows)
            with evaluated_by(trainer, model, _metrics_of_repeated_rows(trainer, count)):
                metrics |= trainer.predict(rows, metric_key_prefix=prefix).metrics
    return metrics


def _first_rows(dataset: Any, count: int) -> list[Any]:
    """Return the first rows; none of a dataset that can perhaps be read only once."""
    if isinstance(dataset, datasets.IterableDataset):
        return list(itertools.islice(dataset, count))
    if dataset is None or not has_length(dataset):
        return []
    return [dataset[index] for index in range(min(count, len(dataset)))]


def _metrics_of_repeated_rows(trainer: Trainer, count: int) -> Any:
    """Return `compute_metrics` of the results repeated up to `count` rows: it may expect those of all the data."""
    compute_metrics, args = trainer.compute_metrics, trainer.args
    if compute_metrics is None or args.batch_eval_metrics or not args.eval_do_concat_batches:
        return compute_metrics

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        results = (prediction.predictions, prediction.label_ids, prediction.inputs)
        return compute_metrics(EvalPrediction(*(_repeat(values, count) for values in results), prediction.losses))

    return compute


def _repeat(values: Any, count: int) -> Any:
    if isinstance(values, tuple | list):
        return type(values)(_repeat(value, count) for value in values)
    if isinstance(values, dict):
        return {name: _repeat(value, count) for name, value in values.items()}
    if values is None or not np.size(values):
        return values
    return np.resize(values, (count, *np.shape(values)[1:]))
