"""Answers of extractive question answering, in the forms that datasets have."""

from __future__ import annotations

import ast
import json
from typing import Any

Answer = dict[str, list[Any]]


def read_answer(value: Any, context: str) -> Answer | None:
    """Return the texts of an answer, and where each starts in the context; None if one of them is not there.

    A value is a text, a list of texts, {"text": ..., "answer_start": ...} or a list of these; nothing is no answer.
    A start that does not fit is replaced by the nearest place where the text stands.
    """
    value = _parse(value)
    pairs = [pair for pair in _pairs(value) if pair[0]]
    starts = [_find_start(text, start, context) for text, start in pairs]
    if None in starts:
        return None
    return {"text": [text for text, _ in pairs], "answer_start": starts}


def _parse(value: Any) -> Any:
    """Return the list or dict that a text spells, or the text itself."""
    if not isinstance(value, str) or value.strip()[:1] + value.strip()[-1:] not in ("{}", "[]"):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value.strip())
        except (ValueError, SyntaxError):
            continue
    return value


def _pairs(value: Any) -> list[tuple[str, Any]]:
    """Return the texts with their starts; None where a start is not known."""
    if value is None:
        return []
    if isinstance(value, list):
        return [pair for each in value for pair in _pairs(each)]
    if not isinstance(value, dict):
        return [(str(value), None)]
    texts, starts = value.get("text"), value.get("answer_start")
    texts = texts if isinstance(texts, list) else [] if texts is None else [texts]
    starts = starts if isinstance(starts, list) else [starts] * len(texts)
    starts = [*starts, *[None] * (len(texts) - len(starts))]
    return [(str(text), start) for text, start in zip(texts, starts, strict=False) if text is not None]


def _find_start(text: str, start: Any, context: str) -> int | None:
    if isinstance(start, str) and start.strip().isdigit():
        start = int(start)
    if isinstance(start, int) and start >= 0 and context[start : start + len(text)] == text:
        return start
    places = [index for index in range(len(context)) if context.startswith(text, index)]
    near = start if isinstance(start, int) else 0
    return min(places, key=lambda index: abs(index - near), default=None)
