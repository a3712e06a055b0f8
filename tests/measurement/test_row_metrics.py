"""A metric of resampled rows is the metric of a copy of the data with these rows."""

import numpy as np
import pytest

from hf_efficient.measurement.metrics import (
    classification_metrics,
    masked_lm_metrics,
    multi_label_metrics,
    question_answering_metrics,
    regression_metrics,
    summary_metrics,
    token_classification_metrics,
    translation_metrics,
)
from hf_efficient.measurement.row_metrics import (
    classification_row_metrics,
    masked_lm_row_metrics,
    multi_label_row_metrics,
    question_answering_row_metrics,
    regression_row_metrics,
    summary_row_metrics,
    token_classification_row_metrics,
    translation_row_metrics,
)

ROWS = 12
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
WORDS = ["the", "old", "cat", "sat", "on", "a", "red", "mat", "today"]


def pick(values, indices):
    return values[indices] if isinstance(values, np.ndarray) else [values[index] for index in indices]


def assert_same_as_copies(compute, compute_by_row, predictions, references, *settings):
    """Check all rows, and three draws with replacement at once."""
    rng = np.random.default_rng(0)
    draws = [np.arange(ROWS), *(rng.integers(0, ROWS, ROWS) for _ in range(3))]
    weights = np.stack([np.bincount(draw, minlength=ROWS) for draw in draws]).astype(float)
    by_row = compute_by_row(predictions, references, *settings)
    values = {name: metric.statistic(weights) for name, metric in by_row.items()}
    for index, draw in enumerate(draws):
        expected = compute(pick(predictions, draw), pick(references, draw), *settings)
        assert {name: value[index] for name, value in values.items()} == pytest.approx(
            {name: expected[name] for name in values}
        )
    return set(values)


def test_classification():
    rng = np.random.default_rng(1)
    names = assert_same_as_copies(
        classification_metrics, classification_row_metrics, rng.normal(size=(ROWS, 5)), rng.integers(0, 4, ROWS)
    )
    assert names == {"accuracy", "f1"}


def test_multi_label():
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(ROWS, 4)), rng.integers(0, 2, (ROWS, 4)).astype(float)
    labels[:2] = logits[:2] > 0
    labels[:, 3] = 0
    logits[:, 3] = -1  # a class that does not occur
    names = assert_same_as_copies(multi_label_metrics, multi_label_row_metrics, logits, labels)
    assert names == {"f1", "f1_macro", "accuracy"}


def test_regression_with_equal_values():
    rng = np.random.default_rng(3)
    predictions, references = rng.normal(size=(ROWS, 1)).round(0), rng.integers(0, 5, ROWS).astype(float)
    names = assert_same_as_copies(regression_metrics, regression_row_metrics, predictions, references)
    assert names == {"pearson", "spearman"}


def test_token_classification():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 4, (ROWS, 6))
    labels[:, 0] = labels[3:, 5] = -100
    logits = rng.normal(size=(ROWS, 6, 4)) + 2 * np.eye(4)[labels.clip(0)]
    names = assert_same_as_copies(token_classification_metrics, token_classification_row_metrics, logits, labels, TAGS)
    assert names == {"f1", "precision", "recall", "accuracy"}


def test_masked_tokens():
    rng = np.random.default_rng(5)
    labels = np.where(rng.random((ROWS, 6)) < 0.4, 7, -100)
    labels[:, 0] = 7
    scores = np.stack([rng.random((ROWS, 6)), rng.integers(0, 2, (ROWS, 6))], axis=-1)
    assert assert_same_as_copies(masked_lm_metrics, masked_lm_row_metrics, scores, labels) == {"accuracy"}


def test_answers():
    rng = np.random.default_rng(6)
    predictions = [" ".join(rng.choice(WORDS, 3)) for _ in range(ROWS)]
    references = [[" ".join(rng.choice(WORDS, 2)), predictions[index][:7]] for index in range(ROWS)]
    names = assert_same_as_copies(question_answering_metrics, question_answering_row_metrics, predictions, references)
    assert names == {"f1", "exact_match"}


def test_generated_texts():
    rng = np.random.default_rng(7)
    references = [" ".join(rng.choice(WORDS, 8)) for _ in range(ROWS)]
    predictions = [text.rpartition(" ")[0] + " here" for text in references]
    predictions[0] = "short"
    assert assert_same_as_copies(translation_metrics, translation_row_metrics, predictions, references) == {
        "sacrebleu"
    }
    names = assert_same_as_copies(summary_metrics, summary_row_metrics, predictions, references)
    assert names == {"rouge1", "rouge2", "rougeL"}
