"""Retrieval: documents of a corpus that answer queries, found by the embeddings of both.

The metrics are those of sentence-transformers (the extra "embeddings"). With documents by the first of several models,
as in an index that stays while the queries are embedded by a smaller model, they are asymmetric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_efficient.data.config import FILE_FORMATS, file_format
from hf_efficient.data.files import DataFile
from hf_efficient.data.label_values import parse_number
from hf_efficient.data.reader import read_files
from hf_efficient.errors import UserError

NDCG = "ndcg@10"
# Names of columns in the files, those of the BEIR benchmarks first.
ID_COLUMNS = ("_id", "id", "query_id", "corpus_id", "doc_id", "qid", "pid")
TEXT_COLUMNS = ("text", "query", "document", "passage", "content")
QUERY_COLUMNS = ("query-id", "query_id", "qid", "query")
DOCUMENT_COLUMNS = ("corpus-id", "corpus_id", "doc_id", "pid", "document")
SCORE_COLUMNS = ("score", "relevance", "label")
TITLE = "title"


@dataclass(frozen=True)
class RetrievalData:
    """Queries and documents by their ids, and for each query the ids of the documents that answer it."""

    queries: Mapping[str, str]
    corpus: Mapping[str, str]
    relevant: Mapping[str, set[str]]


def read_retrieval_data(queries_file: str, corpus_file: str, relevance_file: str) -> RetrievalData:
    """Return what the files hold: csv, tsv, jsonl or parquet, with the columns of the BEIR benchmarks.

    Queries and documents have an id and a text, documents perhaps a title; the third file has the ids of a query and a
    document in each row, and perhaps a score, 0 if the document does not answer the query.

    Raises UserError if a file cannot be read, lacks a column, or names ids that the others do not have.
    """
    queries, corpus = _read_texts(queries_file, "queries_file"), _read_texts(corpus_file, "corpus_file")
    file = DataFile(Path(relevance_file).expanduser(), "relevance_file")
    rows = _read(file)
    names = [_find(file, rows.column_names, each) for each in (QUERY_COLUMNS, DOCUMENT_COLUMNS)]
    score = next((name for name in SCORE_COLUMNS if name in rows.column_names), None)
    relevant: dict[str, set[str]] = {}
    for row in rows:
        if score is None or (parse_number(row[score]) or 0) > 0:
            query, document = (str(row[name]) for name in names)
            if query in queries and document in corpus:
                relevant.setdefault(query, set()).add(document)
    if not relevant:
        raise file.error("none of its rows has the ids of a query and a document: give the files of one dataset")
    return RetrievalData({key: queries[key] for key in relevant}, corpus, relevant)


def evaluate_retrieval(name: str, first_name: str, data: RetrievalData, trust_remote_code: bool) -> dict[str, float]:
    """Return the metrics of the embedder `name`, and where it is not the first model, those with its documents.

    Raises UserError if sentence-transformers is not installed.
    """
    if find_spec("sentence_transformers") is None:
        raise UserError("retrieval needs sentence-transformers: pip install 'hf_efficient[embeddings]'")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import cos_sim

    evaluator = InformationRetrievalEvaluator(
        dict(data.queries),
        dict(data.corpus),
        dict(data.relevant),
        precision_recall_at_k=[100],
        accuracy_at_k=[1],
        score_functions={"cosine": cos_sim},
        write_csv=False,
    )
    model = SentenceTransformer(name, trust_remote_code=trust_remote_code)
    metrics = _select(evaluator(model))
    if name == first_name:
        return metrics
    documents_by = SentenceTransformer(first_name, trust_remote_code=trust_remote_code)
    if len(documents_by.encode("a text")) != len(model.encode("a text")):
        return metrics  # embeddings of different sizes cannot be compared
    mixed = _select(evaluator(model, corpus_model=documents_by))
    return {**metrics, f"{NDCG}, documents by the first": mixed[NDCG]}


def _select(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return those of the metrics that are reported."""
    return {name: float(scores[f"cosine_{name}"]) for name in (NDCG, "mrr@10", "recall@100")}


def _read_texts(path: str, flag: str) -> dict[str, str]:
    file = DataFile(Path(path).expanduser(), flag)
    rows = _read(file)
    key, text = (_find(file, rows.column_names, names) for names in (ID_COLUMNS, TEXT_COLUMNS))
    titles = rows[TITLE] if TITLE in rows.column_names else [None] * len(rows)
    texts = (" ".join(filter(None, pair)) for pair in zip(titles, rows[text], strict=True))
    return {str(each): value for each, value in zip(rows[key], texts, strict=True)}


def _read(file: DataFile) -> Any:
    if not file.path.is_file() or file_format(file.path) is None:
        raise file.error(f"there is no such file, or its suffix is unknown: give one of {', '.join(FILE_FORMATS)}")
    return read_files({"rows": [file]})["rows"]


def _find(file: DataFile, names: Sequence[str], known: Sequence[str]) -> str:
    found = next((name for name in known if name in names), None)
    if found is None:
        raise file.error(f"it has the columns {', '.join(names)}, and none of {', '.join(known)}")
    return found
