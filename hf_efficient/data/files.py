"""A file of rows as bytes and as lines of text, and what is wrong with it where it cannot be read."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hf_efficient.errors import UserError

GZIP = b"\x1f\x8b"
# The first bytes of a text file with a byte order mark, and its encoding. UTF-32 begins as UTF-16.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# The first bytes of files that are no text, and what to do with them.
OTHER_FORMATS = {
    b"PAR1": "it is a Parquet file: give it the suffix .parquet",
    b"PK\x03\x04": "it is a zip archive or an Excel workbook: extract it, or save its sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "it is an Excel workbook: save its sheet as CSV in UTF-8",
    b"BZh": "it is compressed by bzip2: decompress it, or compress it by gzip",
    b"\xfd7zXZ": "it is compressed by xz: decompress it, or compress it by gzip",
    b"\x28\xb5\x2f\xfd": "it is compressed by Zstandard: decompress it, or compress it by gzip",
    b"%PDF": "it is a PDF: give a file of rows",
    b"ARROW1": "it is an Arrow file: save it as Parquet",
    b"version https://git-lfs": "it is a pointer of Git LFS, not the data: fetch the file by `git lfs pull`",
    b"<!DOCTYPE": "it is a web page, not the data: download the file itself",
    b"<!doctype": "it is a web page, not the data: download the file itself",
    b"<html": "it is a web page, not the data: download the file itself",
}


@dataclass(frozen=True)
class DataFile:
    """A file of rows; `flag` is the argument that gave it, by which messages name it.

    `is_plain_text`: a txt file has one text in each line, and no header.
    """

    path: Path
    flag: str
    is_plain_text: bool = False

    @property
    def name(self) -> str:
        """The name of the file in messages."""
        return f"{self.flag}={self.path.name!r}"

    def error(self, reason: str, line: int | None = None) -> UserError:
        """Return the error that says what is wrong with the file, or with one of its lines."""
        place = "" if line is None else f", line {line}"
        return UserError(f"{self.name}{place}: {reason}")

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file, decompressed if its content is gzip.

        Raises UserError if it cannot be opened, or not be read to its end.
        """
        try:
            with self.path.open("rb") as raw:
                is_compressed = raw.read(len(GZIP)) == GZIP
                raw.seek(0)
                if is_compressed:
                    with gzip.GzipFile(fileobj=raw) as file:
                        yield file  # type: ignore[misc]  # it has the methods of BinaryIO
                elif self.path.suffix.lower() == ".gz":
                    raise self.error("it is not compressed by gzip, as its suffix says: rename it, or copy it again")
                else:
                    yield raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.error(f"it is damaged or incomplete ({error}): copy or download it again") from error
        except OSError as error:
            raise self.error(f"it cannot be read: {error.strerror or error}") from error

    def lines(self) -> Iterator[str]:
        r"""Yield the lines of a text file with their ends, which are \n, \r or \r\n.

        Raises UserError if it is no text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
        """
        with self.open() as file:
            start = file.read(max(map(len, OTHER_FORMATS)))
            file.seek(0)
            for signature, advice in OTHER_FORMATS.items():
                if start.startswith(signature):
                    raise self.error(advice)
            encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")
            number = 0
            try:
                for number, line in enumerate(io.TextIOWrapper(file, encoding=encoding, newline=""), start=1):
                    if "\0" in line:
                        raise self.error(
                            "it holds a NUL character, as UTF-16 without a byte order mark and files that are no text "
                            "do: save the file as UTF-8",
                            number,
                        )
                    yield line
            except UnicodeError as error:
                raise self._encoding_error(encoding, number + 1) from error

    def _encoding_error(self, encoding: str, line: int) -> UserError:
        """Return the error that names the first bytes that are not text; text is decoded ahead of `line`."""
        if encoding in ("utf-16", "utf-32"):
            return self.error(f"it is not complete {encoding.upper()}, as its first bytes say: save it as UTF-8", line)
        with self.open() as file:
            for number, content in enumerate(_split_lines(file), start=1):
                try:
                    content.decode("utf-8")
                except UnicodeDecodeError as error:
                    return self.error(
                        f"byte {error.start + 1} (0x{content[error.start]:02x}) is not UTF-8: save the file as UTF-8, "
                        "for example by `iconv -f WINDOWS-1252 -t UTF-8`, with the encoding that it has",
                        number,
                    )
        return self.error("it is not UTF-8: save the file as UTF-8", line)


def _split_lines(file: Any) -> Iterator[bytes]:
    for line in file:
        yield from line.rstrip(b"\n").split(b"\r") if b"\r" in line.rstrip(b"\r\n") else (line,)
