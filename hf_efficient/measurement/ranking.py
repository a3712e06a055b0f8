"""How well the documents of queries are ranked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import ndcg_score

MAX_RANK = 10


def ranking_metrics(scores: NDArray[Any], labels: NDArray[Any], queries: NDArray[Any]) -> dict[str, float]:
    """Return nDCG@10 and MRR@10, means over the queries; see `query_scores`."""
    return {name: float(np.mean(values)) for name, values in query_scores(scores, labels, queries).items()}


def query_scores(scores: NDArray[Any], labels: NDArray[Any], queries: NDArray[Any]) -> dict[str, list[float]]:
    """Return nDCG@10 and the reciprocal rank, 0 beyond 10, of each query whose documents have different labels.

    | argument | shape | meaning |
    | --- | --- | --- |
    | scores | (rows, 1) | what a model gives a document for its query; the highest comes first |
    | labels | (rows, 1) or (rows,) | how relevant the document is, from 0 on |
    | queries | (rows,) | the number of the query |

    The gain of nDCG is the label, and documents with equal scores share their gains. The reciprocal rank is that of
    the first document with the highest label, behind all others with the same score.
    """
    flat_scores, flat_labels = (np.asarray(values, dtype=np.float64).reshape(-1) for values in (scores, labels))
    ndcg, reciprocal_ranks = [], []
    for rows in judged_queries(flat_labels, queries):
        found, relevance = flat_scores[rows], flat_labels[rows]
        ndcg.append(float(ndcg_score([relevance], [found], k=MAX_RANK)))
        is_best = relevance == relevance.max()
        rank = 1 + int((found[~is_best] >= found[is_best].max()).sum())
        reciprocal_ranks.append(1 / rank if rank <= MAX_RANK else 0.0)
    return {f"ndcg@{MAX_RANK}": ndcg, f"mrr@{MAX_RANK}": reciprocal_ranks}


def judged_queries(labels: NDArray[Any], queries: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the rows of each query whose documents have different labels; of the others every order is right."""
    order = np.argsort(queries, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(queries[order])) + 1):
        if len(np.unique(labels[rows])) > 1:
            yield rows
