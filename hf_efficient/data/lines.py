"""Plain text files: each line is a text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from hf_efficient.data.files import DataFile

BATCH_ROWS = 10_000
TEXT_COLUMN = "text"


def read_lines(file: DataFile) -> Iterator[pa.Table]:
    """Yield the lines that are not empty as rows with the column "text". Raises UserError if there are none."""
    lines = (text for line in file.lines() if (text := line.strip()))
    count = 0
    while batch := list(islice(lines, BATCH_ROWS)):
        count += len(batch)
        yield pa.table({TEXT_COLUMN: pa.array(batch, pa.string())})
    if not count:
        raise file.error("it has no texts: give a file with a text in each line")


def has_tabs(file: DataFile) -> bool:
    """Whether the first line has a tab: the file is a table."""
    return "\t" in next(file.lines(), "")
