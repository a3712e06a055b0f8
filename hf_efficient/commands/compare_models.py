"""Models that are there already, side by side: `hf-efficient measure`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from datasets import DatasetDict
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from hf_efficient.data.config import DataConfig
from hf_efficient.data.loading import load_splits
from hf_efficient.errors import UserError
from hf_efficient.measurement.comparison import compare, model_inputs
from hf_efficient.measurement.environment import describe_environment
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.tasks import infer_task
from hf_efficient.tasks.evaluator import TaskEvaluator
from hf_efficient.variants.builders import Forward, ModelVariant, check_not_quantized, check_variants
from hf_efficient.variants.config import VARIANTS


def compare_models(
    names: list[str],
    data: DataConfig,
    batch_size: int,
    sequence_length: int,
    trust_remote_code: bool = False,
    forms: Sequence[str] = (),
) -> CompressionReport:
    """Return the report on models that are there already: the first is the one that the others are compared with.

    Each is measured as it is, or in each of `forms`, the names in `FORMS`. Metrics are measured when `data` names any.

    Raises ValueError: the models are for different tasks, a form is unknown, or calibration needs training data.
    """
    check_variants(forms, data)
    configs = [AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code) for name in names]
    splits = _load_splits(data) if data.named else DatasetDict()
    tasks = [infer_task(config, splits, data) for config in configs]
    if len({task.name for task in tasks}) > 1:
        raise UserError(f"the models are for different tasks: {', '.join(task.name for task in tasks)}")
    task = tasks[0]
    wanted: Sequence[str | None] = forms or [None]
    models: dict[str, nn.Module] = {}
    metrics: dict[str, dict[str, float]] = {}
    titles: dict[str, str] = {}
    calls: dict[str, Forward] = {}
    inputs: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for name, config in zip(names, configs, strict=True):
            title = Path(name).name if Path(name).exists() else name
            model = task.auto_class.from_pretrained(name, trust_remote_code=trust_remote_code).eval()
            if forms:
                check_not_quantized(model, title)
            inputs = inputs or model_inputs(model, batch_size, sequence_length)
            judged = (
                TaskEvaluator.of(splits, config, AutoTokenizer.from_pretrained(name), task, data) if splits else None
            )
            calibration = None if judged is None else judged.calibration()
            for form in wanted:
                role = f"student {len(models)}" if models else "teacher"
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                made = ModelVariant(model) if form is None else VARIANTS[form](model, inputs, calibration, folder)
                if made is None:
                    continue
                models[role] = made.model
                titles[role] = title if form is None else f"{title} {form}" if len(names) > 1 else form
                if made.forward is not None:
                    calls[role] = made.forward
                if judged is not None:
                    metrics[role] = judged.metrics(made.runner)
        rows = compare(models, inputs, metrics=metrics, metric=task.metric, names=titles, compiled=calls)
    return CompressionReport(
        task=task.pipeline,
        dataset=data.label if splits else None,
        metric=task.metric if splits else None,
        models=rows,
        environment=describe_environment(),
    )


def _load_splits(data: DataConfig) -> DatasetDict:
    """Return the rows to measure on, and those to calibrate on."""
    file = data.test_file or data.validation_file or data.train_file
    if file:
        data = dataclasses.replace(data, train_file=data.train_file or file, validation_file=file)
    return load_splits(data, seed=0)
