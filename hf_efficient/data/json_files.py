"""Rows from JSON: one object a line, an array, {"data": [...]}, and the nested articles of SQuAD."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from hf_efficient.data.files import DataFile
from hf_efficient.data.schema import MixedTypesError, to_array

BATCH_ROWS = 1000
WORD_COLUMNS = ("tokens", "words")  # of which one row is a list
FORMS = 'give one object a line, an array of objects, or {"data": [...]}'
# What `json` raises for texts that are no JSON, numbers of thousands of digits, and brackets nested by the thousand.
JSON_ERRORS = (ValueError, RecursionError)

Row = dict[str, Any]


def read_json(file: DataFile) -> Iterator[pa.Table]:
    """Yield the rows of a JSON file.

    Raises UserError if it is no JSON, has no rows, or rows that do not fit together.
    """
    rows = _read_rows(file)
    start = 0
    while batch := list(islice(rows, BATCH_ROWS)):
        names = dict.fromkeys(chain.from_iterable(batch))
        yield pa.table({name: _column(file, name, [row.get(name) for row in batch], start) for name in names})
        start += len(batch)
    if not start:
        raise file.error("it has no rows: give a file with rows")


def _column(file: DataFile, name: str, values: list[Any], start: int) -> pa.Array:
    try:
        return to_array(values)
    except MixedTypesError as error:
        raise file.error(f"row {start + error.index + 1}, column {name!r}: {error}") from error


def _read_rows(file: DataFile) -> Iterator[Row]:
    """Yield the rows, line by line if the first line is an object of its own that others follow."""
    lines = enumerate(file.lines(), start=1)
    first_lines = list(islice(((number, line) for number, line in lines if line.strip()), 2))
    if len(first_lines) == 2 and _is_object(first_lines[0][1]):
        for number, line in chain(first_lines, lines):
            if line.strip():
                yield _parse_row(file, line, number)
        return
    text = "\n" * (first_lines[0][0] - 1 if first_lines else 0)
    text += "".join(line for _, line in chain(first_lines, lines))
    if not text.strip():
        raise file.error("it has no rows: give a file with rows")
    yield from _rows_of_document(file, text)


def _is_object(text: str) -> bool:
    try:
        return isinstance(_parse(text), dict)
    except JSON_ERRORS:
        return False


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _: None)  # NaN is how some programs write a missing value


def _parse_row(file: DataFile, text: str, line: int) -> Row:
    try:
        row = _parse(text)
    except json.JSONDecodeError as error:
        raise file.error(f"it is not JSON, {error.msg} at character {error.colno}: correct the line", line) from error
    except JSON_ERRORS as error:
        raise file.error(f"it is not JSON that can be read ({error}): correct the line", line) from error
    if not isinstance(row, dict):
        raise file.error(f"it is {_kind(row)}, not an object: {FORMS}", line)
    return row


def _rows_of_document(file: DataFile, text: str) -> Iterable[Row]:
    try:
        document = _parse(text)
    except json.JSONDecodeError as error:
        raise file.error(
            f"it is not JSON, {error.msg} at character {error.colno}: correct it", error.lineno
        ) from error
    except JSON_ERRORS as error:
        raise file.error(f"it is not JSON that can be read ({error}): correct it") from error
    rows = document.get("data", [document]) if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise file.error(f"it is {_kind(rows)}, not an array of objects: {FORMS}")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise file.error(f"row {index + 1} is {_kind(row)}, not an object: {FORMS}")
    if isinstance(document, dict) and rows == [document] and _has_columns_of_dicts(document):
        raise file.error(f"it is written column by column: {FORMS} (pandas: orient='records')")
    if isinstance(document, dict) and rows == [document] and _has_columns_of_lists(document):
        return _rows_of_columns(file, document)
    if rows and all("paragraphs" in row for row in rows):
        return _squad_rows(file, rows)
    return rows


def _has_columns_of_dicts(document: Row) -> bool:
    columns = list(document.values())
    return bool(columns) and all(isinstance(column, dict) and "0" in column for column in columns)


def _has_columns_of_lists(document: Row) -> bool:
    """Whether an object is a table by columns, and not the one row of a task whose texts are lists of words."""
    is_row = any(isinstance(document.get(name), list) and not _is_nested(document[name]) for name in WORD_COLUMNS)
    if is_row or len(document) < 2 or not all(isinstance(column, list) for column in document.values()):
        return False
    return any(len(column) > 1 or _is_nested(column) for column in document.values())


def _is_nested(column: list[Any]) -> bool:
    return any(isinstance(value, list) for value in column)


def _rows_of_columns(file: DataFile, document: Row) -> Iterator[Row]:
    lengths = {name: len(column) for name, column in document.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name!r} has {length} values" for name, length in lengths.items())
        raise file.error(f"it is written column by column, and {shown}: write as many for each column")
    return (dict(zip(document, values, strict=True)) for values in zip(*document.values(), strict=True))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _squad_rows(file: DataFile, articles: list[Row]) -> Iterator[Row]:
    """Yield a row for each question of articles nested as in SQuAD: id, title, context, question and answers.

    Source: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text".
    """
    for number, article in enumerate(articles, start=1):
        try:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    row = {
                        "id": str(question.get("id", "")),
                        "title": article.get("title", ""),
                        "context": paragraph["context"],
                        "question": question["question"],
                    }
                    if "answers" in question:
                        row["answers"] = {
                            field: [answer[field] for answer in question["answers"]]
                            for field in ("text", "answer_start")
                        }
                    yield row
        except (KeyError, TypeError, AttributeError) as error:
            raise file.error(
                f"article {number} is not nested as in SQuAD ({type(error).__name__}: {error}): each needs "
                "paragraphs with context and qas, each of these question and answers with text and answer_start"
            ) from error
