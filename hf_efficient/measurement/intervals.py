"""How much of the teacher's metric a student keeps, with the interval that the number of evaluation rows allows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap

from hf_efficient.measurement.agreement import predicted_classes
from hf_efficient.measurement.row_metrics import Array, RowMetric, Statistic, classification_row_metrics

LEVEL = 0.95
MAX_RESAMPLES, MIN_RESAMPLES = 1000, 200
MAX_DRAWS = 20_000_000  # rows of all resamples: about a second
BLOCK_DRAWS = 2_000_000  # rows that are held in memory at once
TOLERANCE = 1e-6  # of a metric that is computed from its rows, relative
ONE_POINT = 0.01


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    | field | meaning |
    | --- | --- |
    | low, high | its ends, in the unit of the figure |
    | level | the probability that such an interval holds the true value, 0.95 |
    | rows | the number of evaluation rows |
    | method | how it was computed |
    | unit | what is counted as a row: rows, or queries with all their documents |
    """

    low: float
    high: float
    level: float
    rows: int
    method: str
    unit: str = "rows"

    @property
    def can_tell_one_point(self) -> bool:
        """Whether a difference of 0.01 is larger than half of the interval."""
        return (self.high - self.low) / 2 <= ONE_POINT


def retained_intervals(student: Mapping[str, RowMetric], teacher: Mapping[str, RowMetric]) -> dict[str, Interval]:
    """Return the interval of metric of the student / metric of the teacher, by metric.

    Both are judged on the same resampled rows (paired bootstrap, percentiles). A metric is missing if it is not known
    of both on the same number of rows, or if it is no share of the teacher's: one of the two is not positive in some
    resample.
    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    intervals = {
        name: paired_interval(_ratio(metric.statistic, teacher[name].statistic), metric.rows, unit=metric.unit)
        for name, metric in sorted(student.items())
        if name in teacher and metric.rows == teacher[name].rows > 1
    }
    return {name: interval for name, interval in intervals.items() if interval is not None}


def metrics_by_row(compute_metrics: Any, prediction: Any, values: Mapping[str, float]) -> dict[str, RowMetric]:
    """Return those metrics of a prediction that can be resampled; `values` are what `compute_metrics` computed.

    `compute_metrics` has a method `by_row`, as those of the tasks do; of others accuracy and macro F1 of logits are
    tried. A metric that has another value than `values` says is computed in another way, and left out.
    """
    if hasattr(compute_metrics, "by_row"):
        metrics = compute_metrics.by_row(prediction)
    elif predicted_classes(prediction.predictions, prediction.label_ids) is None or prediction.label_ids.ndim != 1:
        return {}
    else:
        metrics = classification_row_metrics(prediction.predictions, prediction.label_ids)
    return {
        name: metric
        for name, metric in metrics.items()
        if name in values and math.isclose(metric.value(), values[name], rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    }


def paired_interval(statistic: Statistic, rows: int, seed: int = 0, unit: str = "rows") -> Interval | None:
    """Return the interval of a statistic over resampled rows; None if it is NaN in one of them.

    `statistic` compares models on the same rows: it gets weights (draws, rows), how often each row was drawn.
    """

    def of_indices(indices: Array, axis: int = -1) -> Array:
        draws = indices.reshape(-1, rows)
        offsets = rows * np.arange(len(draws))[:, None]
        weights = np.bincount((draws + offsets).ravel(), minlength=draws.size).reshape(draws.shape)
        return statistic(weights.astype(np.float64)).reshape(indices.shape[:-1])

    resamples = max(MIN_RESAMPLES, min(MAX_RESAMPLES, MAX_DRAWS // rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # NaN, see below
        result = bootstrap(
            (np.arange(rows),),
            of_indices,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, BLOCK_DRAWS // rows),
            confidence_level=LEVEL,
            method="percentile",
            rng=seed,
        )
    if not np.isfinite(result.bootstrap_distribution).all():
        return None
    low, high = map(float, result.confidence_interval)
    return Interval(low, high, LEVEL, rows, f"paired bootstrap, {resamples} resamples, percentiles", unit)


def _ratio(student: Statistic, teacher: Statistic) -> Statistic:
    """Return the ratio of two metrics; NaN where it is no share."""

    def ratio(weights: Array) -> Array:
        value, reference = student(weights), teacher(weights)
        is_share = (value >= 0) & (reference > 0)
        return np.divide(value, reference, out=np.full(len(value), np.nan), where=is_share)

    return ratio
