import pytest

from hf_efficient.data.config import DataConfig
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


def test_title_of_a_local_dataset_folder_is_its_last_part(tmp_path):
    (tmp_path / "films").mkdir()
    assert DataConfig(dataset_name=str(tmp_path / "films")).title == "films"


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
