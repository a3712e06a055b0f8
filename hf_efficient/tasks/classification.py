"""Texts, or pairs of them, that get a class, several classes, or a number."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import DatasetDict

from hf_efficient.data import DataConfig
from hf_efficient.measurement.metrics import classification_metrics, multi_label_metrics, regression_metrics
from hf_efficient.tasks.labels import labels_are_lists, labels_are_numbers
from hf_efficient.tasks.task import LABEL_COLUMNS, Batch, Encoding, Metrics, Task, logits_of


def encode_text(batch: Batch, encoding: Encoding) -> dict[str, Any]:
    """Returns tokens of one text or a pair, and the number of its label."""
    encoded = encoding.tokens(*(batch[name] for name in encoding.columns.texts))
    labels = encoding.labels(batch)
    if labels is not None:
        encoded["labels"] = [encoding.number(value) for value in labels]
    return encoded


def encode_several(batch: Batch, encoding: Encoding) -> dict[str, Any]:
    """Returns tokens, and for each class 1 where a row has it, else 0."""
    encoded = encoding.tokens(*(batch[name] for name in encoding.columns.texts))
    labels, count = encoding.labels(batch), encoding.classes
    if labels is not None:
        chosen = [{encoding.number(value) for value in values} for values in labels]
        encoded["labels"] = [[float(index in few) for index in range(count)] for few in chosen]
    return encoded


def judge_class(*_: Any) -> Metrics:
    """Returns accuracy and macro F1 of predictions."""
    return lambda prediction: classification_metrics(logits_of(prediction), np.asarray(prediction.label_ids))


def judge_several(*_: Any) -> Metrics:
    """Returns micro and macro F1, and the share of rows with just the right classes."""
    return lambda prediction: multi_label_metrics(logits_of(prediction), np.asarray(prediction.label_ids))


def judge_number(*_: Any) -> Metrics:
    """Returns Pearson's and Spearman's correlation."""
    return lambda prediction: regression_metrics(logits_of(prediction), np.asarray(prediction.label_ids))


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
    judge_class,
    problem_type="single_label_classification",
)
SEVERAL = Task(
    "multi-label-classification",
    "text-classification",
    "f1",
    encode_several,
    judge_several,
    recognize=_several,
    problem_type="multi_label_classification",
)
REGRESSION = Task(
    "regression",
    "text-classification",
    "spearman",
    encode_text,
    judge_number,
    recognize=_numbers,
    problem_type="regression",
    classes=False,
)
