import json

import pytest
from datasets import Dataset

from hf_efficient.data.config import DataConfig
from hf_efficient.data.loading import load_splits

ROWS = [{"text": f"text {index}", "label": index % 2} for index in range(20)]


def write(path, rows=ROWS):
    """Writes rows in the format of the file's ending."""
    if path.suffix in (".json", ".jsonl"):
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    return str(path)


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, ending):
    loaded = load_splits(
        DataConfig(
            train_file=write(tmp_path / f"train.{ending}"), validation_file=write(tmp_path / f"dev.{ending}", ROWS[:5])
        ),
        seed=0,
    )
    assert loaded["train"].to_list() == ROWS
    assert loaded["evaluation"].to_list() == ROWS[:5]


def test_without_validation_data_a_tenth_is_held_out_and_never_trained_on(tmp_path):
    loaded = load_splits(DataConfig(train_file=write(tmp_path / "train.csv")), seed=0)
    assert (len(loaded["train"]), len(loaded["evaluation"])) == (18, 2)
    assert not set(loaded["train"]["text"]) & set(loaded["evaluation"]["text"])


def test_the_test_file_is_what_is_reported(tmp_path):
    files = {name: write(tmp_path / f"{name}.csv", ROWS[: index + 1]) for index, name in enumerate(("a", "b", "c"))}
    data = DataConfig(train_file=files["a"], validation_file=files["b"], test_file=files["c"])
    assert len(load_splits(data, seed=0)["evaluation"]) == 3


def test_samples_are_limited(tmp_path):
    data = DataConfig(
        train_file=write(tmp_path / "a.csv"),
        validation_file=write(tmp_path / "b.csv"),
        max_train_samples=4,
        max_eval_samples=3,
    )
    loaded = load_splits(data, seed=0)
    assert [len(loaded["train"]), len(loaded["evaluation"])] == [4, 3]


def test_two_sources_are_refused():
    with pytest.raises(ValueError, match="dataset_name and train_file cannot be given together"):
        DataConfig(dataset_name="films", train_file="films.csv")
