"""The metrics of each task as functions of how often each row counts, for bootstrap intervals.

A bootstrap draws rows with replacement, thousands of times. Here a metric is computed for all draws at once from
numbers of each row, such as the entities found in it, whose sums over the rows determine the metric.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from hf_efficient.measurement.metrics import (
    answer_scores,
    bleu_tokenizer,
    iob_rows,
    summary_scores,
)
from hf_efficient.measurement.ranking import query_scores

Array: TypeAlias = NDArray[Any]
# From weights (draws, rows), how often each row counts in each draw, to the statistic of each draw (draws,).
Statistic: TypeAlias = Callable[[Array], Array]


@dataclass(frozen=True)
class RowMetric:
    """A metric on so many rows, as a function of how often each of them counts; `unit` says what a row is."""

    rows: int
    statistic: Statistic
    unit: str = "rows"

    def value(self) -> float:
        """Return the metric on the data: every row counts once."""
        return float(self.statistic(np.ones((1, self.rows)))[0])


def classification_row_metrics(logits: Array, labels: Array) -> dict[str, RowMetric]:
    """Return accuracy and macro F1 of `logits` (examples, classes) against `labels` (examples,)."""
    predictions = logits.argmax(-1)
    shape = (len(labels), max(logits.shape[-1], int(labels.max(initial=0)) + 1))
    statistics = {
        "accuracy": _mean_of(predictions == labels),
        "f1": _macro_f1(_one_hot(predictions, shape), _one_hot(labels, shape), counts_empty_classes=False),
    }
    return _on_rows(len(labels), statistics)


def multi_label_row_metrics(logits: Array, labels: Array) -> dict[str, RowMetric]:
    """Return micro F1, macro F1 and exact-match accuracy of `logits` against `labels`, both (examples, classes)."""
    predictions, references = logits > 0, labels > 0
    found = (predictions & references).sum(-1)
    statistics = {
        "f1": _ratio_of(2 * found, predictions.sum(-1) + references.sum(-1)),
        "f1_macro": _macro_f1(csr_array(predictions), csr_array(references), counts_empty_classes=True),
        "accuracy": _mean_of((predictions == references).all(-1)),
    }
    return _on_rows(len(labels), statistics)


def regression_row_metrics(logits: Array, labels: Array) -> dict[str, RowMetric]:
    """Return Pearson and Spearman correlation of `logits` (examples, 1) with `labels` (examples,) or (examples, 1)."""
    predictions, references = (np.asarray(values, dtype=np.float64).reshape(-1) for values in (logits, labels))

    def pearson(weights: Array) -> Array:
        return _weighted_correlation(weights, predictions, references)

    def spearman(weights: Array) -> Array:
        return _weighted_correlation(
            weights, _weighted_ranks(weights, predictions), _weighted_ranks(weights, references)
        )

    return _on_rows(len(references), {"pearson": pearson, "spearman": spearman})


def ranking_row_metrics(scores: Array, labels: Array, queries: Array) -> dict[str, RowMetric]:
    """Return nDCG@10 and MRR@10; a row is a query with all its documents. See `query_scores`."""
    values = query_scores(scores, labels, queries)
    return {name: RowMetric(len(each), _mean_of(each), "queries") for name, each in values.items()}


def masked_lm_row_metrics(scores: Array, labels: Array) -> dict[str, RowMetric]:
    """Return the accuracy of predictions of masked tokens; see `masked_lm_metrics`."""
    is_masked = labels != -100
    accuracy = _ratio_of((scores[..., 1] * is_masked).sum(-1), is_masked.sum(-1))
    return _on_rows(len(labels), {"accuracy": accuracy})


def token_classification_row_metrics(logits: Array, labels: Array, names: Sequence[str]) -> dict[str, RowMetric]:
    """Return precision, recall and F1 of complete spans, and accuracy of words; see `token_classification_metrics`."""
    from seqeval.metrics.sequence_labeling import get_entities

    counts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that are no tags of the IOB format
        for predicted, expected in zip(*iob_rows(logits, labels, names), strict=True):
            found, true = set(get_entities(predicted)), set(get_entities(expected))
            equal_words = sum(map(str.__eq__, predicted, expected))
            counts.append((len(found & true), len(found), len(true), equal_words, len(expected)))
    correct, found_count, true_count, words_correct, words = np.array(counts, dtype=np.float64).reshape(-1, 5).T
    statistics = {
        "f1": _ratio_of(2 * correct, found_count + true_count),
        "precision": _ratio_of(correct, found_count),
        "recall": _ratio_of(correct, true_count),
        "accuracy": _ratio_of(words_correct, words),
    }
    return _on_rows(len(labels), statistics)


def question_answering_row_metrics(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, RowMetric]:
    """Return F1 and exact match of `predictions`; see `question_answering_metrics`."""
    scores = answer_scores(predictions, references)
    return _on_rows(len(references), {name: _mean_of(values) for name, values in scores.items()})


def summary_row_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, RowMetric]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L (0 to 100) of `predictions`; see `summary_metrics`."""
    scores = summary_scores(predictions, references)
    return _on_rows(len(references), {name: _mean_of(values) for name, values in scores.items()})


