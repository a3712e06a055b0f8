"""Extractive question answering: the answer is a span of a context that may be longer than the model's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import EvalPrediction, PreTrainedConfig
from transformers.utils import logging

from hf_efficient.data.config import DataConfig
from hf_efficient.data.rows import describe_row
from hf_efficient.errors import UserError
from hf_efficient.measurement.metrics import question_answering_metrics
from hf_efficient.measurement.row_metrics import question_answering_row_metrics
from hf_efficient.tasks.answers import read_answer
from hf_efficient.tasks.task import (
    EXAMPLE_INDEX,
    OFFSETS,
    Batch,
    RowEncoder,
    Task,
    TaskMetrics,
    check_row_texts,
)

logger = logging.get_logger(__name__)

STRIDE = 0.25  # overlap of neighbouring windows, as a fraction of the maximum length
NUM_BEST_TOKENS = 20
MAX_ANSWER_TOKENS = 30
NO_OFFSET = -1  # of tokens outside of the context


def encode_windows(batch: Batch, encoder: RowEncoder) -> dict[str, Any]:
    """Return overlapping windows of each context, each paired with its question, and the answer's tokens.

    A window without the complete answer has the positions 0, as a question without an answer has. `EXAMPLE_INDEX` is
    the row of each window, `OFFSETS` the characters of its tokens in the context.
    """
    question, context = encoder.columns.texts
    max_length = encoder.data.max_length
    question_length = _max_question_tokens(encoder)
    context_length = max_length - encoder.tokenizer.num_special_tokens_to_add(pair=True) - question_length
    encoded = encoder.tokenizer(
        [_first_tokens(text.lstrip(), question_length, encoder) for text in batch[question]],
        batch[context],
        truncation="only_second",
        max_length=max_length,
        stride=min(int(STRIDE * max_length), context_length - 1),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=encoder.return_token_type_ids,
    )
    rows = encoded.pop("overflow_to_sample_mapping")
    answers = encoder.get_labels(batch)
    starts, ends, context_offsets = [], [], []
    for window, row in enumerate(rows):
        offsets = [
            list(offset) if sequence == 1 else [NO_OFFSET, NO_OFFSET]
            for offset, sequence in zip(encoded[OFFSETS][window], encoded.sequence_ids(window), strict=True)
        ]
        context_offsets.append(offsets)
        answer = None if answers is None else read_answer(answers[row], batch[context][row])
        start, end = _answer_tokens(answer or {"text": []}, offsets)
        starts.append(start)
        ends.append(end)
    inputs = {**encoded, OFFSETS: context_offsets, EXAMPLE_INDEX: [batch[EXAMPLE_INDEX][row] for row in rows]}
    return inputs if answers is None else {**inputs, "start_positions": starts, "end_positions": ends}


def _max_question_tokens(encoder: RowEncoder) -> int:
    """Return how many tokens of a question are read: half of the window, the other half is for the context."""
    return (encoder.data.max_length - encoder.tokenizer.num_special_tokens_to_add(pair=True)) // 2


def _first_tokens(text: str, count: int, encoder: RowEncoder) -> str:
    """Return the part of a text that its first `count` tokens stand for."""
    if len(text) <= count:
        return text
    offsets = encoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[OFFSETS]
    return text if len(offsets) <= count else text[: offsets[count - 1][1]]


def check_question_rows(split: Dataset, name: str, encoder: RowEncoder) -> None:
    """Raise UserError if a row lacks its texts, or if its answer does not stand in its context."""
    check_row_texts(split, name, encoder)
    question, context = encoder.columns.texts
    count = _max_question_tokens(encoder)
    if count < 2:
        raise UserError(f"max_length={encoder.data.max_length} is too short for a question and a context: give more")
    long = sum(_first_tokens(text.lstrip(), count, encoder) != text.lstrip() for text in split[question])
    if long:
        logger.warning(
            f"{long} questions are longer than half of max_length: only their first {count} tokens are read"
        )
    column = encoder.columns.label
    if column not in split.column_names:
        return
    for index, (value, text) in enumerate(zip(split[column], split[context], strict=True)):
        if not text.strip():
            raise UserError(f"{describe_row(split, index, name)} has an empty context in column {context!r}")
        if read_answer(value, text) is None:
            raise UserError(
                f"{describe_row(split, index, name)} has the answer {value!r} in column {column!r}, which does not "
                f"stand in its context in column {context!r}: an answer is a text of the context, or nothing"
            )


def _answer_tokens(answer: Any, offsets: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return the first and the last token of the answer; both 0 if the window does not contain all of it."""
    if not answer["text"]:
        return 0, 0
    answer_start = answer["answer_start"][0]
    answer_end = answer_start + len(answer["text"][0])
    in_context = [(token, *offset) for token, offset in enumerate(offsets) if offset[0] != NO_OFFSET]
    first = next((token for token, start, end in in_context if start <= answer_start < end), None)
    last = next((token for token, start, end in in_context if start < answer_end <= end), None)
    return (0, 0) if first is None or last is None else (first, last)


