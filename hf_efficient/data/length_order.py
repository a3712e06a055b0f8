"""The order of rows by their number of tokens, in which batches have little padding, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import Subset

Order = NDArray[np.int64]


def sort_by_length(rows: Any, column: str = "input_ids") -> Order | None:
    """Return the indices of `rows`, (number of rows,), those with most tokens first, equal ones in their order.

    None if all rows are equally long, or if their lengths are not known without computing the rows: they are known of
    a `Dataset`, of a list of mappings, and of a `Subset` of these.
    """
    lengths = _count_tokens(rows, column)
    if lengths is None or len(np.unique(lengths)) < 2:
        return None
    return np.argsort(-lengths, kind="stable")


def restore_order(values: Any, order: Order) -> Any:
    """Return arrays (rows, ...), alone or in tuples, lists and mappings, in the order of the data.

    The first `len(order)` rows of `values` are those of the data at the indices `order`.
    """
    if values is None:
        return None
    if isinstance(values, tuple | list):
        return type(values)(restore_order(value, order) for value in values)
    if isinstance(values, Mapping):
        return {name: restore_order(value, order) for name, value in values.items()}
    return values[np.argsort(order)]


def _count_tokens(rows: Any, column: str) -> Order | None:
    """Return the tokens of each row, of its longest text if it has several; None if they are not known."""
    if isinstance(rows, Subset):
        all_lengths = _count_tokens(rows.dataset, column)
        return None if all_lengths is None else all_lengths[np.asarray(rows.indices, dtype=np.int64)]
    if isinstance(rows, Dataset) and column in rows.column_names:
        chunks = rows.select_columns([column]).with_format("arrow")[:][column].chunks
        lengths = [counts for chunk in chunks if (counts := _list_lengths(chunk)) is not None]
        return np.concatenate(lengths) if lengths else None
    if isinstance(rows, list | tuple) and all(isinstance(row, Mapping) and column in row for row in rows):
        return np.array([len(row[column]) for row in rows], dtype=np.int64)
    return None


def _list_lengths(values: Any) -> Order | None:
    """Return the lengths of an Arrow array of lists, of the longest of each row's lists if they are nested."""
    if not hasattr(values, "value_lengths"):
        return None
    inner = _list_lengths(values.flatten())
    if inner is None:
        return np.asarray(values.value_lengths().fill_null(0), dtype=np.int64)
    longest = np.zeros(len(values), dtype=np.int64)
    np.maximum.at(longest, np.asarray(values.value_parent_indices()), inner)
    return longest
