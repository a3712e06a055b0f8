"""nDCG and MRR of the documents of each query."""

import numpy as np
import pytest

from hf_efficient.measurement.ranking import judged_queries, query_scores, ranking_metrics
from hf_efficient.measurement.row_metrics import ranking_row_metrics


def rows(queries=6, documents=13, seed=0):
    """Return scores, binary labels with one to three relevant documents, and the queries, in a random order."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate(
        [rng.permutation([1] * (1 + q % 3) + [0] * (documents - 1 - q % 3)) for q in range(queries)]
    )
    order = rng.permutation(len(labels))
    scores = rng.normal(size=(len(labels), 1)).astype(np.float32)
    return scores[order], labels[order, None], np.repeat(np.arange(queries), documents)[order]


def test_same_as_the_evaluator_of_sentence_transformers():
    evaluation = pytest.importorskip("sentence_transformers.cross_encoder.evaluation")
    evaluator = evaluation.CrossEncoderRerankingEvaluator([], at_k=10)
    scores, labels, queries = rows()
    expected = []
    for query in range(6):
        mrr, ndcg, _ = evaluator.compute_metrics(labels[queries == query, 0], scores[queries == query, 0])
        expected.append((ndcg, mrr))
    metrics = ranking_metrics(scores, labels, queries)
    assert metrics == pytest.approx(dict(zip(("ndcg@10", "mrr@10"), np.mean(expected, axis=0), strict=True)))


def test_a_right_order_scores_one_and_a_constant_model_gains_nothing_from_the_order_of_the_rows():
    _, labels, queries = rows()
    assert ranking_metrics(labels.astype(float), labels, queries) == {"ndcg@10": 1.0, "mrr@10": 1.0}
    # One relevant document among thirteen, first in the file: it may be on any rank.
    scores = query_scores(np.zeros((13, 1)), np.array([1] + [0] * 12), np.zeros(13, dtype=int))
    assert scores["mrr@10"] == [0.0]
    assert scores["ndcg@10"][0] < 0.5


def test_queries_without_a_choice_are_left_out():
    labels, queries = np.array([1, 0, 1, 1, 0, 2]), np.array([5, 5, 7, 7, 8, 9])
    assert [query.tolist() for query in judged_queries(labels, queries)] == [[0, 1]]


def test_intervals_draw_whole_queries():
    data = rows()
    by_row, metrics = ranking_row_metrics(*data), ranking_metrics(*data)
    assert {name: metric.value() for name, metric in by_row.items()} == pytest.approx(metrics)
    assert {(metric.rows, metric.unit) for metric in by_row.values()} == {(6, "queries")}
    weights = np.array([[2, 0, 0, 0, 0, 4.0]])
    scores = query_scores(*data)["mrr@10"]
    assert by_row["mrr@10"].statistic(weights)[0] == pytest.approx((2 * scores[0] + 4 * scores[5]) / 6)