def question_answering_compute_metrics(
    rows: Dataset, encoded: Dataset, encoder: RowEncoder, config: PreTrainedConfig
) -> TaskMetrics:
    """Return the function that computes exact match and F1 of the best span over all windows of a context.

    If some questions have no answer, the prediction is empty where position 0 scores higher than the best span.
    """
    contexts = list(rows[encoder.columns.texts[1]])
    values = zip(rows[str(encoder.columns.label)], contexts, strict=True)
    answers = [(read_answer(value, context) or {"text": []})["text"] for value, context in values]
    row_of_window, offsets = list(encoded[EXAMPLE_INDEX]), list(encoded[OFFSETS])
    has_unanswerable = any(not texts for texts in answers)

    def read_answers(prediction: EvalPrediction) -> tuple[list[str], list[list[str]]]:
        best = [("", -np.inf)] * len(contexts)
        no_answer_scores = [np.inf] * len(contexts)
        for window, (starts, ends) in enumerate(zip(*prediction.predictions[:2], strict=True)):
            row = row_of_window[window]
            no_answer_scores[row] = min(no_answer_scores[row], float(starts[0] + ends[0]))
            span = best_span(starts, ends, offsets[window])
            if span is not None and span[2] > best[row][1]:
                best[row] = (contexts[row][span[0] : span[1]], span[2])
        texts = [
            "" if has_unanswerable and no_answer_score > score else text
            for (text, score), no_answer_score in zip(best, no_answer_scores, strict=True)
        ]
        return texts, answers

    return TaskMetrics(read_answers, question_answering_metrics, question_answering_row_metrics)


def best_span(starts: np.ndarray, ends: np.ndarray, offsets: Sequence[Sequence[int]]) -> tuple[int, int, float] | None:
    """Return the first and last character of a window's best answer, and its score; None if there is no valid span.

    | argument | shape |
    | --- | --- |
    | starts, ends | (padded tokens,), logits |
    | offsets | (tokens, 2), the characters of each token; -1 outside of the context |
    """
    count = len(offsets)
    firsts, lasts = (
        [int(token) for token in np.argsort(logits[:count])[: -NUM_BEST_TOKENS - 1 : -1]] for logits in (starts, ends)
    )
    spans = [
        (float(starts[first] + ends[last]), first, last)
        for first in firsts
        for last in lasts
        if NO_OFFSET not in (offsets[first][0], offsets[last][0]) and first <= last < first + MAX_ANSWER_TOKENS
    ]
    if not spans:
        return None
    score, first, last = max(spans)
    return offsets[first][0], offsets[last][1], score


def _has_answer_columns(splits: DatasetDict, data: DataConfig) -> bool:
    columns = set(splits["train"].column_names)
    return {"question", "context"} <= columns and bool(columns & {"answers", "answer"})


QUESTION_ANSWERING = Task(
    "question-answering",
    "question-answering",
    "f1",
    encode_windows,
    question_answering_compute_metrics,
    matches=_has_answer_columns,
    text_columns=(("question", "context"),),
    label_columns=("answers", "answer"),
    check_rows=check_question_rows,
    needs_offsets=True,
    has_classes=False,
)
