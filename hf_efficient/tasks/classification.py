"""Classification of texts or pairs of texts: one class, several classes, or a number."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict

from hf_efficient.data.config import DataConfig
from hf_efficient.data.label_checks import check_correlation
from hf_efficient.data.label_values import split_labels
from hf_efficient.data.labels import check_numbers, entry_is_set, label_kind, label_number
from hf_efficient.measurement.metrics import classification_metrics, multi_label_metrics, regression_metrics
from hf_efficient.measurement.row_metrics import (
    classification_row_metrics,
    multi_label_row_metrics,
    regression_row_metrics,
)
from hf_efficient.tasks.task import (
    LABEL_COLUMNS,
    Batch,
    RowEncoder,
    Task,
    TaskMetrics,
    check_row_texts,
    read_logits,
)


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
        ids_of_rows = [{encoder.label_id(value) for value in _set_labels(values, encoder)} for values in labels]
        encoded["labels"] = [[float(index in ids) for index in range(encoder.num_labels)] for ids in ids_of_rows]
    return encoded


def encode_number(batch: Batch, encoder: RowEncoder) -> dict[str, Any]:
    """Return the tokens of a text or a pair of texts, and its label as a list of one number, like the outputs."""
    encoded = encoder.tokenize(*(batch[name] for name in encoder.columns.texts))
    labels = encoder.get_labels(batch)
    if labels is not None:
        encoded["labels"] = [[label_number(value)] for value in labels]
    return encoded


def _set_labels(values: Any, encoder: RowEncoder) -> list[Any]:
    """Return the labels of a row: those in its list, or the indices of the entries of its vector that are 1."""
    labels = split_labels(values)
    return [index for index, entry in enumerate(labels) if entry_is_set(entry)] if encoder.is_multi_hot else labels


def classification_compute_metrics(*_: Any) -> TaskMetrics:
    """Return the function that computes accuracy and macro F1."""
    return TaskMetrics(read_logits, classification_metrics, classification_row_metrics)


def multi_label_compute_metrics(*_: Any) -> TaskMetrics:
    """Return the function that computes micro and macro F1, and accuracy over complete label sets."""
    return TaskMetrics(read_logits, multi_label_metrics, multi_label_row_metrics)


def regression_compute_metrics(*_: Any) -> TaskMetrics:
    """Return the function that computes the Pearson and Spearman correlations."""
    return TaskMetrics(read_logits, regression_metrics, regression_row_metrics)


def _label_column(splits: DatasetDict, data: DataConfig) -> str | None:
    names = splits["evaluation"].column_names
    named = data.label_column if data.label_column in names else None
    return named or next((name for name in LABEL_COLUMNS if name in names), None)


def _check_number_rows(split: Dataset, name: str, encoder: RowEncoder) -> None:
    check_row_texts(split, name, encoder)
    column = str(encoder.columns.label)
    if column in split.column_names:
        check_numbers(DatasetDict({name: split}), column)
        if name == "evaluation":
            check_correlation(split, column)


def _has_number_labels(splits: DatasetDict, data: DataConfig) -> bool:
    column = _label_column(splits, data)
    return column is not None and label_kind(splits, column) == "numbers"


def has_lists_of_labels(splits: DatasetDict, data: DataConfig) -> bool:
    """Whether each row has a list of labels."""
    column = _label_column(splits, data)
    return column is not None and label_kind(splits, column) == "lists"


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
    matches=has_lists_of_labels,
    read_labels=split_labels,
    problem_type="multi_label_classification",
)
REGRESSION = Task(
    "regression",
    "text-classification",
    "spearman",
    encode_number,
    regression_compute_metrics,
    matches=_has_number_labels,
    problem_type="regression",
    check_rows=_check_number_rows,
    has_classes=False,
)
