"""Questions whose answer is a span of a text, which may be longer than a model reads at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import EvalPrediction, PreTrainedConfig

from hf_efficient.data.config import DataConfig
from hf_efficient.measurement.metrics import question_answering_metrics
from hf_efficient.tasks.task import EXAMPLE, PLACES, Batch, Metrics, RowEncoder, Task

STRIDE = 0.25  # of the longest input: how much neighbouring windows share
LIKELY = 20
LONGEST_ANSWER = 30
OUTSIDE = -1


def encode_windows(batch: Batch, encoding: RowEncoder) -> dict[str, Any]:
    """Return overlapping windows of each text beside its question, and where the answer stands in each.

    A window without the whole answer points at its first token, as one of a question without an answer does. Also
    which row of the batch a window is of, and where its tokens stand in the text.
    """
    question, context = encoding.columns.texts
    longest = encoding.data.max_length
    encoded = encoding.tokenizer(
        [text.lstrip() for text in batch[question]],
        batch[context],
        truncation="only_second",
        max_length=longest,
        stride=int(STRIDE * longest),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=encoding.token_types,
    )
    rows = encoded.pop("overflow_to_sample_mapping")
    answers = encoding.labels(batch)
    starts, ends, places = [], [], []
    for window, row in enumerate(rows):
        of_text = [part == 1 for part in encoded.sequence_ids(window)]
        tokens = zip(encoded[PLACES][window], of_text, strict=True)
        offsets = [list(place) if inside else [OUTSIDE, OUTSIDE] for place, inside in tokens]
        places.append(offsets)
        answer = {"text": []} if answers is None else answers[row]
        start, end = _where(answer, offsets)
        starts.append(start)
        ends.append(end)
    found = {**encoded, PLACES: places, EXAMPLE: [batch[EXAMPLE][row] for row in rows]}
    return found if answers is None else {**found, "start_positions": starts, "end_positions": ends}


def _where(answer: Any, offsets: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return the first and the last token of the answer, both 0 where it is not wholly there."""
    if not answer["text"]:
        return 0, 0
    begin = answer["answer_start"][0]
    stop = begin + len(answer["text"][0])
    first = next((i for i, (start, end) in enumerate(offsets) if start != OUTSIDE and start <= begin < end), None)
    last = next((i for i, (start, end) in enumerate(offsets) if start != OUTSIDE and start < stop <= end), None)
    return (0, 0) if first is None or last is None else (first, last)


def question_answering_compute_metrics(
    rows: Dataset, encoded: Dataset, encoding: RowEncoder, config: PreTrainedConfig
) -> Metrics:
    """Return exact match and F1 of the likeliest span of all windows of a text against the answers of its row."""
    texts = list(rows[encoding.columns.texts[1]])
    answers = [value["text"] for value in rows[str(encoding.columns.label)]]
    examples, places = list(encoded[EXAMPLE]), list(encoded[PLACES])
    may_be_none = any(not known for known in answers)

    def judge(prediction: EvalPrediction) -> dict[str, float]:
        best = [("", -np.inf)] * len(texts)
        nothing = [np.inf] * len(texts)
        for window, (starts, ends) in enumerate(zip(*prediction.predictions[:2], strict=True)):
            row = examples[window]
            nothing[row] = min(nothing[row], float(starts[0] + ends[0]))
            found = best_span(starts, ends, places[window])
            if found is not None and found[2] > best[row][1]:
                best[row] = (texts[row][found[0] : found[1]], found[2])
        said = [
            "" if may_be_none and none > score else text for (text, score), none in zip(best, nothing, strict=True)
        ]
        return question_answering_metrics(said, answers)

    return judge


def best_span(starts: np.ndarray, ends: np.ndarray, places: Sequence[Sequence[int]]) -> tuple[int, int, float] | None:
    """Return where the likeliest answer of one window begins and ends in the text, and its score; None: nowhere.

    | argument | shape |
    | --- | --- |
    | starts, ends | (padded tokens,), the logits |
    | places | (tokens, 2), the characters of each token; -1 outside of the text |
    """
    count = len(places)
    firsts, lasts = ([int(i) for i in np.argsort(scores[:count])[: -LIKELY - 1 : -1]] for scores in (starts, ends))
    spans = [
        (float(starts[first] + ends[last]), first, last)
        for first in firsts
        for last in lasts
        if OUTSIDE not in (places[first][0], places[last][0]) and first <= last < first + LONGEST_ANSWER
    ]
    if not spans:
        return None
    score, first, last = max(spans)
    return places[first][0], places[last][1], score


def _matches(splits: DatasetDict, data: DataConfig) -> bool:
    return {"question", "context", "answers"} <= set(splits["train"].column_names)


QUESTION_ANSWERING = Task(
    "question-answering",
    "question-answering",
    "f1",
    encode_windows,
    question_answering_compute_metrics,
    recognize=_matches,
    text_columns=(("question", "context"),),
    label_columns=("answers", "answer"),
    classes=False,
)
