import json

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

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


def test_the_fingerprint_depends_on_the_rows_alone(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    paths = [tmp_path / "a.csv", tmp_path / "elsewhere" / "b.jsonl", tmp_path / "c.parquet"]
    first, *others = (load_splits(DataConfig(train_file=write_rows(path)), seed=0) for path in paths)
    for split in ("train", "evaluation"):
        assert {other[split]._fingerprint for other in others} == {first[split]._fingerprint}
    changed = load_splits(DataConfig(train_file=write_rows(paths[0], ROWS[1:])), seed=0)
    assert changed["train"]._fingerprint != first["train"]._fingerprint


def test_rows_are_mapped_from_the_cache_and_name_their_file(tmp_path):
    split = load_splits(DataConfig(train_file=write_rows(tmp_path / "a.csv")), seed=0)["train"]
    (file,) = split.cache_files[:1]
    assert file["filename"].startswith(str(datasets.config.HF_DATASETS_CACHE))
    assert split.info.dataset_name == "a.csv"


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(UserError, match=r"cannot be written into .*: give another folder by .* HF_DATASETS_CACHE"):
        load_splits(DataConfig(train_file=write_rows(tmp_path / "a.csv")), seed=0)


@pytest.mark.parametrize(
    ("train", "validation", "expected"),
    [
        ([{"x": 1}], [{"x": "1.0"}], (["1"], ["1.0"])),
        ([{"x": "a"}], [{"x": 5}], (["a"], ["5"])),
        ([{"x": 1}], [{"x": 1.5}], ([1.0], [1.5])),
        ([{"x": True}], [{"x": "yes"}], (["true"], ["yes"])),
        ([{"x": None}], [{"x": "a"}], ([""], ["a"])),
        ([{"x": None}], [{"x": 3}], ([None], [3])),
        ([{"x": [1]}], [{"x": ["a"]}], ([["1"]], [["a"]])),
        ([{"x": []}], [{"x": ["a"]}], ([[]], [["a"]])),
        ([{"x": {"en": "a"}}], [{"x": {"de": "b"}}], ([{"en": "a", "de": None}], [{"en": None, "de": "b"}])),
    ],
)
def test_a_column_has_one_type_in_all_files(tmp_path, train, validation, expected):
    for suffix in ("jsonl", "parquet"):
        paths = [write_rows(tmp_path / f"{name}.{suffix}", rows) for name, rows in (("a", train), ("b", validation))]
        splits = load_splits(DataConfig(train_file=paths[0], validation_file=paths[1]), seed=0)
        assert (splits["train"]["x"][:], splits["evaluation"]["x"][:]) == expected
        assert splits["train"].features == splits["evaluation"].features


def test_columns_without_a_common_type_are_refused(tmp_path):
    train, validation = write_rows(tmp_path / "a.json", [{"x": ["a"]}]), write_rows(tmp_path / "b.csv", [{"x": "a"}])
    with pytest.raises(UserError, match=r"validation_file='b.csv': the column 'x' holds single values, and in tr"):
        load_splits(DataConfig(train_file=train, validation_file=validation), seed=0)


def write_classes(path, ids, names):
    features = Features({"label": ClassLabel(names=names) if names else Value("int64")})
    Dataset.from_dict({"label": ids}, features=features).to_parquet(path)
    return str(path)


@pytest.mark.parametrize(
    ("train", "validation", "expected"),
    [
        (["no", "yes"], ["no", "yes"], ([0, 1], [1, 0])),
        (["no", "yes"], None, ([0, 1], [1, 0])),
        (["no", "yes"], ["yes", "no"], (["no", "yes"], ["no", "yes"])),
        (["no", "yes"], ["bad", "good"], (["no", "yes"], ["good", "bad"])),
    ],
)
def test_names_of_classes_are_kept_or_become_the_labels(tmp_path, train, validation, expected):
    files = (
        write_classes(tmp_path / "a.parquet", [0, 1], train),
        write_classes(tmp_path / "b.parquet", [1, 0], validation),
    )
    splits = load_splits(DataConfig(train_file=files[0], validation_file=files[1]), seed=0)
    assert (splits["train"]["label"][:], splits["evaluation"]["label"][:]) == expected
    has_names = isinstance(splits["evaluation"].features["label"], ClassLabel)
    assert has_names is isinstance(expected[0][0], int)


def test_names_of_classes_meet_texts_of_a_table(tmp_path):
    train = write_classes(tmp_path / "a.parquet", [0, 1], ["no", "yes"])
    validation = write_rows(tmp_path / "b.csv", [{"label": "yes"}])
    splits = load_splits(DataConfig(train_file=train, validation_file=validation), seed=0)
    assert (splits["train"]["label"][:], splits["evaluation"]["label"][:]) == (["no", "yes"], ["yes"])


def folder_of(tmp_path, *names):
    for index, name in enumerate(names):
        (tmp_path / "data[1]" / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(tmp_path / "data[1]" / name, ROWS[: index + 2])
    return str(tmp_path / "data[1]")


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (("train.csv", "dev.csv"), (2, 3)),
        (("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet", "test-0.parquet"), (2, 3)),
        (("my_training.tsv", "my_eval.tsv"), (2, 3)),
        (("train/a.jsonl", "train/b.jsonl", "test/c.jsonl"), (5, 4)),
        (("train.csv", "dev.csv", "notes/other.csv", ".hidden/train.csv"), (2, 3)),
        (("all.csv", "more.csv"), (4, 1)),
    ],
)
def test_a_local_folder_is_read_as_its_files_are(tmp_path, names, counts):
    splits = load_splits(DataConfig(dataset_name=folder_of(tmp_path, *names)), seed=0)
    assert (len(splits["train"]), len(splits["evaluation"])) == counts
    assert splits["train"].features["label"] == Value("string")


def test_folders_of_datasets_are_read(tmp_path):
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:3])).save_to_disk(tmp_path / "splits")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    for name, count in (("splits", 3), ("one", 2)):
        assert len(load_splits(DataConfig(dataset_name=str(tmp_path / name)), seed=0)["evaluation"]) == count


def test_a_folder_that_describes_its_files_is_read_so(tmp_path):
    folder = folder_of(tmp_path, "a.csv", "train.csv")
    (tmp_path / "data[1]").rename(tmp_path / "described")
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: a.csv\n---\n"
    (tmp_path / "described" / "README.md").write_text(readme)
    splits = load_splits(DataConfig(dataset_name=folder.replace("data[1]", "described")), seed=0)
    assert len(splits["train"]) + len(splits["evaluation"]) == 2
