import numpy as np
import pytest

from hf_efficient.measurement.agreement import agreement, predicted_classes

LOGITS = np.array([[0.1, 0.9], [2.0, 1.0], [0.0, 3.0]], dtype=np.float32)


def test_classes_of_texts_are_the_largest_logits():
    assert predicted_classes(LOGITS, np.array([0, 0, 1])).tolist() == [1, 0, 1]


def test_classes_of_tokens_are_those_with_labels():
    labels = np.array([[1, -100, 0]])
    assert predicted_classes(LOGITS[None], labels).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [
        (LOGITS[:, :1], np.zeros(3)),  # a regression
        (LOGITS, LOGITS),  # several labels a text
        (np.array([[3, 4]]), np.array([[3, 4]])),  # generated tokens
        ((LOGITS, LOGITS), (np.zeros(3), np.zeros(3))),  # start and end of an answer
        (None, None),
    ],
)
def test_other_predictions_have_no_classes(predictions, labels):
    assert predicted_classes(predictions, labels) is None


def test_agreement_is_the_fraction_of_equal_classes():
    assert agreement(np.array([1, 0, 1, 1]), np.array([1, 1, 1, 1])) == 0.75
    assert agreement(np.array([1]), None) is None
    assert agreement(np.array([1, 0]), np.array([1])) is None
    assert agreement(np.array([], dtype=int), np.array([], dtype=int)) is None
