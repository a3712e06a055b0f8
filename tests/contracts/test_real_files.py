"""Files as people have them: what is read from each, or the sentence that refuses it."""

import csv
import gzip
import io
import json

import pytest
from datasets import Dataset

from hf_efficient.data.config import DataConfig
from hf_efficient.data.loading import load_splits
from hf_efficient.errors import UserError

ROWS = [{"text": "a good film", "label": "1"}, {"text": "a bad film", "label": "0"}]
TABLE = "text,label\na good film,1\na bad film,0\n"
TABS = TABLE.replace(",", "\t")
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Rome",
            "paragraphs": [
                {
                    "context": "Rome is old.",
                    "qas": [
                        {"id": 7, "question": "What is old?", "answers": [{"text": "Rome", "answer_start": 0}]},
                        {"id": "8", "question": "Who?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}
SQUAD_ROWS = [
    {
        "id": "7",
        "title": "Rome",
        "context": "Rome is old.",
        "question": "What is old?",
        "answers": {"text": ["Rome"], "answer_start": [0]},
    },
    {
        "id": "8",
        "title": "Rome",
        "context": "Rome is old.",
        "question": "Who?",
        "answers": {"text": [], "answer_start": []},
    },
]
MRPC = (
    "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    '1\t702876\t702977\tAmrozi called him "the witness".\t"He" was accused\r\n'
    '0\t2108705\t2108831\t"Yucaipa owned it", he said\tin 1998 for $2.5 "billion\r\n'
)
SICK = (
    "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    "1\tA group of kids\tA group of boys\t4.5\tNEUTRAL\n"
)


def parquet(rows, **options):
    buffer = io.BytesIO()
    columns = {name: [row[name] for row in rows] for name in ROWS[0]}
    Dataset.from_dict(columns, **options).to_parquet(buffer)
    return buffer.getvalue()


def quote_all(rows, delimiter="\t", quoting=csv.QUOTE_ALL):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=quoting).writerows(rows)
    return text.getvalue()


def texts(*values):
    return [{"text": value, "label": str(index)} for index, value in enumerate(values)]


def tsv(*values):
    return "text\tlabel\n" + "".join(f"{value}\t{index}\n" for index, value in enumerate(values))


# kind -> file name, content, rows that are read
READ = {
    "csv": ("a.csv", TABLE, ROWS),
    "tsv": ("a.tsv", TABS, ROWS),
    "txt": ("a.txt", TABS, ROWS),
    "upper case suffix": ("A.CSV", TABLE, ROWS),
    "json lines": ("a.jsonl", LINES, ROWS),
    "json lines named json": ("a.json", LINES, ROWS),
    "json array": ("a.json", json.dumps(ROWS), ROWS),
    "json array, indented": ("a.json", json.dumps(ROWS, indent=2), ROWS),
    "json array named jsonl": ("a.jsonl", json.dumps(ROWS), ROWS),
    "json under data": ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=1), ROWS),
    "json by columns": (
        "a.json",
        json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
        ROWS,
    ),
    "one json object of lists of words": (
        "a.json",
        json.dumps({"tokens": ["a", "b"], "ner_tags": ["O", "O"]}),
        [{"tokens": ["a", "b"], "ner_tags": ["O", "O"]}],
    ),
    "json by columns of lists of words": (
        "a.json",
        json.dumps({"tokens": [["a", "b"]], "ner_tags": [["O", "O"]]}),
        [{"tokens": ["a", "b"], "ner_tags": ["O", "O"]}],
    ),
    "one json object": ("a.json", json.dumps(ROWS[0]), ROWS[:1]),
    "blank lines in json lines": ("a.jsonl", "\n" + LINES.replace("\n", "\n\n"), ROWS),
    "json with a byte order mark": ("a.json", "\ufeff" + LINES, ROWS),
    "squad": ("a.json", json.dumps(SQUAD), SQUAD_ROWS),
    "squad, gz": ("a.json.gz", gzip.compress(json.dumps(SQUAD, indent=1).encode()), SQUAD_ROWS),
    "parquet": ("a.parquet", parquet(ROWS), ROWS),
    "csv, gz": ("a.csv.gz", gzip.compress(TABLE.encode()), ROWS),
    "tsv, gz": ("a.tsv.gz", gzip.compress(TABS.encode()), ROWS),
    "json lines, gz": ("a.jsonl.gz", gzip.compress(LINES.encode()), ROWS),
    "parquet, gz": ("a.parquet.gz", gzip.compress(parquet(ROWS)), ROWS),
    "csv, gz without its suffix": ("a.csv", gzip.compress(TABLE.encode()), ROWS),
    "brackets in the name": ("a[1].csv", TABLE, ROWS),
    "question mark in the name": ("b?.csv", TABLE, ROWS),
    "asterisks in the name": ("**.tsv", TABS, ROWS),
    "braces and spaces in the name": ("{a, b} #1%20.json", LINES, ROWS),
    "letters of other alphabets in the name": ("données_数据.csv", TABLE, ROWS),
    "a protocol in the name": ("file::a.csv", TABLE, ROWS),
    "byte order mark": ("a.csv", "\ufeff" + TABLE, ROWS),
    "utf-16": ("a.csv", TABLE.encode("utf-16"), ROWS),
    "utf-16, big endian": ("a.tsv", b"\xfe\xff" + TABS.encode("utf-16-be"), ROWS),
    "utf-32": ("a.csv", TABLE.encode("utf-32"), ROWS),
    "crlf": ("a.csv", TABLE.replace("\n", "\r\n"), ROWS),
    "cr": ("a.csv", TABLE.replace("\n", "\r"), ROWS),
    "tsv, crlf": ("a.tsv", TABS.replace("\n", "\r\n"), ROWS),
    "no end of the last line": ("a.csv", TABLE.rstrip(), ROWS),
    "blank lines": ("a.csv", TABLE.replace("\n", "\n\n"), ROWS),
    "spaces around names": ("a.csv", "text, label \n" + TABLE.partition("\n")[2], ROWS),
    "words for missing values": (
        "a.csv",
        "text,label\n" + "".join(f"{word},{word}\n" for word in ("null", "NA", "None", "nan", "N/A", "NULL", "-")),
        [{"text": word, "label": word} for word in ("null", "NA", "None", "nan", "N/A", "NULL", "-")],
    ),
    "cells that look like numbers, dates and truth values": (
        "a.tsv",
        tsv("007", "1.50", "1e5", "2020-01-01", "True", "inf", "1_000"),
        texts("007", "1.50", "1e5", "2020-01-01", "True", "inf", "1_000"),
    ),
    "empty cells": ("a.csv", "text,pair,label\n,b,0\na,,1\n", None),
    "spaces in cells": ("a.csv", "text,label\n  a  ,0\n\u2028b\x0bc\x85,1\n", texts("  a  ", "\u2028b\x0bc\x85")),
    "multi-line cells": ("a.csv", 'text,label\n"one\ntwo",0\n"three\r\nfour, ""five""",1\n', None),
    "quotes inside of cells": ("a.csv", 'text,label\na "b" c,0\n', texts('a "b" c')),
    "tsv, every cell quoted": ("a.tsv", quote_all([["text", "label"], ["a", "0"], ['b\t"c"', "1"]]), None),
    "tsv, one column quoted": ("a.tsv", tsv('"a"', '"b ""c"""'), texts("a", 'b "c"')),
    "tsv, quoted where needed": (
        "a.tsv",
        quote_all([["text", "label"], ["a", "0"], ['b "c"\nd', "1"]], quoting=csv.QUOTE_MINIMAL),
        texts("a", 'b "c"\nd'),
    ),
    "tsv, stray quotes": ("a.tsv", tsv('"a', "b", 'c"', "d", '"e" f', '"'), texts('"a', "b", 'c"', "d", '"e" f', '"')),
    "tsv, quoted texts among others": ("a.tsv", tsv('"a"', "b"), texts('"a"', "b")),
    "tsv, two stray quotes that pair up": ("a.tsv", tsv('"a', 'b"', "c"), texts('"a', 'b"', "c")),
    "index column": ("a.csv", ",text\n0,a\n", [{"Unnamed: 0": "0", "text": "a"}]),
    "a cell of 200,000 characters": ("a.csv", f"text,label\n{'a' * 200_000},0\n", texts("a" * 200_000)),
    "dates in json": ("a.jsonl", '{"text": "2020-01-01"}\n' * 2, [{"text": "2020-01-01"}] * 2),
    "json null": (
        "a.jsonl",
        '{"text": "a", "n": 1}\n{"text": null, "n": null}\n',
        [{"text": "a", "n": 1}, {"text": "", "n": None}],
    ),
    "a key that json rows lack": (
        "a.jsonl",
        '{"text": "a"}\n{"label": "b"}\n',
        [{"text": "a", "label": ""}, {"text": "", "label": "b"}],
    ),
    "numbers and texts in json": (
        "a.jsonl",
        '{"text": 1}\n{"text": "a"}\n{"text": true}\n',
        [{"text": "1"}, {"text": "a"}, {"text": "true"}],
    ),
    "large integers in json": (
        "a.jsonl",
        '{"id": 1}\n{"id": 36893488147419103232}\n',
        [{"id": "1"}, {"id": "36893488147419103232"}],
    ),
    "nested numbers and texts in json": (
        "a.jsonl",
        '{"l": [1, "a"]}\n{"l": null}\n',
        [{"l": ["1", "a"]}, {"l": None}],
    ),
    "languages": ("a.jsonl", '{"translation": {"en": "a", "de": "b"}}\n{"translation": {"en": "c"}}\n', None),
    "mrpc as published": (
        "msr_paraphrase_train.txt",
        MRPC,
        [
            {
                "Quality": "1",
                "#1 ID": "702876",
                "#2 ID": "702977",
                "#1 String": 'Amrozi called him "the witness".',
                "#2 String": '"He" was accused',
            },
            {
                "Quality": "0",
                "#1 ID": "2108705",
                "#2 ID": "2108831",
                "#1 String": '"Yucaipa owned it", he said',
                "#2 String": 'in 1998 for $2.5 "billion',
            },
        ],
    ),
    "sick as published": (
        "SICK_train.txt",
        SICK,
        [
            {
                "pair_ID": "1",
                "sentence_A": "A group of kids",
                "sentence_B": "A group of boys",
                "relatedness_score": "4.5",
                "entailment_judgment": "NEUTRAL",
            }
        ],
    ),
}
OTHER_ROWS = {
    "empty cells": [{"text": "", "pair": "b", "label": "0"}, {"text": "a", "pair": "", "label": "1"}],
    "multi-line cells": texts("one\ntwo", 'three\r\nfour, "five"'),
    "tsv, every cell quoted": texts("a", 'b\t"c"'),
    "languages": [{"translation": {"en": "a", "de": "b"}}, {"translation": {"en": "c", "de": None}}],
}


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(train, validation=None):
    return load_splits(DataConfig(train_file=train, validation_file=validation or train), seed=0)


@pytest.mark.parametrize("kind", READ)
def test_what_is_read(tmp_path, kind):
    name, content, rows = READ[kind]
    for decoy in ("a1.csv", "bc.csv", "1.csv", "x.tsv"):
        write(tmp_path, decoy, "other,columns\n1,2\n")
    path = write(tmp_path, name, content)
    assert read(path)["train"].to_list() == (rows or OTHER_ROWS[kind])


CUT_PARQUET = parquet(ROWS * 50)[:-200]
DAMAGED_PARQUET = parquet(ROWS * 50)
DAMAGED_PARQUET = DAMAGED_PARQUET[:8] + b"\xff" * 40 + DAMAGED_PARQUET[48:]
CUT_GZIP = gzip.compress(TABLE.encode() * 1000)[:-20]
DAMAGED_GZIP = gzip.compress(TABLE.encode())
DAMAGED_GZIP = DAMAGED_GZIP[:-8] + b"\0\0\0\0" + DAMAGED_GZIP[-4:]

# kind -> file name, content, parts of the sentence
REFUSED = {
    "latin-1": ("a.csv", "text,label\ngood,1\ncafé,0\n".encode("latin-1"), "line 3: byte 4 (0xe9) is not UTF-8: save"),
    "latin-1, cr": ("a.csv", "text,label\rgood,1\rcafé,0\r".encode("latin-1"), "line 3: byte 4 (0xe9) is not UTF-8"),
    "latin-1, json": ("a.jsonl", LINES.encode() + '{"text": "é"}'.encode("latin-1"), "line 3: byte 11 (0xe9) is not"),
    "latin-1, gz": ("a.tsv.gz", gzip.compress("text\né".encode("latin-1")), "line 2: byte 1 (0xe9) is not UTF-8"),
    "cut utf-8": ("a.csv", TABLE.encode() + b"\xe2\x82", "line 4: byte 1 (0xe2) is not UTF-8"),
    "cut utf-16": ("a.csv", TABLE.encode("utf-16")[:-1], "it is not complete UTF-16"),
    "utf-16 without a byte order mark": (
        "a.csv",
        TABLE.encode("utf-16-le"),
        "line 1: it holds a NUL character, as UTF-16",
    ),
    "nul": ("a.csv", TABLE + "a\0b,1\n", "line 4: it holds a NUL character"),
    "nul in json": ("a.jsonl", LINES + '{"text": "a\0b"}\n', "line 3: it holds a NUL character"),
    "only zeros": ("a.tsv", b"\0" * 100, "line 1: it holds a NUL character"),
    "too many cells": (
        "a.csv",
        "a,b\n1,2\n1,2,3,4\n",
        "line 3: the row '1,2,3,4' has 4 cells and the header 2: quote cells",
    ),
    "too few cells": ("a.csv", "a,b\n1,2\n1\n", "line 3: the row '1' has 1 cells and the header 2"),
    "too many cells behind a multi-line cell": (
        "a.csv",
        'a,b\n"1\n2",3\n1,2,3\n',
        "line 4: the row '1,2,3' has 3 cells",
    ),
    "ragged tsv": (
        "a.tsv",
        "a\tb\n1\t2\n1\t2\t3\n",
        "line 3: the row '1\\t2\\t3' has 3 cells and the header 2: replace tabs",
    ),
    "tsv with a line break and stray quotes": (
        "a.tsv",
        'a\tb\n"1\n2"\t3\n4"\t5\n',
        "line 2: the row '\"1' has 1 cells",
    ),
    "quotation mark without an end": (
        "a.csv",
        'a,b\n1,2\n"3,4\n5,6\n',
        "line 3: the quotation mark that begins a cell has no end",
    ),
    "text behind a quoted cell": (
        "a.csv",
        'a,b\n"1" c,2\n',
        "line 2: a quoted cell goes on behind its quotation mark",
    ),
    "escaped quotation marks": (
        "a.csv",
        'a,b\n"1 \\"c\\"",2\n',
        "line 2: a quoted cell goes on behind its quotation mark",
    ),
    "duplicate columns": ("a.csv", "text,label,text\na,b,c\n", "line 1: the column 'text' exists twice"),
    "only a header": ("a.csv", "text,label\n", "it has a header and no rows"),
    "only a header, tsv": ("a.tsv", "text\tlabel", "it has a header and no rows"),
    "only blank lines": ("a.csv", "\n\n\n", "it has no rows"),
    "only a byte order mark": ("a.csv", b"\xef\xbb\xbf", "it has no rows"),
    "empty gz": ("a.csv.gz", gzip.compress(b""), "it has no rows"),
    "empty json": ("a.json", "  \n", "it has no rows"),
    "empty array": ("a.json", "[]", "it has no rows"),
    "empty data": ("a.json", '{"data": []}', "it has no rows"),
    "empty parquet": ("a.parquet", parquet([]), "it has no rows"),
    "semicolons": (
        "a.csv",
        "text;label\na;1\n",
        "'text;label' is one column, and has semicolons: separate the columns by commas",
    ),
    "tabs in a csv": ("a.csv", TABS, "is one column, and has tabs: separate the columns by commas, or give"),
    "commas in a tsv": ("a.tsv", TABLE, "is one column, and has commas: separate the columns by tabs"),
    "commas in a txt": ("a.txt", TABLE, "is one column, and has commas: separate the columns by tabs"),
    "cut json": ("a.json", json.dumps(ROWS, indent=1)[:-4], "line 9: it is not JSON"),
    "broken json line": ("a.jsonl", LINES + '{"text": "a",}\n' + LINES, "line 3: it is not JSON"),
    "broken json line, named json": ("a.json", LINES + '{"text": "a\n', "line 3: it is not JSON"),
    "broken first line": ("a.jsonl", '{"text" "a"}\n' + LINES, "line 1: it is not JSON"),
    "single quotes in json": ("a.json", "[{'text': 'a'}]", "line 1: it is not JSON"),
    "a line that is a list": (
        "a.jsonl",
        LINES + "[1, 2]\n",
        "line 3: it is an array, not an object: give one object a line",
    ),
    "array of texts": ("a.json", '["a", "b"]', "row 1 is a text, not an object"),
    "array with a null": ("a.json", '[{"a": 1}, null]', "row 2 is null, not an object"),
    "json number": ("a.json", "5", "it is a number, not an array of objects"),
    "data without rows": ("a.json", '{"data": "elsewhere"}', "it is a text, not an array of objects"),
    "written by columns": ("a.json", '{"text": {"0": "a", "1": "b"}}', "it is written column by column"),
    "columns of different length": (
        "a.json",
        '{"text": ["a", "b"], "label": [0]}',
        "it is written column by column, and 'text' has 2 values, 'label' has 1 values",
    ),
    "deep brackets": ("a.json", "[" * 100_000, "it is not JSON that can be read"),
    "lists and texts": (
        "a.jsonl",
        '{"l": ["a"]}\n{"l": "a"}\n',
        "row 2, column 'l': a single value, where other rows have a list",
    ),
    "objects and lists": (
        "a.json",
        '[{"l": {"a": 1}}, {"l": [1]}]',
        "row 2, column 'l': a list, where other rows have an object",
    ),
    "half a surrogate pair": (
        "a.jsonl",
        '{"t": "a"}\n{"t": "\\ud83d"}\n',
        "row 2, column 't': half of a surrogate pair, '\\ud83d'",
    ),
    "squad without questions": (
        "a.json",
        '{"data": [{"paragraphs": [{"context": "a"}]}]}',
        "article 1 is not nested as in SQuAD",
    ),
    "no parquet": ("a.parquet", "text,label\n", "it is not a Parquet file, or damaged"),
    "cut parquet": ("a.parquet", CUT_PARQUET, "it is not a Parquet file, or damaged"),
    "damaged parquet": ("a.parquet", DAMAGED_PARQUET, "it is not a Parquet file, or damaged"),
    "parquet named csv": ("a.csv", parquet(ROWS), "it is a Parquet file: give it the suffix .parquet"),
    "cut gz": ("a.csv.gz", CUT_GZIP, "it is damaged or incomplete"),
    "cut gz of json": ("a.jsonl.gz", gzip.compress(LINES.encode() * 100)[:-12], "it is damaged or incomplete"),
    "cut gz of parquet": ("a.parquet.gz", gzip.compress(parquet(ROWS))[:-12], "it is damaged or incomplete"),
    "damaged gz": ("a.csv.gz", DAMAGED_GZIP, "it is damaged or incomplete"),
    "no gz": ("a.csv.gz", TABLE, "it is not compressed by gzip, as its suffix says"),
    "excel": ("a.csv", b"PK\x03\x04\x14\0", "it is a zip archive or an Excel workbook"),
    "web page": ("a.json", "<!DOCTYPE html><html>", "it is a web page, not the data"),
    "pointer of git lfs": ("a.csv", "version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
    "bzip2": ("a.csv", b"BZh91AY&SY", "it is compressed by bzip2"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(tmp_path, kind):
    name, content, sentence = REFUSED[kind]
    good = write(tmp_path, "good.csv", TABLE)
    with pytest.raises(UserError) as refusal:
        read(good, write(tmp_path, name, content))
    assert str(refusal.value).startswith(f"validation_file={name!r}")
    assert sentence in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)


def test_a_stray_quotation_mark_swallows_no_row(tmp_path):
    values = [f'"text {index}' if index % 7 == 0 else f"text {index}" for index in range(40)]
    assert read(write(tmp_path, "a.tsv", tsv(*values)))["train"]["text"][:] == values
