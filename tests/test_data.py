import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import BertConfig

from hf_efficient.data import (
    Columns,
    DataConfig,
    find_columns,
    label_names,
    label_numbers,
    labels_are_numbers,
    load_splits,
    tokenize,
)
from hf_efficient.demo_corpus import train_tokenizer
from hf_efficient.tasks import TASKS, infer_task

TASK = TASKS["text-classification"]
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


def splits(features=None, **columns):
    data = Dataset.from_dict(columns, features=features)
    return DatasetDict(train=data, evaluation=data)


def config(*names):
    return BertConfig(id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})


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


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (("sentence1", "sentence2", "label"), ("sentence1", "sentence2")),
        (("premise", "hypothesis", "label"), ("premise", "hypothesis")),
        (("idx", "text", "label"), ("text",)),
        (("question", "sentence", "label"), ("question", "sentence")),
    ],
)
def test_usual_columns_are_found(names, texts):
    data = splits(**{name: [0] for name in names})
    assert find_columns(data, TASK, DataConfig()) == Columns(texts, "label")


def test_flags_name_columns():
    data = splits(a=["x"], b=["y"], c=[0])
    named = DataConfig(text_column="a", text_pair_column="b", label_column="c")
    assert find_columns(data, TASK, named) == Columns(("a", "b"), "c")


def test_class_names_in_another_order_are_mapped_by_name():
    features = Features({"label": ClassLabel(names=["Positive", "Negative"])})
    assert label_numbers(splits(features, label=[0, 1]), "label", config("negative", "positive")) == {0: 1, 1: 0}


def test_text_labels_are_mapped_without_regard_to_case():
    assert label_numbers(splits(label=["NO", "yes"]), "label", config("no", "yes")) == {"NO": 0, "yes": 1}


def test_numbers_stay_numbers():
    assert label_numbers(splits(label=[0, 1]), "label", config("no", "yes")) is None
    assert label_names(splits(label=[2, 0]), "label") == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert label_names(splits(label=["b", "a"]), "label") == ["a", "b"]


@pytest.mark.parametrize("missing", [None, -1])
def test_rows_without_a_label_are_refused(missing):
    with pytest.raises(ValueError, match="rows without a label"):
        label_numbers(splits(label=[0, missing]), "label", config("no", "yes"))


def test_float_labels_are_regression():
    data = splits(Features({"label": Value("float32")}), label=[0.5, 2.5])
    assert labels_are_numbers(data, "label")
    assert infer_task(BertConfig(architectures=["BertModel"]), labels_are_numbers=True).metric == "spearman"
    assert infer_task(BertConfig(architectures=["BertForSequenceClassification"]), True).metric == "accuracy"
    with pytest.raises(ValueError, match="cannot tell the task from"):
        infer_task(BertConfig(architectures=["BertForTokenClassification"]), labels_are_numbers=False)


def test_pairs_are_tokenized_together_and_cut():
    tokenizer = train_tokenizer(["one two three four five six"], 80)
    data = splits(a=["one two"], b=["three four five six"], label=["yes"])
    encoded = tokenize(data, Columns(("a", "b"), "label"), {"yes": 3}, tokenizer, max_length=8)["train"][0]
    assert encoded == {**tokenizer("one two", "three four five six", truncation=True, max_length=8), "labels": 3}
    assert len(encoded["input_ids"]) == 8
    assert set(encoded["token_type_ids"]) == {0, 1}


def test_two_sources_are_refused():
    with pytest.raises(ValueError, match="dataset_name and train_file cannot be given together"):
        DataConfig(dataset_name="films", train_file="films.csv")
