"""Plain text files, with a text in each line."""

import gzip

import pytest

from hf_efficient.data.config import DataConfig
from hf_efficient.data.loading import load_splits
from hf_efficient.errors import UserError


def load(path, plain_text=True):
    return load_splits(DataConfig(train_file=str(path), validation_file=str(path)), 0, plain_text)["train"]


def test_each_line_is_a_text(tmp_path):
    lines = 'one\n  two, "three"  \r\n\nfour\n'
    (tmp_path / "a.txt").write_text(lines)
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write(lines)
    for name in ("a.txt", "a.txt.gz"):
        assert load(tmp_path / name)["text"][:] == ["one", 'two, "three"', "four"]


def test_a_table_stays_one(tmp_path):
    (tmp_path / "a.txt").write_text("text\tlabel\none\t1\n")
    assert load(tmp_path / "a.txt").column_names == ["text", "label"]
    (tmp_path / "b.txt").write_text("text\none\n")
    assert load(tmp_path / "b.txt", plain_text=False)["text"][:] == ["one"]


def test_a_file_without_texts_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(UserError, match="has no texts"):
        load(tmp_path / "a.txt")
