"""Names of rows, for messages about what is wrong in one."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

SPLIT_TITLES = {"train": "training", "evaluation": "evaluation"}
MAX_SHOWN_CHARACTERS = 40
MAX_SHOWN_VALUES = 5


def describe_row(split: Dataset, index: int, name: str) -> str:
    """Return "row 3 of the training data, train.csv ('the first text of that row')", counted as in the file."""
    texts = (value for value in split[index].values() if isinstance(value, str) and value.strip())
    excerpt = next((f" ({shorten(text)!r})" for text in texts), "")
    file = f", {split.info.dataset_name}" if split.info.dataset_name else ""
    row = index if split._indices is None else split._indices.column(0)[index].as_py()
    return f"row {row + 1} of the {SPLIT_TITLES.get(name, name)} data{file}{excerpt}"


def shorten(text: str) -> str:
    """Return the first characters of a text."""
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[: MAX_SHOWN_CHARACTERS - 3]}..."


def list_values(values: Any) -> str:
    """Return the first of the values, with commas between them."""
    shown = list(values)
    return ", ".join(map(repr, shown[:MAX_SHOWN_VALUES])) + (", ..." if len(shown) > MAX_SHOWN_VALUES else "")
