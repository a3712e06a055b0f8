import json

import pytest
from datasets import Dataset

from hf_efficient.data.config import DataConfig
from hf_efficient.data.loading import load_splits
from hf_efficient.errors import UserError

ROWS = [{"text": f"text {index}", "label": str(index % 2)} for index in range(20)]


def write_rows(path, rows=ROWS):
    """Write rows in the format of the file's suffix, and return the path as a text."""
    if path.suffix in (".json", ".jsonl"):
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path, suffix):
    train, validation = tmp_path / f"train.{suffix}", tmp_path / f"dev.{suffix}"
    config = DataConfig(train_file=write_rows(train), validation_file=write_rows(validation, ROWS[:5]))
    splits = load_splits(config, seed=0)
    assert splits["train"].to_list() == ROWS
    assert splits["evaluation"].to_list() == ROWS[:5]


def test_a_tenth_of_the_training_rows_is_held_out_without_validation_data(tmp_path):
    splits = load_splits(DataConfig(train_file=write_rows(tmp_path / "train.csv")), seed=0)
    assert (len(splits["train"]), len(splits["evaluation"])) == (18, 2)
    assert not set(splits["train"]["text"]) & set(splits["evaluation"]["text"])


def test_a_single_row_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match="has 1 row, which leaves none to evaluate on: give --validation_file"):
        load_splits(DataConfig(train_file=write_rows(tmp_path / "train.csv", ROWS[:1])), seed=0)


def test_the_test_file_is_evaluated_on_if_given(tmp_path):
    train, validation, test = (write_rows(tmp_path / f"{count}.csv", ROWS[:count]) for count in (1, 2, 3))
    config = DataConfig(train_file=train, validation_file=validation, test_file=test)
    assert len(load_splits(config, seed=0)["evaluation"]) == 3


def test_numbers_of_samples_are_limited(tmp_path):
    train, validation = write_rows(tmp_path / "a.csv"), write_rows(tmp_path / "b.csv")
    config = DataConfig(train_file=train, validation_file=validation, max_train_samples=4, max_eval_samples=3)
    splits = load_splits(config, seed=0)
    assert (len(splits["train"]), len(splits["evaluation"])) == (4, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bytes.csv", b"a,b\n\xff\xfa,1\n", r"'bytes.csv', line 2: byte 1 \(0xff\) is not UTF-8"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3,4\n", "'ragged.csv', line 3: the row '1,2,3,4' has 4 cells and the header 2"),
        ("header.csv", b"text,label\n", "'header.csv': it has a header and no rows"),
        ("text.parquet", b"not parquet", "'text.parquet': it is not a Parquet file"),
        ("broken.json", b"{ not json", "'broken.json', line 1: it is not JSON"),
    ],
)
def test_unreadable_files_are_refused_with_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"train_file={message}"):
        load_splits(DataConfig(train_file=str(tmp_path / name)), seed=0)


def test_a_dataset_that_cannot_be_reached_is_refused():
    with pytest.raises(UserError, match=r"dataset 'nobody/films/small' cannot be loaded: .*Check --dataset_name"):
        load_splits(DataConfig(dataset_name="nobody/films", dataset_config_name="small"), seed=0)


def test_a_folder_without_data_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot be loaded: .*doesn't contain any data files"):
        load_splits(DataConfig(dataset_name=str(tmp_path)), seed=0)


def test_missing_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="no data given: give --dataset_name, or --train_file and --validation_file"):
        load_splits(DataConfig(), seed=0)
    with pytest.raises(UserError, match="there is no training data, only validation: give --train_file"):
        load_splits(DataConfig(validation_file=write_rows(tmp_path / "dev.csv")), seed=0)
