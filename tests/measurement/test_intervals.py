import time
from dataclasses import replace

import numpy as np
import pytest
from transformers import EvalPrediction

from hf_efficient.measurement.intervals import Interval, metrics_by_row, paired_interval, retained_intervals
from hf_efficient.measurement.row_metrics import classification_row_metrics, regression_row_metrics
from hf_efficient.tasks.classification import classification_compute_metrics


def results(is_correct):
    """Return the results of a classifier that is right on these rows."""
    labels = np.zeros(len(is_correct), dtype=int)
    logits = np.stack([np.where(is_correct, 1.0, -1.0), np.zeros(len(labels))], axis=-1)
    metrics = classification_row_metrics(logits, labels)
    return {"accuracy": metrics["accuracy"]}


def random_rows(rows, share, seed):
    return np.random.default_rng(seed).random(rows) < share


def test_equal_models_keep_everything_exactly():
    rows = random_rows(500, 0.9, 0)
    interval = retained_intervals(results(rows), results(rows))["accuracy"]
    assert (interval.low, interval.high, interval.rows, interval.level) == (1.0, 1.0, 500, 0.95)
    assert interval.method == "paired bootstrap, 1000 resamples, percentiles"


def test_width_is_that_of_the_rows_on_which_the_models_differ():
    teacher = random_rows(2000, 0.9, 0)
    student = teacher.copy()
    flipped = np.random.default_rng(1).choice(2000, 100, replace=False)
    student[flipped] = ~student[flipped]
    interval = retained_intervals(results(student), results(teacher))["accuracy"]
    difference = student.astype(float) - teacher
    expected = 1.96 * difference.std() / np.sqrt(2000) / teacher.mean()
    assert (interval.high - interval.low) / 2 == pytest.approx(expected, rel=0.1)
    assert interval.low < student.mean() / teacher.mean() < interval.high
    unpaired = retained_intervals(results(np.random.default_rng(2).permutation(student)), results(teacher))
    assert unpaired["accuracy"].high - unpaired["accuracy"].low > 1.5 * (interval.high - interval.low)


def test_nineteen_of_twenty_intervals_hold_the_true_value():
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        teacher = rng.random(300) < 0.9
        student = np.where(rng.random(300) < 0.1, rng.random(300) < 0.5, teacher)
        interval = retained_intervals(results(student), results(teacher))["accuracy"]
        held += interval.low <= (0.9 * 0.9 + 0.1 * 0.5) / 0.9 <= interval.high
    assert 52 <= held <= 60


def test_few_rows_cannot_tell_one_point():
    few, many = (
        retained_intervals(results(random_rows(rows, 0.89, 0)), results(random_rows(rows, 0.9, 1)))["accuracy"]
        for rows in (100, 20_000)
    )
    assert not few.can_tell_one_point
    assert many.can_tell_one_point
    assert replace(few, low=0.985, high=1.0).can_tell_one_point


def test_a_metric_that_is_no_share_has_no_interval():
    references = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    bad = regression_row_metrics(-references[:, None], references)
    good = regression_row_metrics(references[:, None], references)
    assert retained_intervals(bad, good) == {}
    assert retained_intervals(good, {}) == {}
    assert retained_intervals(results(random_rows(5, 0.5, 0)), results(random_rows(6, 0.5, 0))) == {}


def test_metrics_that_are_computed_in_another_way_have_no_interval():
    logits = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    prediction = EvalPrediction(logits, np.zeros(4, dtype=int))
    assert set(metrics_by_row(lambda _: {}, prediction, {"accuracy": 0.75, "f1": 0.1})) == {"accuracy"}
    assert set(metrics_by_row(classification_compute_metrics(), prediction, {"accuracy": 0.75})) == {"accuracy"}
    assert metrics_by_row(lambda _: {}, prediction, {"precision": 0.75}) == {}
    assert metrics_by_row(lambda _: {}, EvalPrediction(logits[:, :1], np.zeros(4)), {"accuracy": 0.75}) == {}


def test_statistic_that_is_not_finite_has_no_interval():
    assert paired_interval(lambda weights: np.where(weights[:, 0] > 0, 1.0, np.nan), 3) is None


@pytest.mark.filterwarnings("error")
def test_many_rows_are_resampled_in_bounded_time():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 77, 10_000)
    logits = rng.normal(size=(10_000, 77)) + 4 * np.eye(77)[labels]
    model = classification_row_metrics(logits, labels)
    start = time.perf_counter()
    intervals = retained_intervals(model, model)
    assert intervals["accuracy"] == Interval(1.0, 1.0, 0.95, 10_000, "paired bootstrap, 1000 resamples, percentiles")
    assert time.perf_counter() - start < 20  # about a second
