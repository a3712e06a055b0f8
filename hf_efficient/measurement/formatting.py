"""Numbers as tables and pictures show them."""

from __future__ import annotations

NOT_MEASURED = "not measured"


def format_number(value: float | None, form: str) -> str:
    """Return `value` in the format `form`, such as "{:.1f} ms"; a value of None was not measured."""
    return NOT_MEASURED if value is None else form.format(value)
