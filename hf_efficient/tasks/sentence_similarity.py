"""Sentence embeddings: texts whose embeddings are near if they mean the same.

A row has one text or a pair of texts, each of which is tokenized alone: its token ids are (texts, tokens), and a batch
holds all texts of its rows, (rows * texts, tokens). Any texts are training data, since a student learns the embeddings
of its teacher; the evaluation data should be pairs with scores. A score that is not known is NaN.

Training rows may also have a column "positive", a text that means the same as the first, and after it "negative", one
that does not. Their labels are (rows, texts - 1): 1 for a positive, 0 for a negative text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from hf_efficient.data.columns import Columns
from hf_efficient.data.config import DataConfig
from hf_efficient.data.label_checks import check_correlation
from hf_efficient.data.labels import check_numbers, label_number
from hf_efficient.data.texts import check_texts
from hf_efficient.errors import UserError
from hf_efficient.measurement.embeddings import sentence_similarity_metrics, sentence_similarity_row_metrics
from hf_efficient.models.sentence_files import AutoSentenceEmbedder, has_sentence_modules
from hf_efficient.models.sentence_modules import find_sentence_modules
from hf_efficient.tasks.task import LABEL_COLUMNS, TEXT_COLUMNS, Batch, RowEncoder, Task, TaskMetrics, read_logits

POSITIVE = "positive"
TRIPLET_COLUMNS = (("anchor", POSITIVE, "negative"), ("query", POSITIVE, "negative"))
PAIR_COLUMNS = (*(names for names in TEXT_COLUMNS if len(names) == 2), ("anchor", POSITIVE), ("query", POSITIVE))
SINGLE_COLUMNS = (*(names for names in TEXT_COLUMNS if len(names) == 1), ("texts",), ("sentences",), ("query",))
SCORE_COLUMNS = (*LABEL_COLUMNS, "similarity_score", "relatedness_score", "similarity")
LENGTH = "length"  # by which `Trainer` puts texts of similar length into one batch
NO_SCORE = float("nan")


def find_embedding_columns(splits: DatasetDict, data: DataConfig) -> Columns:
    """Return the columns of the texts of all splits, and that of the scores of pairs in the evaluation data.

    The training data may have other columns of texts than the evaluation data. Raises UserError if a split has none.
    """
    for flag in ("text_column", "text_pair_column", "label_column"):
        column = getattr(data, flag)
        if column and not any(column in split.column_names for split in splits.values()):
            names = ", ".join(splits["evaluation"].column_names)
            raise UserError(f"{flag}={column!r} is not a column of the data, which has {names}")
    texts = {name: _find_texts(split.column_names, data) for name, split in splits.items()}
    names, is_pair = splits["evaluation"].column_names, len(texts["evaluation"]) == 2
    label = data.label_column or next((name for name in SCORE_COLUMNS if is_pair and name in names), None)
    return Columns(tuple(dict.fromkeys(each for found in texts.values() for each in found)), label)


def _find_texts(names: Sequence[str], data: DataConfig) -> tuple[str, ...]:
    named = tuple(each for each in (data.text_column, data.text_pair_column) if each and each in names)
    common = (each for each in (*TRIPLET_COLUMNS, *PAIR_COLUMNS, *SINGLE_COLUMNS) if set(each) <= set(names))
    found = named or next(common, tuple(names) if len(names) == 1 else ())
    if not found:
        raise UserError(
            f"cannot tell which of the columns {', '.join(names)} is the text column: give --text_column (and "
            "--text_pair_column)"
        )
    return found


def text_columns_of(names: Sequence[str], columns: Columns) -> list[str]:
    """Return those columns of texts that a split with these columns has."""
    return [name for name in columns.texts if name in names]


def has_positives(columns: Sequence[str]) -> bool:
    """Whether the columns of texts of a split are texts, positives and perhaps negatives."""
    return len(columns) > 1 and columns[1] == POSITIVE


def encode_texts(batch: Batch, encoder: RowEncoder) -> dict[str, Any]:
    """Return the tokens of the texts of each row, (rows, texts, tokens), and its labels if there are any.

    They are the score of a pair, or which of the other texts is a positive of the first.
    """
    prefix = encoder.data.source_prefix or ""
    columns = text_columns_of(list(batch), encoder.columns)
    parts = [encoder.tokenize([prefix + text for text in batch[name]]) for name in columns]
    encoded: dict[str, Any] = {
        name: [list(texts) for texts in zip(*(part[name] for part in parts), strict=True)] for name in parts[0]
    }
    encoded[LENGTH] = [max(map(len, texts)) for texts in encoded["input_ids"]]
    scores = encoder.get_labels(batch)
    if scores is not None and len(columns) == 2:
        encoded["labels"] = [_scale(label_number(score), encoder.score_range) for score in scores]
    elif has_positives(columns):
        encoded["labels"] = [[1.0, 0.0][: len(columns) - 1] for _ in encoded[LENGTH]]
    return encoded


def _scale(score: Any, limits: tuple[float, float]) -> float:
    return (float(score) - limits[0]) / (limits[1] - limits[0])


def fit_scores(splits: DatasetDict, encoder: RowEncoder) -> RowEncoder:
    """Return the encoder with the range of the scores, which are scaled to that of cosines: scores from 0 to 5 are."""
    column = encoder.columns.label
    labelled = [split for split in splits.values() if column in split.column_names]
    if not labelled:
        return encoder
    scores = [float(label_number(score) or 0.0) for split in labelled for score in split[column][:]]
    lowest, highest = min(scores), max(scores)
    is_cosine = lowest >= -1 and highest <= 1
    return encoder if is_cosine else dataclasses.replace(encoder, score_range=(min(lowest, 0.0), highest))


def check_embedding_rows(split: Dataset, name: str, encoder: RowEncoder) -> None:
    """Raise UserError if a text is missing, or the score of a pair is no number."""
    columns, label = text_columns_of(split.column_names, encoder.columns), encoder.columns.label
    if len(columns) > 2 and not (has_positives(columns) and len(columns) == 3):
        raise UserError(
            f"the {name} data has the text columns {', '.join(columns)}, and a row is one text, a pair, or "
            "query, positive and negative: give --text_column (and --text_pair_column)"
        )
    check_texts(split, name, columns)
    if label in split.column_names and len(columns) == 2:
        check_numbers(DatasetDict({name: split}), str(label))
        if name == "evaluation":
            check_correlation(split, str(label))


class TextsCollator:
    """Pads all texts of the rows of a batch, (rows * texts, tokens); "labels" has those of the rows, if known."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, examples: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch."""
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in examples[0]]
        texts = [
            {name: example[name][index] for name in names}
            for example in examples
            for index in range(len(example["input_ids"]))
        ]
        batch = dict(self._pad(texts))
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples], dtype=torch.float32)
        return batch


