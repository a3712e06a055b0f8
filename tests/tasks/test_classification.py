import numpy as np
import pytest
from transformers import BertConfig, EvalPrediction

from hf_efficient.data.columns import Columns
from hf_efficient.tasks import TASKS


def test_lists_of_labels_become_one_hot_vectors(make_splits, encode):
    splits = make_splits([{"text": "the cat", "labels": ["b", "c"]}, {"text": "the dog", "labels": []}])
    classes = TASKS["multi-label-classification"].find_classes(splits, Columns(("text",), "labels"))
    assert classes.names == ("b", "c")
    config = BertConfig(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    label_to_id = classes.ids(["a", "b", "c"])
    tokenized, _ = encode("multi-label-classification", splits, config=config, label_to_id=label_to_id)
    assert tokenized["train"]["labels"][:] == [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


def test_multi_label_metrics_count_labels_and_complete_rows():
    compute_metrics = TASKS["multi-label-classification"].build_compute_metrics(None, None, None, None)
    logits, labels = np.array([[1.0, -1, 2], [-1, -1, 3]]), np.array([[1.0, 0, 1], [0, 1, 1]])
    # micro: 3 of 3 predictions are right, of 4 labels; F1 of the three classes: 1, 0, 1
    assert compute_metrics(EvalPrediction(logits, labels)) == pytest.approx(
        {"f1": 6 / 7, "f1_macro": 2 / 3, "accuracy": 0.5}
    )
