"""Multi-label data with one column for each class."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from datasets import ClassLabel, DatasetDict, Features, List

from hf_efficient.data.config import DataConfig
from hf_efficient.data.labels import entry_is_set
from hf_efficient.data.rows import describe_row
from hf_efficient.errors import UserError

MERGED_COLUMN = "labels"
ROW_NUMBER_COLUMNS = ("", "id", "idx", "index", "Unnamed: 0", "__index_level_0__")


def merge_class_columns(
    splits: DatasetDict, data: DataConfig, label_columns: Collection[str]
) -> tuple[DatasetDict, DataConfig]:
    """Return the data with one column of lists of classes in place of a column of 0 and 1 for each class.

    These are the columns that `data.label_column` names, with commas between them, or, where there is none of
    `label_columns`, all columns that hold nothing but 0 and 1. Other data are returned as they are.

    Raises UserError if a column that is named does not exist, or holds something else.
    """
    columns = splits["evaluation"].column_names
    names = [part.strip() for part in (data.label_column or "").split(",")]
    if data.label_column in columns:
        names = []
    if len(names) > 1:
        missing = [name for name in names if name not in columns]
        if missing:
            raise UserError(
                f"label_column={data.label_column!r}: the data has no column {', '.join(missing)}, only "
                f"{', '.join(columns)}"
            )
    elif data.label_column or data.summary_column or set(columns) & set(label_columns):
        return splits, data
    else:
        texts = (data.text_column, data.text_pair_column, data.source_lang, data.target_lang, *ROW_NUMBER_COLUMNS)
        names = [name for name in columns if name not in texts and _holds_classes(splits, name)]
        if len(names) < 2:
            return splits, data
    merged = DatasetDict({name: _merge(split, name, names) for name, split in splits.items()})
    return merged, dataclasses.replace(data, label_column=MERGED_COLUMN)


def _holds_classes(splits: DatasetDict, column: str) -> bool:
    values = {
        repr(value): value for split in splits.values() if column in split.column_names for value in split[column]
    }
    return bool(values) and all(entry_is_set(value) is not None for value in values.values())


def _merge(split: Any, split_name: str, names: list[str]) -> Any:
    if not set(names) <= set(split.column_names):
        return split  # training data without labels
    for name in names:
        for index, value in enumerate(split[name][:]):
            if entry_is_set(value) is None:
                raise UserError(
                    f"{describe_row(split, index, split_name)} has {value!r} in column {name!r}: a column of a class "
                    "must hold 1 if the row has the class, else 0"
                )
    kept = {name: feature for name, feature in split.features.items() if name not in names}
    features = Features({**kept, MERGED_COLUMN: List(ClassLabel(names=names))})

    def merge(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = zip(*(batch[name] for name in names), strict=True)
        return {MERGED_COLUMN: [[index for index, value in enumerate(row) if entry_is_set(value)] for row in rows]}

    removed = [name for name in names if name != MERGED_COLUMN]
    return split.map(merge, batched=True, remove_columns=removed, features=features, desc="reading labels")
