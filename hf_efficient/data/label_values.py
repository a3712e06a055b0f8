"""What one cell of a label column says: a number, a truth value, a list, or nothing."""

from __future__ import annotations

import ast
import json
import math
import re
from decimal import Decimal
from typing import Any

# Zeros in front, as in 007, make a code, which is a name.
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*|(?=\.\d))(\.\d*)?([eE][+-]?\d+)?")
_SEPARATORS = "|;,"
# Two or more entries of a vector, as 1 0 1 or 1,0,1.
_VECTOR = re.compile(r"[01](\.0*)?([\s,;|]+[01](\.0*)?)+")
_TRUTH_VALUES = {"true": True, "false": False}


def is_missing(value: Any) -> bool:
    """Whether a cell is empty."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def parse_number(value: Any) -> int | float | None:
    """Return the number that a value is or spells, whole ones as int; None if it is none."""
    if isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text):
            return None
        value = float(text) if set(text) & set(".eE") else int(text)
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() else value
    return int(value) if isinstance(value, int) else None


def parse_truth(value: Any) -> bool | None:
    """Return the truth value that a value is or spells; None if it is none."""
    if isinstance(value, bool):
        return value
    return _TRUTH_VALUES.get(value.strip().casefold()) if isinstance(value, str) else None


def parse_list(value: Any) -> list[Any] | None:
    """Return the list that a value is or spells, as ["a", "b"], {'a', 'b'}, [1 0 1] or 1,0,1; None if it is none."""
    if isinstance(value, list | tuple):
        return list(value)
    text = value.strip() if isinstance(value, str) else ""
    if _VECTOR.fullmatch(text):
        return re.split(r"[\s,;|]+", text)
    if text[:1] + text[-1:] not in ("[]", "()", "{}"):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(parsed, set):
            return sorted(parsed, key=str)
        return list(parsed) if isinstance(parsed, list | tuple) else None
    return [part for part in re.split(r"[\s,]+", text[1:-1]) if part] if text.startswith("[") else None


def split_labels(value: Any) -> list[Any]:
    """Return the labels of a row with any number of them: a list, or names with |, ; or , between them."""
    values = parse_list(value)
    if values is not None:
        return values
    if not isinstance(value, str):
        return [value]
    separator = next((sign for sign in _SEPARATORS if sign in value), None)
    parts = value.split(separator) if separator else [value]
    return [part.strip() for part in parts if part.strip()]


def split_words(value: Any) -> list[Any]:
    """Return the words of a row, or their tags: a list, or a text with spaces between them."""
    values = parse_list(value)
    if values is not None:
        return values
    return value.split() if isinstance(value, str) else [value]
