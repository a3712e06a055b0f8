from pathlib import Path

import pytest

from hf_efficient.data.config import DataConfig, file_format
from hf_efficient.errors import UserError


@pytest.mark.parametrize(
    ("fields", "title"),
    [
        ({"dataset_name": "nyu-mll/glue"}, "nyu-mll/glue"),
        ({"dataset_name": "nyu-mll/glue", "dataset_config_name": "sst2"}, "nyu-mll/glue/sst2"),
        ({"train_file": "/home/me/films/train.csv", "validation_file": "dev.csv"}, "train.csv"),
        ({"validation_file": "/home/me/dev.csv"}, "dev.csv"),
        ({"train_file": "/home/me/train.csv", "dataset_title": "film reviews"}, "film reviews"),
        ({"dataset_name": "nyu-mll/glue", "dataset_title": "SST-2"}, "SST-2"),
    ],
)
def test_title_names_the_data_without_its_folder(fields, title):
    assert DataConfig(**fields).title == title


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("{home}/films", "films"),
        ("{home}/films/", "films"),
        ("~/films", "films"),
        ("films", "films"),
        ("./films", "films"),
        ("../me/films", "films"),
        ("films/inner/..", "films"),
        ("link", "link"),
        ("~", "data"),
        (".", "data"),
        ("{home}", "data"),
    ],
)
def test_reports_name_a_folder_without_those_it_lies_in(tmp_path, monkeypatch, name, title):
    home = tmp_path / "me"
    (home / "films" / "inner").mkdir(parents=True)
    (home / "secret-of-me").mkdir()
    (home / "link").symlink_to(home / "secret-of-me")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    config = DataConfig(dataset_name=name.format(home=home))
    assert (config.title, config.public_values()["dataset_name"]) == (title, None)
    assert config.folder.is_dir()


def test_reports_name_files_without_their_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    values = DataConfig(train_file="~/me/a.csv", test_file=str(tmp_path / "b.csv"), max_length=9).public_values()
    assert (values["train_file"], values["validation_file"], values["test_file"]) == ("a.csv", None, "b.csv")
    assert values["max_length"] == 9
    assert str(tmp_path) not in str(values)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert DataConfig(train_file="~/a.csv").files == {"train": tmp_path / "a.csv"}


def test_names_on_the_hub_are_no_folders():
    config = DataConfig(dataset_name="nyu-mll/glue", dataset_config_name="sst2")
    assert config.folder is None
    assert config.public_values()["dataset_name"] == "nyu-mll/glue"


def test_a_file_is_no_dataset_name(tmp_path):
    (tmp_path / "a.csv").write_text("text\na\n")
    with pytest.raises(UserError, match="is a file: give it as --train_file"):
        DataConfig(dataset_name=str(tmp_path / "a.csv")).check_files()


@pytest.mark.parametrize("field", ["dataset_name", "train_file", "validation_file", "test_file"])
def test_any_source_counts_as_given(field):
    assert DataConfig(**{field: "films.csv"}).is_given
    assert not DataConfig().is_given


def test_two_sources_are_refused():
    with pytest.raises(UserError, match="dataset_name and train_file cannot be given together: choose one source"):
        DataConfig(dataset_name="films", train_file="films.csv")


@pytest.mark.parametrize("field", ["max_length", "max_target_length", "max_train_samples", "max_eval_samples"])
def test_numbers_below_one_are_refused(field):
    with pytest.raises(UserError, match=f"{field}=0 must be at least 1"):
        DataConfig(**{field: 0})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.csv", None, "validation_file='.*missing.csv' does not exist"),
        ("rows.xlsx", "a,b", "validation_file='rows.xlsx' has an unknown suffix: give one of .csv, .tsv, .txt, .json"),
        ("rows.csv", "", "validation_file='rows.csv' is empty"),
    ],
)
def test_unusable_files_are_refused(tmp_path, name, content, message):
    (tmp_path / "train.csv").write_text("text,label\na,0\n")
    if content is not None:
        (tmp_path / name).write_text(content)
    config = DataConfig(train_file=str(tmp_path / "train.csv"), validation_file=str(tmp_path / name))
    with pytest.raises(UserError, match=message):
        config.check_files()


def test_a_directory_is_no_file(tmp_path):
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(UserError, match=r"rows.csv' is a directory: give a file, or the directory as --dataset_name"):
        DataConfig(train_file=str(tmp_path / "rows.csv")).check_files()


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.csv", "csv"),
        ("a.TSV.GZ", "tsv"),
        ("a.b.txt", "tsv"),
        ("a.json.gz", "json"),
        ("a.jsonl", "json"),
        ("a.parquet", "parquet"),
        ("a.gz", None),
        ("csv", None),
        ("a.csv.zip", None),
    ],
)
def test_the_suffix_says_the_format(name, format):
    assert file_format(Path(name)) == format
