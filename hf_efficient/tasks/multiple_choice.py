"""Multiple choice: which of several texts continues a given one."""

from __future__ import annotations

from itertools import chain
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import DataCollatorForMultipleChoice

from hf_efficient.data.config import DataConfig
from hf_efficient.data.label_values import parse_number
from hf_efficient.data.rows import describe_row
from hf_efficient.errors import UserError
from hf_efficient.tasks.classification import classification_compute_metrics
from hf_efficient.tasks.task import Batch, RowEncoder, Task, check_row_texts

CHOICE_COLUMNS = (
    ("sent1", "sent2", "ending0", "ending1", "ending2", "ending3"),
    ("premise", "choice1", "choice2"),
)
CHOICE_PREFIXES = ("ending", "choice")


def encode_choices(batch: Batch, encoder: RowEncoder) -> dict[str, Any]:
    """Return the tokens of each choice paired with the context of its row, (rows, choices, tokens).

    The first text column is the context; further columns that are not choices are put in front of each choice.
    """
    names = encoder.columns.texts
    choice_names = [name for name in names if name.startswith(CHOICE_PREFIXES)]
    context_name, *prefix_names = [name for name in names if name not in choice_names]
    num_choices = len(choice_names)
    contexts = list(chain.from_iterable([text] * num_choices for text in batch[context_name]))
    choices = [
        " ".join(batch[name][row] for name in (*prefix_names, choice))
        for row in range(len(batch[context_name]))
        for choice in choice_names
    ]
    flat = encoder.tokenize(contexts, choices)
    starts = range(0, len(contexts), num_choices)
    encoded = {name: [values[start : start + num_choices] for start in starts] for name, values in flat.items()}
    labels = encoder.get_labels(batch)
    if labels is not None:
        encoded["labels"] = [read_choice(value, num_choices) for value in labels]
    return encoded


def read_choice(value: Any, num_choices: int) -> int | None:
    """Return the number of the right choice, from 0, which may be written as a number or a letter; else None."""
    letters = [chr(ord("A") + index) for index in range(num_choices)]
    is_letter = isinstance(value, str) and value.strip() in letters
    number = letters.index(value.strip()) if is_letter else parse_number(value)
    return number if isinstance(number, int) and 0 <= number < num_choices else None


def check_choice_rows(split: Dataset, name: str, encoder: RowEncoder) -> None:
    """Raise UserError if a row lacks a text, or the number of its right choice."""
    check_row_texts(split, name, encoder)
    column = encoder.columns.label
    num_choices = sum(text.startswith(CHOICE_PREFIXES) for text in encoder.columns.texts)
    if column not in split.column_names:
        return
    for index, value in enumerate(split[column]):
        if read_choice(value, num_choices) is None:
            raise UserError(
                f"{describe_row(split, index, name)} has {value!r} in column {column!r}: the number of the right "
                f"choice is needed, 0 to {num_choices - 1}"
            )


def _has_choice_columns(splits: DatasetDict, data: DataConfig) -> bool:
    return any(set(names) <= set(splits["train"].column_names) for names in CHOICE_COLUMNS)


MULTIPLE_CHOICE = Task(
    "multiple-choice",
    "multiple-choice",
    "accuracy",
    encode_choices,
    classification_compute_metrics,
    matches=_has_choice_columns,
    text_columns=CHOICE_COLUMNS,
    collator=DataCollatorForMultipleChoice,
    check_rows=check_choice_rows,
    has_classes=False,
)
