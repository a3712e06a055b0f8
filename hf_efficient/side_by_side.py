"""Models that are there already, side by side: `hf-efficient measure`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from transformers import (
    AutoConfig,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_efficient.data import DataConfig, find_columns, label_numbers, load_splits, tokenize
from hf_efficient.measurement.comparison import compare, model_inputs
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.measurement.runtime import environment
from hf_efficient.tasks import Task, infer_task


def measure_models(
    names: list[str], data: DataConfig, batch_size: int, sequence_length: int, trust_remote_code: bool = False
) -> CompressionReport:
    """Returns the report on models that are there already: the first is the one that the others are compared with.

    Metrics are measured when `data` names any. Raises ValueError: the models are for different tasks.
    """
    has_data = bool(data.dataset_name or data.train_file or data.validation_file or data.test_file)
    configs = [AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code) for name in names]
    tasks = [infer_task(config, labels_are_numbers=False) for config in configs]
    if len({task.name for task in tasks}) > 1:
        raise ValueError(f"the models are for different tasks: {', '.join(task.name for task in tasks)}")
    task, models, metrics, titles = tasks[0], {}, {}, {}
    if has_data:
        file = data.test_file or data.validation_file or data.train_file
        splits = load_splits(
            dataclasses.replace(data, train_file=file, validation_file=file) if file else data, seed=0
        )
        columns = find_columns(splits, task, data)
    for index, (name, config) in enumerate(zip(names, configs, strict=True)):
        role = "teacher" if index == 0 else f"student {index}"
        titles[role] = Path(name).name if Path(name).exists() else name
        models[role] = task.auto_class.from_pretrained(name, trust_remote_code=trust_remote_code).eval()
        if has_data:
            tokenizer = AutoTokenizer.from_pretrained(name)
            classifies = columns.label is not None and task.name != "regression"
            numbers = label_numbers(splits, str(columns.label), config) if classifies else None
            ready = tokenize(
                DatasetDict(evaluation=splits["evaluation"]), columns, numbers, tokenizer, data.max_length
            )
            metrics[role] = evaluate_model(models[role], ready["evaluation"], tokenizer, task)
    first = models["teacher"]
    rows = compare(
        models, model_inputs(first, batch_size, sequence_length), metrics=metrics, metric=task.metric, names=titles
    )
    return CompressionReport(
        task=task.pipeline,
        dataset=data.label if has_data else None,
        metric=task.metric if has_data else None,
        models=rows,
        environment=environment(),
    )


def evaluate_model(
    model: PreTrainedModel, data: Any, tokenizer: PreTrainedTokenizerBase, task: Task, batch_size: int = 32
) -> dict[str, float]:
    """Returns the task's metrics of `model`, in its own precision, on tokenized `data`."""
    loader = torch.utils.data.DataLoader(data, batch_size=batch_size, collate_fn=DataCollatorWithPadding(tokenizer))
    logits, labels = [], []
    with torch.inference_mode():
        for batch in loader:
            labels.append(batch.pop("labels"))
            logits.append(model(**batch.to(model.device)).logits.float().cpu())
    return task.compute_metrics(EvalPrediction(torch.cat(logits).numpy(), torch.cat(labels).numpy()))
