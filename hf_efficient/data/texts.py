"""Checks of the texts of a dataset before anything is computed from them."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset
from transformers.utils import logging

from hf_efficient.data.rows import SPLIT_TITLES, describe_row
from hf_efficient.errors import UserError

logger = logging.get_logger(__name__)

INFERRING_BUILDERS = ("csv", "json", "pandas")


def check_texts(split: Dataset, name: str, columns: Sequence[str]) -> None:
    """Raise UserError if one of the columns has a cell that is not a text, or only empty ones; warn of empty ones."""
    for column in columns:
        values = split[column][:]
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise UserError(
                    f"{describe_row(split, index, name)} has {value!r} in column {column!r}, where a text is needed: "
                    "write one, remove the row, or name another column with --text_column" + _advise(split)
                )
        empty = [index for index, value in enumerate(values) if not value.strip()]
        if not empty:
            continue
        title = SPLIT_TITLES.get(name, name)
        if len(empty) == len(values):
            raise UserError(f"column {column!r} of the {title} data has no text in any row: give --text_column")
        logger.warning(
            f"column {column!r} of the {title} data has {len(empty)} empty texts, the first in row {empty[0] + 1}: "
            "they are used as they are"
        )


def _advise(split: Dataset) -> str:
    """Return what to do where `datasets` has read a file, and not the reader of this package."""
    if split.info.builder_name not in INFERRING_BUILDERS:
        return ""
    return (
        ". The `datasets` library makes numbers, dates and missing values of texts that look like these: download the "
        "files of the dataset and give them as --train_file and --validation_file, which keep texts as they are"
    )
