"""Classification of texts or pairs of texts: one class, several classes, or a number."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import DatasetDict

from hf_efficient.data.config import DataConfig
from hf_efficient.data.labels import labels_are_lists, labels_are_numbers
from hf_efficient.measurement.metrics import classification_metrics, multi_label_metrics, regression_metrics
from hf_efficient.tasks.task import LABEL_COLUMNS, Batch, ComputeMetrics, RowEncoder, Task, get_logits


def encode_text(batch: Batch, encoder: RowEncoder) -> dict[str, Any]:
    """Return the tokens of a text or a pair of texts, and the id of its label."""
    encoded = encoder.tokenize(*(batch[name] for name in encoder.columns.texts))
    labels = encoder.get_labels(batch)
    if labels is not None:
        encoded["labels"] = [encoder.label_id(value) for value in labels]
    return encoded


def encode_multi_label(batch: Batch, encoder: RowEncoder) -> dict[str, Any]:
    """Return the tokens of a text or a pair of texts, and its labels as a vector of 0 and 1 over the classes."""
    encoded = encoder.tokenize(*(batch[name] for name in encoder.columns.texts))
    labels = encoder.get_labels(batch)
    if labels is not None:
        ids_of_rows = [{encoder.label_id(value) for value in values} for values in labels]
        encoded["labels"] = [[float(index in ids) for index in range(encoder.num_labels)] for ids in ids_of_rows]
    return encoded


def classification_compute_metrics(*_: Any) -> ComputeMetrics:
    """Return the function that computes accuracy and macro F1."""
    return lambda prediction: classification_metrics(get_logits(prediction), np.asarray(prediction.label_ids))


def multi_label_compute_metrics(*_: Any) -> ComputeMetrics:
    """Return the function that computes micro and macro F1, and accuracy over complete label sets."""
    return lambda prediction: multi_label_metrics(get_logits(prediction), np.asarray(prediction.label_ids))


def regression_compute_metrics(*_: Any) -> ComputeMetrics:
    """Return the function that computes the Pearson and Spearman correlations."""
    return lambda prediction: regression_metrics(get_logits(prediction), np.asarray(prediction.label_ids))


def _label_column(splits: DatasetDict, data: DataConfig) -> str | None:
    names = splits["evaluation"].column_names
    return data.label_column or next((name for name in LABEL_COLUMNS if name in names), None)


def _has_number_labels(splits: DatasetDict, data: DataConfig) -> bool:
    column = _label_column(splits, data)
    return column is not None and labels_are_numbers(splits, column) and not labels_are_lists(splits, column)


def _has_lists_of_labels(splits: DatasetDict, data: DataConfig) -> bool:
    column = _label_column(splits, data)
    return column is not None and labels_are_lists(splits, column)


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
    matches=_has_lists_of_labels,
    problem_type="multi_label_classification",
)
REGRESSION = Task(
    "regression",
    "text-classification",
    "spearman",
    encode_text,
    regression_compute_metrics,
    matches=_has_number_labels,
    problem_type="regression",
    has_classes=False,
)
