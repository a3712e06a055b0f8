"""Metrics as `evaluate` knows them, computed by scikit-learn and scipy, so that none is downloaded."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score


class _LocalMetric(evaluate.Metric):
    value_type = "int64"

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions and references, one number each for every example",
            features=datasets.Features(
                {"predictions": datasets.Value(self.value_type), "references": datasets.Value(self.value_type)}
            ),
        )


class Accuracy(_LocalMetric):
    """The fraction of predictions that equal their reference."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(_LocalMetric):
    """The F1 score of every class, averaged with equal weight."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"f1": float(f1_score(references, predictions, average="macro"))}


class Pearson(_LocalMetric):
    """Pearson's correlation of predictions and references; not a number where one of them is constant."""

    value_type = "float64"

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"pearson": float(pearsonr(references, predictions).statistic)}


class Spearman(_LocalMetric):
    """Spearman's rank correlation of predictions and references; not a number where one of them is constant."""

    value_type = "float64"

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"spearman": float(spearmanr(references, predictions).statistic)}


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns accuracy and macro F1 of `logits` (examples, classes) against `labels` (examples,)."""
    metrics = evaluate.combine([Accuracy(), MacroF1()])
    result: dict[str, float] = metrics.compute(predictions=logits.argmax(-1), references=labels)
    return result


def guessing_metrics(judged: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns accuracy and perplexity of guesses at masked tokens.

    | argument | shape | meaning |
    | --- | --- | --- |
    | judged | (rows, tokens, 2) | minus the log probability of the token that was there, and whether it was guessed |
    | labels | (rows, tokens) | the tokens that were there, -100 where none was masked |
    """
    lost, right = judged[labels != -100].astype(np.float64).T
    return {"accuracy": float(right.mean()), "perplexity": float(np.exp(lost.mean()))}


def regression_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns Pearson's and Spearman's correlation of `logits` (examples, 1) with `labels` (examples,)."""
    metrics = evaluate.combine([Pearson(), Spearman()])
    result: dict[str, float] = metrics.compute(predictions=logits.squeeze(-1), references=labels)
    return result
