import pytest
from datasets import Dataset, DatasetDict

from hf_efficient.data.columns import Columns, find_columns
from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.tasks.task import LABEL_COLUMNS, TEXT_COLUMNS


def make_splits(train, evaluation=None):
    return DatasetDict(
        train=Dataset.from_dict({name: [0] for name in train}),
        evaluation=Dataset.from_dict({name: [0] for name in evaluation or train}),
    )


def find(splits, config=None, label_columns=LABEL_COLUMNS, **options):
    return find_columns(splits, config or DataConfig(), TEXT_COLUMNS, label_columns, **options)


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (("sentence1", "sentence2", "label"), ("sentence1", "sentence2")),
        (("premise", "hypothesis", "label"), ("premise", "hypothesis")),
        (("idx", "text", "label"), ("text",)),
        (("question", "sentence", "label"), ("question", "sentence")),
    ],
)
def test_columns_with_common_names_are_found(names, texts):
    assert find(make_splits(names)) == Columns(texts, "label")


def test_columns_named_by_flags_are_used():
    config = DataConfig(text_column="a", text_pair_column="b", label_column="c")
    assert find(make_splits(("text", "label", "a", "b", "c")), config) == Columns(("a", "b"), "c")


def test_tasks_without_label_columns_have_no_label():
    assert find(make_splits(("text", "label")), label_columns=None) == Columns(("text",), None)


def test_training_data_may_lack_labels_if_they_are_not_needed():
    splits = make_splits(("text",), ("text", "label"))
    assert find(splits, needs_labels=False) == Columns(("text",), "label")
    assert find(splits, DataConfig(label_column="label"), needs_labels=False) == Columns(("text",), "label")
    assert find(make_splits(("text",)), needs_labels=False) == Columns(("text",), None)


@pytest.mark.parametrize(
    ("train", "evaluation", "fields", "message"),
    [
        (("a", "label"), None, {}, "columns a, label is the text column: give --text_column"),
        (("text", "a"), None, {}, "columns text, a is the label column: give --label_column"),
        (("text", "label"), None, {"text_column": "b"}, "text_column='b' is not a column of the data, which has text"),
        (("text",), ("text", "label"), {"label_column": "label"}, "label_column='label' is not a column of the data"),
        (("text", "label"), ("text",), {}, "the evaluation data lacks the column label of the training data"),
    ],
)
def test_missing_columns_are_refused(train, evaluation, fields, message):
    with pytest.raises(UserError, match=message):
        find(make_splits(train, evaluation), DataConfig(**fields))


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("a.csv", "the file has no header: add the line `text,label`"),
        ("a.tsv", "the file has no header: add the line `text<TAB>label`"),
        ("a.txt.gz", "the file has no header: add the line `text<TAB>label`"),
    ],
)
def test_a_table_without_a_header_is_refused_with_the_remedy(file, advice):
    splits = make_splits(("a great film", "1"))
    for options in ({}, {"text_column": "text"}):
        with pytest.raises(UserError) as refusal:
            find(splits, DataConfig(train_file=file, **options))
        assert "a great film, 1" in str(refusal.value)
        assert advice in str(refusal.value)


def test_json_has_no_header_to_advise_on():
    with pytest.raises(UserError) as refusal:
        find(make_splits(("a", "b")), DataConfig(train_file="a.json"))
    assert "header" not in str(refusal.value)