def translation_row_metrics(
    predictions: Sequence[str], references: Sequence[str], language: str | None = None
) -> dict[str, RowMetric]:
    """Return sacreBLEU (0 to 100) of `predictions`, from sacrebleu's counts of each sentence."""
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(tokenize=bleu_tokenizer(language, references), effective_order=True)  # of single sentences
    sentences = [
        bleu.sentence_score(text, [reference]) for text, reference in zip(predictions, references, strict=True)
    ]
    counts = np.array(
        [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in sentences], np.float64
    )

    def sacrebleu(weights: Array) -> Array:
        sums = np.rint(weights @ counts).astype(int)
        order = bleu.max_ngram_order
        scores = [
            BLEU.compute_bleu(list(row[:order]), list(row[order:-2]), row[-2], row[-1], smooth_method="exp").score
            for row in sums
        ]
        return np.array(scores)

    return _on_rows(len(references), {"sacrebleu": sacrebleu})


def _on_rows(rows: int, statistics: Mapping[str, Statistic]) -> dict[str, RowMetric]:
    return {name: RowMetric(rows, statistic) for name, statistic in statistics.items()}


def _mean_of(values: Any) -> Statistic:
    numbers = np.asarray(values, dtype=np.float64)
    return _ratio_of(numbers, np.ones(len(numbers)))


def _ratio_of(numerators: Array, denominators: Array) -> Statistic:
    """Return the ratio of the sums of two numbers of each row; 0 where the second is 0."""
    pairs = np.stack([numerators, denominators], axis=-1).astype(np.float64)

    def ratio(weights: Array) -> Array:
        return _divide(*(weights @ pairs).T)

    return ratio


def _macro_f1(predictions: csr_array, references: csr_array, counts_empty_classes: bool) -> Statistic:
    """Return the mean of the F1 scores of the classes of two one-hot matrices (rows, classes).

    `counts_empty_classes`: a class that is neither predicted nor labelled scores 0; otherwise it is left out.
    """
    found = predictions.multiply(references).astype(np.float64).T.tocsr()
    occurrences = (predictions.astype(np.float64) + references.astype(np.float64)).T.tocsr()

    def macro_f1(weights: Array) -> Array:
        counts = occurrences @ weights.T  # [classes, draws]
        scores = _divide(2 * (found @ weights.T), counts)
        return scores.mean(0) if counts_empty_classes else _divide(scores.sum(0), (counts > 0).sum(0))

    return macro_f1


def _one_hot(classes: Array, shape: tuple[int, int]) -> csr_array:
    rows = np.arange(len(classes))
    return csr_array((np.ones(len(classes), dtype=bool), (rows, classes)), shape=shape)


def _divide(numerators: Array, denominators: Array) -> Array:
    return np.divide(numerators, denominators, out=np.zeros_like(numerators, dtype=float), where=denominators != 0)


def _weighted_correlation(weights: Array, first: Array, second: Array) -> Array:
    """Return the Pearson correlation of (rows,) or (draws, rows) values under each row of weights; NaN if constant."""
    total = weights.sum(-1, keepdims=True)
    centred = [values - (weights * values).sum(-1, keepdims=True) / total for values in (first, second)]
    covariance, *variances = (
        (weights * left * right).sum(-1)
        for left, right in ((centred[0], centred[1]), (centred[0], centred[0]), (centred[1], centred[1]))
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation: Array = covariance / np.sqrt(variances[0] * variances[1])
    return correlation


def _weighted_ranks(weights: Array, values: Array) -> Array:
    """Return the rank (draws, rows) that each value has in each draw; equal values share the mean of their ranks."""
    _, groups = np.unique(values, return_inverse=True)
    members = csr_array((np.ones(len(values)), (groups, np.arange(len(values)))))  # [groups, rows]
    counts = (members @ weights.T).T  # [draws, groups]
    ranks: Array = (counts.cumsum(-1) - (counts - 1) / 2)[:, groups]
    return ranks
