"""Comparison of existing models, for `hf-efficient measure`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import nn
from transformers.utils import logging

from hf_efficient.commands.pretrained import load_config, load_model, load_tokenizer
from hf_efficient.data.config import DataConfig
from hf_efficient.data.loading import load_splits
from hf_efficient.errors import UserError
from hf_efficient.exporters.inputs import EXPORT_CALIBRATION_SAMPLES
from hf_efficient.measurement.agreement import agreement
from hf_efficient.measurement.comparison import compare, model_inputs
from hf_efficient.measurement.environment import describe_environment
from hf_efficient.measurement.finite import check_finite_weights
from hf_efficient.measurement.intervals import retained_intervals
from hf_efficient.measurement.latency import measure_throughput
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.measurement.row_metrics import RowMetric
from hf_efficient.models.batches import example_count
from hf_efficient.tasks.evaluator import TaskEvaluator
from hf_efficient.tasks.inference import infer_task, reads_plain_text, with_label_column
from hf_efficient.tasks.retrieval import NDCG, RetrievalData, evaluate_retrieval
from hf_efficient.variants.builders import (
    Forward,
    ModelVariant,
    check_not_quantized,
    check_variants,
    has_calibration_data,
)
from hf_efficient.variants.config import VARIANTS

logger = logging.get_logger(__name__)


def compare_models(
    names: list[str],
    data: DataConfig,
    batch_size: int,
    sequence_length: int,
    trust_remote_code: bool = False,
    variants: Sequence[str] = (),
    tokenizer_name: str | None = None,
    retrieval: RetrievalData | None = None,
) -> CompressionReport:
    """Return a report on existing models; the others are compared with the first.

    Each is measured as it is, or in each of `variants`, names in `VARIANTS`. Metrics are computed if `data` is given,
    those of retrieval by sentence embedders if `retrieval` is, of the models as they are.
    The variants of one model have their names as roles, and the report recommends one.

    Raises UserError if the models are for different tasks, a variant is unknown, or calibration needs training data.
    """
    check_variants(variants, data)
    if retrieval is not None and variants:
        raise UserError("retrieval is measured with models as they are in their folders: leave out --variants")
    configs = [load_config(name, trust_remote_code) for name in names]
    splits, data = with_label_column(_load_splits(data, names[0]) if data.is_given else DatasetDict(), data)
    tasks = [infer_task(config, splits, data) for config in configs]
    if len({task.name for task in tasks}) > 1:
        raise UserError(f"the models are for different tasks: {', '.join(task.name for task in tasks)}")
    task, has_data = tasks[0], len(splits) > 0
    metric = task.metric if has_data else None if retrieval is None else NDCG
    models: dict[str, nn.Module] = {}
    metrics: dict[str, dict[str, float]] = {}
    classes: dict[str, Any] = {}
    by_row: dict[str, dict[str, RowMetric]] = {}
    titles: dict[str, str] = {}
    compiled: dict[str, Forward] = {}
    passes: dict[str, Callable[[], object]] = {}
    num_texts: dict[str, int] = {}
    inputs: dict[str, torch.Tensor] = {}
    requested: Sequence[str | None] = variants or [None]
    settings: dict[str, str] = {}
    with ExitStack() as stack:
        for name, config in zip(names, configs, strict=True):
            title = Path(name).name if Path(name).exists() else name
            model, missing = load_model(task.auto_class, name, trust_remote_code=trust_remote_code)
            if has_data and missing:
                raise UserError(
                    f"the files of {name!r} have no weights for {', '.join(sorted(missing))}: its {task.metric} would "
                    "be that of random weights; measure a model that is fine-tuned for the task"
                )
            check_finite_weights(model, title)
            if variants:
                check_not_quantized(model, title)
            if not inputs:
                inputs = model_inputs(model, batch_size, sequence_length)
            evaluator = None
            if has_data:
                tokenizer = load_tokenizer(tokenizer_name or name, trust_remote_code)
                evaluator = TaskEvaluator.from_splits(
                    splits, config, tokenizer, task, task.adapt_data(data, model), EXPORT_CALIBRATION_SAMPLES
                )
                if not models:
                    logger.warning(evaluator.describe())
                    settings = evaluator.metric_settings
                batches = evaluator.sample_batches()
            calibration = None
            if evaluator is not None and has_calibration_data(data):
                calibration = evaluator.calibration_batches()
            for variant_name in requested:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                variant: ModelVariant | None = ModelVariant(model)
                if variant_name is not None:
                    variant = VARIANTS[variant_name](model, inputs, calibration, directory)
                if variant is None:
                    continue
                role = f"student {len(models)}" if models else "teacher"
                if models and variant_name is not None and len(names) == 1:
                    role = variant_name  # another form of the same model, which may be recommended
                models[role] = variant.model
                titles[role] = _title(title, variant_name, len(names))
                if variant.forward is not None:
                    compiled[role] = variant.forward
                if evaluator is not None:
                    metrics[role], classes[role], by_row[role] = evaluator.evaluate(variant.runner)
                    passes[role] = partial(evaluator.predict, variant.runner, batches)
                    num_texts[role] = sum(map(example_count, batches))
                if retrieval is not None:
                    found = evaluate_retrieval(name, names[0], retrieval, trust_remote_code)
                    metrics[role] = {**metrics.get(role, {}), **found}
        rows = compare(
            models,
            inputs,
            metrics=metrics,
            metric=metric,
            names=titles,
            compiled=compiled,
            throughput=measure_throughput(passes, num_texts) if has_data else None,
        )
    first_classes, first_by_row = classes.pop("teacher", None), by_row.pop("teacher", {})
    are_forms = bool(variants) and len(names) == 1
    agreements = {role: agreement(values, first_classes) for role, values in classes.items()}
    rows = tuple(
        dataclasses.replace(
            row,
            agreement=agreements.get(row.role) if are_forms else None,
            teacher_agreement=None if are_forms else agreements.get(row.role),
            retained_intervals=retained_intervals(by_row.get(row.role, {}), first_by_row),
        )
        for row in rows
    )
    return CompressionReport(
        task=task.pipeline,
        dataset=data.title if has_data else None,
        metric=metric,
        models=rows,
        environment=describe_environment(),
        configs={"data": data.public_values(), "metrics": settings} if has_data else {},
    )


def _title(model: str, variant: str | None, num_models: int) -> str:
    if variant is None:
        return model
    return f"{model} {variant}" if num_models > 1 else variant


def _load_splits(data: DataConfig, model_name: str) -> DatasetDict:
    """Return the rows to evaluate on, and those for calibration."""
    file = data.test_file or data.validation_file or data.train_file
    if file:
        data = dataclasses.replace(data, train_file=data.train_file or file, validation_file=file)
    return load_splits(data, seed=0, plain_text=reads_plain_text(None, model_name))
