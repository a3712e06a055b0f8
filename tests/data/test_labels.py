import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_efficient.data.label_checks import check_classes
from hf_efficient.data.labels import find_classes, label_kind
from hf_efficient.errors import UserError


def make_splits(labels, feature=None, evaluation=None):
    features = feature and Features({"label": feature})
    train, other = (Dataset.from_dict({"label": rows}, features=features) for rows in (labels, evaluation or labels))
    return DatasetDict(train=train, evaluation=other)


def find_ids(splits, *names):
    return find_classes(splits, "label").ids(names)


def test_class_names_in_another_order_are_matched_by_name():
    splits = make_splits([0, 1], ClassLabel(names=["Positive", "Negative"]))
    assert find_ids(splits, "negative", "positive") == {0: 1, 1: 0}


def test_text_labels_are_matched_without_regard_to_case():
    assert find_ids(make_splits(["NO", "yes"]), "no", "yes") == {"NO": 0, "yes": 1}


def test_integer_labels_are_ids_already():
    assert find_ids(make_splits([0, 1]), "no", "yes") == {0: 0, 1: 1}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None], r"row 2 of the training data has no label \(None in column 'label'\)"),
        (["yes", " "], r"row 2 of the training data has no label \(' ' in column 'label'\)"),
        ([-1, -1], r"the training data has rows without a label \(-1 in column 'label', in all of them\)"),
        ([0, 2], r"holds the labels 2, which the model does not have; .* the model has 2, 0 to 1: no, yes"),
        (["yes", "maybe"], r"holds the labels 'maybe', which the model does not have; .* 0 to 1: no, yes"),
        (list("abcdefg"), "holds the labels 'a', 'b', 'c', 'd', 'e', ..., which"),
        (["yes", "Yes", "no", "NO"], None),
    ],
)
def test_missing_and_unknown_labels_are_refused(labels, message):
    if message is None:
        assert find_ids(make_splits(labels), "no", "yes") == {"yes": 1, "Yes": 1, "no": 0, "NO": 0}
        return
    with pytest.raises(UserError, match=message):
        find_ids(make_splits(labels), "no", "yes")


def test_kind_of_labels():
    numbers, lists, names = make_splits([0.5, 2.5], Value("float32")), make_splits([["a"], []]), make_splits(["a"])
    assert [label_kind(splits, "label") for splits in (numbers, lists, names)] == ["numbers", "lists", "classes"]


def test_what_cannot_be_learned_is_said(caplog):
    with pytest.raises(UserError, match="column 'label' has one class only, 'a'"):
        check_classes(find_classes(make_splits(["a", "a"]), "label"), has_head=False)
    check_classes(find_classes(make_splits(["a", "a"]), "label"), has_head=True)
    check_classes(find_classes(make_splits(["a", "b"], evaluation=["c", "a"]), "label"), has_head=False)
    check_classes(find_classes(make_splits([0, 1], ClassLabel(names=list("abc"))), "label"), has_head=False)
    messages = "\n".join(caplog.messages)
    assert "all training rows have the label 'a'" in messages
    assert "no training row has the labels 'c', which the evaluation data has" in messages
    assert "no row has the labels 'c'" in messages
