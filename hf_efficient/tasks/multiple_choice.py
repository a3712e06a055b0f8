"""One of several texts that goes on best."""

from __future__ import annotations

from itertools import chain
from typing import Any

from datasets import DatasetDict
from transformers import DataCollatorForMultipleChoice

from hf_efficient.data.config import DataConfig
from hf_efficient.tasks.classification import classification_compute_metrics
from hf_efficient.tasks.task import Batch, RowEncoder, Task

CHOICE_COLUMNS = (
    ("sent1", "sent2", "ending0", "ending1", "ending2", "ending3"),
    ("premise", "choice1", "choice2"),
)


def encode_choices(batch: Batch, encoding: RowEncoder) -> dict[str, Any]:
    """Return, for each row, tokens of every choice beside what comes before it, (choices, tokens)."""
    names = encoding.columns.texts
    choices = [name for name in names if name.startswith(("ending", "choice"))]
    first, *begun = [name for name in names if name not in choices]
    count = len(choices)
    before = list(chain.from_iterable([text] * count for text in batch[first]))
    after = [
        " ".join(batch[name][row] for name in (*begun, choice))
        for row in range(len(batch[first]))
        for choice in choices
    ]
    flat = encoding.tokens(before, after)
    places = range(0, len(before), count)
    encoded = {name: [values[start : start + count] for start in places] for name, values in flat.items()}
    labels = encoding.labels(batch)
    if labels is not None:
        encoded["labels"] = [int(value) for value in labels]
    return encoded


def _matches(splits: DatasetDict, data: DataConfig) -> bool:
    return any(set(names) <= set(splits["train"].column_names) for names in CHOICE_COLUMNS)


CHOICES = Task(
    "multiple-choice",
    "multiple-choice",
    "accuracy",
    encode_choices,
    classification_compute_metrics,
    recognize=_matches,
    text_columns=CHOICE_COLUMNS,
    collator=DataCollatorForMultipleChoice,
    classes=False,
)
