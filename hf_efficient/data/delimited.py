"""Tables as text: CSV and tab-separated files. Every cell is a text."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
from transformers.utils import logging

from hf_efficient.data.files import DataFile
from hf_efficient.errors import UserError

logger = logging.get_logger(__name__)

BATCH_ROWS = 10_000
MAX_CELL_CHARACTERS = 2**31 - 1
# Delimiters of other kinds of files; a name of a column holds none of them.
OTHER_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
MAX_SHOWN = 40


def read_csv(file: DataFile) -> Iterator[pa.Table]:
    """Yield the rows of a CSV file, whose cells may be quoted.

    Raises UserError if it has no rows, or a row that cannot be read.
    """
    return _read(file, delimiter=",")


def read_tsv(file: DataFile) -> Iterator[pa.Table]:
    """Yield the rows of a tab-separated file. A quotation mark is a character as others, unless the file quotes cells.

    Raises UserError if it has no rows, or a row that cannot be read.
    """
    quoting = csv.QUOTE_MINIMAL if _is_quoted(file) else csv.QUOTE_NONE
    return _read(file, delimiter="\t", quoting=quoting)


def _read(file: DataFile, delimiter: str, quoting: Any = csv.QUOTE_MINIMAL) -> Iterator[pa.Table]:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    reader = csv.reader(file.lines(), delimiter=delimiter, quoting=quoting, strict=True)
    rows = _rows(file, reader)
    _, header = next(rows, (0, []))
    names = _column_names(file, header, delimiter)
    count = 0
    while batch := list(islice(rows, BATCH_ROWS)):
        for line, row in batch:
            if len(row) != len(names):
                raise file.error(_describe_ragged(row, len(names), delimiter, quoting), line)
        count += len(batch)
        columns = zip(*(row for _, row in batch), strict=True)
        yield pa.table([pa.array(column, pa.string()) for column in columns], names)
    if not count:
        raise file.error("it has a header and no rows: give a file with rows")
    if quoting != csv.QUOTE_NONE and (spanned := reader.line_num - 1 - count) > 0:
        logger.warning(f"{file.name}: {count} rows on {reader.line_num} lines, since {spanned} lines continue a cell")


def _rows(file: DataFile, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line on which each row begins, and its cells; lines without any are left out."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > line or "end of data" in str(error):
                raise file.error("the quotation mark that begins a cell has no end: close it", line) from error
            raise file.error(
                f'a quoted cell goes on behind its quotation mark ({error}): write "" for a quotation mark in a cell',
                line,
            ) from error
        if row:
            yield line, row


def _column_names(file: DataFile, header: list[str], delimiter: str) -> list[str]:
    """Return the names of the columns; one without a name, as of an index, gets its number.

    Raises UserError if the first line is no header of such a file.
    """
    if not any(header):
        raise file.error("it has no rows: give a file with a header and rows")
    other = next((each for each in OTHER_DELIMITERS if each in header[0]), None) if len(header) == 1 else None
    if other is not None:
        raise file.error(
            f"its header {_shorten(header[0])!r} is one column, and has {OTHER_DELIMITERS[other]}: separate the "
            f"columns by {OTHER_DELIMITERS[delimiter]}, or give the file a suffix that fits (.csv: commas; .tsv and "
            ".txt: tabs)",
            1,
        )
    names = [name.strip() or f"Unnamed: {index}" for index, name in enumerate(header)]
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise file.error(
            f"the column {_shorten(repeated[0])!r} exists twice: give every column its own name, in a first line if "
            "the file has no header",
            1,
        )
    return names


def _describe_ragged(row: list[str], expected: int, delimiter: str, quoting: Any) -> str:
    if quoting == csv.QUOTE_NONE:
        advice = "replace tabs and line breaks inside of a cell by spaces"
    else:
        advice = f"quote cells that contain {OTHER_DELIMITERS[delimiter]} or line breaks"
    return f"the row {_shorten(delimiter.join(row))!r} has {len(row)} cells and the header {expected}: {advice}"


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _is_quoted(file: DataFile) -> bool:
    """Whether the cells of a tab-separated file are quoted: those that must be, or all of a column, and no other way.

    A cell must be quoted if it contains a quotation mark, a tab or a line break. Where every line has as many tabs as
    the header, no cell contains a tab or a line break.
    """
    pending: list[str] = []  # lines of the row that is being read
    tab_counts: set[int] = set()

    def lines() -> Iterator[str]:
        for line in file.lines():
            pending.append(line)
            if line.strip("\r\n"):
                tab_counts.add(line.count("\t"))
            yield line

    csv.field_size_limit(MAX_CELL_CHARACTERS)
    is_header, has_quotes, has_breaks = True, False, False
    needless: set[int] = set()
    unquoted: set[int] = set()
    try:
        for row in csv.reader(lines(), delimiter="\t", strict=True):
            text = "".join(pending).rstrip("\r\n")
            pending.clear()
            cells = _find_quoted(text, row) if '"' in text else [False] * len(row)
            if cells is None:
                return False
            for index, (cell, is_quoted) in enumerate(zip(row, cells, strict=True)):
                has_quotes |= is_quoted
                has_breaks |= is_quoted and any(character in cell for character in "\t\r\n")
                if is_quoted and not any(character in cell for character in '"\t\r\n') and not is_header:
                    needless.add(index)
                elif not is_quoted and cell and not is_header:
                    unquoted.add(index)
            is_header = is_header and not row
    except (csv.Error, UserError):
        return False  # where the file cannot be read at all, its reader says why
    return has_quotes and not unquoted & needless and not (has_breaks and len(tab_counts) == 1)


def _find_quoted(text: str, row: list[str]) -> list[bool] | None:
    """Return which cells of a row are quoted in its text; None if the text is not how the cells are written."""
    found, position = [], 0
    for cell in row:
        written = '"' + cell.replace('"', '""') + '"'
        is_quoted = text.startswith(written, position)
        if not is_quoted and ('"' in cell or not text.startswith(cell, position)):
            return None
        position += len(written if is_quoted else cell)
        if position < len(text) and text[position] != "\t":
            return None
        position += 1
        found.append(is_quoted)
    return found if position > len(text) else None
