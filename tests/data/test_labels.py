import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import BertConfig

from hf_efficient.data.labels import label_ids, label_names, labels_are_lists, labels_are_numbers
from hf_efficient.errors import UserError


def make_splits(labels, feature=None):
    data = Dataset.from_dict({"label": labels}, features=feature and Features({"label": feature}))
    return DatasetDict(train=data, evaluation=data)


def make_config(*names):
    return BertConfig(id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})


def test_class_names_in_another_order_are_matched_by_name():
    splits = make_splits([0, 1], ClassLabel(names=["Positive", "Negative"]))
    assert label_ids(splits, "label", make_config("negative", "positive")) == {0: 1, 1: 0}


def test_text_labels_are_matched_without_regard_to_case():
    assert label_ids(make_splits(["NO", "yes"]), "label", make_config("no", "yes")) == {"NO": 0, "yes": 1}


def test_integer_labels_are_ids_already():
    assert label_ids(make_splits([0, 1]), "label", make_config("no", "yes")) is None


def test_names_of_integer_and_text_labels():
    assert label_names(make_splits([2, 0]), "label") == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert label_names(make_splits(["b", "a"]), "label") == ["a", "b"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None], r"rows without a label \(None in column 'label'\)"),
        ([0, -1], r"rows without a label \(-1 in column 'label'\)"),
        ([0, 2], r"holds the labels 2, the model has only 0 to 1 \(no, yes\)"),
        (["yes", "maybe"], "holds the labels 'maybe', which the model does not have; its labels are no, yes"),
        (list("abcdefg"), "holds the labels 'a', 'b', 'c', 'd', 'e', ..., which"),
    ],
)
def test_missing_and_unknown_labels_are_refused(labels, message):
    with pytest.raises(UserError, match=message):
        label_ids(make_splits(labels), "label", make_config("no", "yes"))


def test_kind_of_labels():
    numbers, lists, names = make_splits([0.5, 2.5], Value("float32")), make_splits([["a"], []]), make_splits(["a"])
    assert [labels_are_numbers(splits, "label") for splits in (numbers, lists, names)] == [True, False, False]
    assert [labels_are_lists(splits, "label") for splits in (numbers, lists, names)] == [False, True, False]
