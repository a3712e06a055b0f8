"""Ranking of documents for a query by a reranker (cross-encoder): a model with one output that reads both."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from hf_efficient.data.config import DataConfig
from hf_efficient.data.labels import check_numbers, label_number
from hf_efficient.data.rows import describe_row
from hf_efficient.errors import UserError
from hf_efficient.measurement.ranking import MAX_RANK, judged_queries, ranking_metrics
from hf_efficient.measurement.row_metrics import ranking_row_metrics
from hf_efficient.models.inputs import QUERY
from hf_efficient.tasks.classification import encode_number
from hf_efficient.tasks.task import Batch, RowEncoder, Task, TaskMetrics, check_row_texts, read_logits

QUERY_COLUMNS = (
    ("query", "document"),
    ("query", "passage"),
    ("query", "text"),
    ("query", "answer"),
    ("question", "passage"),
    ("question", "document"),
)
RELEVANCE_COLUMNS = ("label", "labels", "relevance", "score", "target")


def encode_document(batch: Batch, encoder: RowEncoder) -> dict[str, Any]:
    """Return the tokens of a query and a document, the label as a number, and a number for the text of the query."""
    queries = [crc32(query.encode()) for query in batch[encoder.columns.texts[0]]]
    return {**encode_number(batch, encoder), QUERY: queries}


def ranking_compute_metrics(
    rows: Dataset, encoded: Dataset, encoder: RowEncoder, config: PreTrainedConfig
) -> TaskMetrics:
    """Return the function that computes nDCG@10 and MRR@10 of the documents of each query."""
    queries = _query_numbers(rows, encoder)
    return TaskMetrics(lambda prediction: (*read_logits(prediction), queries), ranking_metrics, ranking_row_metrics)


def ranking_settings(rows: Dataset, encoder: RowEncoder) -> dict[str, str]:
    """Return over how many queries and documents the metrics are a mean."""
    labels = np.array([label_number(value) for value in rows[str(encoder.columns.label)][:]], dtype=np.float64)
    judged = list(judged_queries(labels, _query_numbers(rows, encoder)))
    documents = sum(len(query) for query in judged) / len(judged)
    return {
        "ranking": f"first {MAX_RANK} documents of {len(judged)} queries with {documents:.1f} documents on average; "
        "queries whose documents all have the same label are left out"
    }


def check_ranking_rows(split: Dataset, name: str, encoder: RowEncoder) -> None:
    """Raise UserError if a label is not a number of at least 0, or no query has documents of different labels."""
    check_row_texts(split, name, encoder)
    column = str(encoder.columns.label)
    if column not in split.column_names:
        return
    check_numbers(DatasetDict({name: split}), column)
    labels = np.array([label_number(value) for value in split[column][:]], dtype=np.float64)
    if name != "evaluation":
        return
    negative = np.flatnonzero(labels < 0)
    if len(negative):
        raise UserError(
            f"{describe_row(split, int(negative[0]), name)} has {labels[negative[0]]:g} in column {column!r}: labels "
            "of ranking say how relevant a document is, from 0 on"
        )
    if next(judged_queries(labels, _query_numbers(split, encoder)), None) is None:
        raise UserError(
            f"no query in column {encoder.columns.texts[0]!r} of the evaluation data has documents with different "
            f"labels in column {column!r}, so there is nothing to rank: give a row for each document of a query, or "
            "--task regression for pairs of texts with a number"
        )


def _query_numbers(rows: Dataset, encoder: RowEncoder) -> NDArray[np.int64]:
    """Return the number of the query of each row; equal texts are the same query."""
    numbers: dict[str, int] = {}
    queries = [numbers.setdefault(query, len(numbers)) for query in rows[encoder.columns.texts[0]][:]]
    return np.array(queries, dtype=np.int64)


def _has_queries(splits: DatasetDict, data: DataConfig) -> bool:
    """Whether the columns of the data are queries, documents and numbers."""
    evaluation = splits["evaluation"]
    names = evaluation.column_names
    label = next((name for name in (data.label_column, *RELEVANCE_COLUMNS) if name in names), None)
    if label is None or not any(set(pair) <= set(names) for pair in QUERY_COLUMNS):
        return False
    return all(label_number(value) is not None for value in evaluation[label][:])


RANKING = Task(
    "text-ranking",
    "text-ranking",
    f"ndcg@{MAX_RANK}",
    encode_document,
    ranking_compute_metrics,
    matches=_has_queries,
    text_columns=QUERY_COLUMNS,
    label_columns=RELEVANCE_COLUMNS,
    problem_type="regression",
    metric_settings=ranking_settings,
    check_rows=check_ranking_rows,
    has_classes=False,
)
