"""Texts, or pairs of them, that get a class, several classes, or a number."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import DatasetDict

from hf_efficient.data.config import DataConfig
from hf_efficient.data.labels import labels_are_lists, labels_are_numbers
from hf_efficient.measurement.metrics import classification_metrics, multi_label_metrics, regression_metrics
from hf_efficient.tasks.task import LABEL_COLUMNS, Batch, Metrics, RowEncoder, Task, get_logits


def encode_text(batch: Batch, encoding: RowEncoder) -> dict[str, Any]:
    """Return tokens of one text or a pair, and the number of its label."""
    encoded = encoding.tokens(*(batch[name] for name in encoding.columns.texts))
    labels = encoding.labels(batch)
    if labels is not None:
        encoded["labels"] = [encoding.number(value) for value in labels]
    return encoded


def encode_multi_label(batch: Batch, encoding: RowEncoder) -> dict[str, Any]:
    """Return tokens, and for each class 1 where a row has it, else 0."""
    encoded = encoding.tokens(*(batch[name] for name in encoding.columns.texts))
    labels, count = encoding.labels(batch), encoding.classes
    if labels is not None:
        chosen = [{encoding.number(value) for value in values} for values in labels]
        encoded["labels"] = [[float(index in few) for index in range(count)] for few in chosen]
    return encoded


def classification_compute_metrics(*_: Any) -> Metrics:
    """Return accuracy and macro F1 of predictions."""
    return lambda prediction: classification_metrics(get_logits(prediction), np.asarray(prediction.label_ids))


def multi_label_compute_metrics(*_: Any) -> Metrics:
    """Return micro and macro F1, and the share of rows with just the right classes."""
    return lambda prediction: multi_label_metrics(get_logits(prediction), np.asarray(prediction.label_ids))


def regression_compute_metrics(*_: Any) -> Metrics:
    """Return Pearson's and Spearman's correlation."""
    return lambda prediction: regression_metrics(get_logits(prediction), np.asarray(prediction.label_ids))


def _label(splits: DatasetDict, data: DataConfig) -> str | None:
    names = splits["evaluation"].column_names
    return data.label_column or next((name for name in LABEL_COLUMNS if name in names), None)


def _numbers(splits: DatasetDict, data: DataConfig) -> bool:
    label = _label(splits, data)
    return label is not None and labels_are_numbers(splits, label) and not labels_are_lists(splits, label)


def _several(splits: DatasetDict, data: DataConfig) -> bool:
    label = _label(splits, data)
    return label is not None and labels_are_lists(splits, label)


CLASSIFICATION = Task(
    "text-classification",
    "text-classification",
    "accuracy",
    encode_text,
    classification_compute_metrics,
    problem_type="single_label_classification",
)
MULTI_LABEL = Task(
    "multi-label-classification",
    "text-classification",
    "f1",
    encode_multi_label,
    multi_label_compute_metrics,
    recognize=_several,
    problem_type="multi_label_classification",
)
REGRESSION = Task(
    "regression",
    "text-classification",
    "spearman",
    encode_text,
    regression_compute_metrics,
    recognize=_numbers,
    problem_type="regression",
    classes=False,
)
