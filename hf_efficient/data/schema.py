"""The types of columns: of values as JSON has them, and one type for a column of several files."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

# What Arrow raises for values of several types, integers of more than 64 bits, and halves of surrogate pairs.
CONVERSION_ERRORS = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError)
KINDS: dict[Any, str] = {list: "a list", dict: "an object"}


class MixedTypesError(Exception):
    """Values that no type holds together; `index` is that of the first one that does not fit."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


def to_array(values: Sequence[Any]) -> pa.Array:
    """Return the values of a column as an Arrow array. Numbers, texts and truth values together become texts.

    Raises MixedTypesError if lists, objects and single values are mixed.
    """
    try:
        return plain_array(pa.array(values))
    except CONVERSION_ERRORS:
        return _convert(values)


def _convert(values: Sequence[Any]) -> pa.Array:
    kinds = ["" if value is None else KINDS.get(type(value), "a single value") for value in values]
    kind = next(filter(None, kinds), "")
    for index, other in enumerate(kinds):
        if other not in (kind, ""):
            raise MixedTypesError(f"{other}, where other rows have {kind}: write all alike", index)
    missing = pa.array([value is None for value in values])
    if kind == KINDS[dict]:
        names = dict.fromkeys(name for value in values if value for name in value)
        columns = [to_array([None if value is None else value.get(name) for value in values]) for name in names]
        return pa.StructArray.from_arrays(columns, list(names), mask=missing)
    if kind == KINDS[list]:
        offsets = [0]
        for value in values:
            offsets.append(offsets[-1] + len(value or ()))
        try:
            flat = to_array([item for value in values for item in value or ()])
        except MixedTypesError as error:
            raise MixedTypesError(str(error), bisect_right(offsets, error.index) - 1) from None
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, mask=missing)
    return pa.array([_to_text(value, index) for index, value in enumerate(values)], pa.string())


def _to_text(value: Any, index: int) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MixedTypesError(f"half of a surrogate pair, {text[error.start]!a}: write valid text", index) from None
    return text


def plain_type(type: pa.DataType) -> pa.DataType:
    """Return the type without how it is stored: no dictionaries, no large or fixed-size forms."""
    if types.is_dictionary(type):
        return plain_type(type.value_type)
    if types.is_large_string(type) or types.is_string_view(type):
        return pa.string()
    if types.is_large_list(type) or types.is_fixed_size_list(type) or types.is_list(type):
        return pa.list_(plain_type(type.value_type))
    if types.is_decimal(type):
        return pa.float64()
    if types.is_struct(type):
        return pa.struct([pa.field(field.name, plain_type(field.type)) for field in type])
    return type


def plain_array(column: Any) -> Any:
    """Return the array or chunked array with its `plain_type`."""
    type = plain_type(column.type)
    return column if column.type == type else column.cast(type)


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Return the type that holds the values of both; single values of different types become texts. None: no type."""
    if first == second or types.is_null(second):
        return first
    if types.is_null(first):
        return second
    if types.is_list(first) and types.is_list(second):
        item = common_type(first.value_type, second.value_type)
        return None if item is None else pa.list_(item)
    if types.is_struct(first) and types.is_struct(second):
        fields = {field.name: field.type for field in first}
        for field in second:
            type = common_type(fields.get(field.name, pa.null()), field.type)
            if type is None:
                return None
            fields[field.name] = type
        return pa.struct(list(fields.items()))
    if types.is_nested(first) or types.is_nested(second):
        return None
    if types.is_integer(first) and types.is_integer(second):
        return pa.int64()
    numbers = types.is_integer, types.is_floating
    if all(any(is_number(type) for is_number in numbers) for type in (first, second)):
        return pa.float64()
    return pa.string()


def cast_column(column: pa.ChunkedArray, type: pa.DataType) -> pa.ChunkedArray:
    """Return the column with a type of `common_type`; missing texts are empty."""
    if column.type != type:
        column = column.cast(type, safe=False)
    return pc.fill_null(column, "") if types.is_string(type) else column