def group_texts(embeddings: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return embeddings (rows * texts, size) as (rows, texts, size)."""
    embeddings = embeddings[0] if isinstance(embeddings, tuple) else embeddings
    return embeddings.unflatten(0, (len(labels), -1))


def add_missing_scores(rows: Dataset, tokenizer: PreTrainedTokenizerBase, seed: int) -> Dataset:
    """Return tokenized evaluation rows with scores that are not known, if they have none."""
    if "labels" in rows.column_names:
        if not isinstance(rows[0]["labels"], list):
            return rows
        rows = rows.remove_columns("labels")  # positives have no score
    return rows.add_column("labels", [NO_SCORE] * len(rows))


def embedding_compute_metrics(*_: Any) -> TaskMetrics:
    """Return the function that computes the correlations of similarities with scores."""

    def read(prediction: EvalPrediction) -> tuple[Any, np.ndarray]:
        embeddings, scores = read_logits(prediction)
        return np.asarray(embeddings, dtype=np.float32), scores

    return TaskMetrics(read, sentence_similarity_metrics, sentence_similarity_row_metrics)


def adapt_data(data: DataConfig, model: PreTrainedModel) -> DataConfig:
    """Return `data` with the length at which the embedder cuts texts, and with its default prompt as their prefix."""
    modules = find_sentence_modules(model)
    if modules is None:
        return data
    length = min(data.max_length, modules.max_seq_length or data.max_length)
    prefix = modules.prompt if data.source_prefix is None else data.source_prefix
    return dataclasses.replace(data, max_length=length, source_prefix=prefix)


SENTENCE_SIMILARITY = Task(
    "sentence-similarity",
    "sentence-similarity",
    "spearman",
    encode_texts,
    embedding_compute_metrics,
    find_columns=find_embedding_columns,
    collator=TextsCollator,
    reduce_logits=group_texts,
    check_rows=check_embedding_rows,
    has_optional_labels=True,
    has_classes=False,
    loader=AutoSentenceEmbedder,
    is_trained=has_sentence_modules,
    fit_encoder=fit_scores,
    adapt_data=adapt_data,
    complete_evaluation=add_missing_scores,
)
