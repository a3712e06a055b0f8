import numpy as np
from datasets import ClassLabel, Features, List, Value
from transformers import BertConfig, EvalPrediction

from hf_efficient.data.columns import Columns
from hf_efficient.tasks import TASKS

TAGS = ["O", "B-person", "I-person", "B-place"]


def test_only_the_first_token_of_a_word_has_a_label(make_splits, encode, tokenizer):
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=TAGS))})
    splits = make_splits([{"tokens": ["anna", "wolfgang", "ran", "berlin"], "ner_tags": [1, 2, 0, 3]}], features)
    config = BertConfig(id2label=dict(enumerate(TAGS)), label2id={name: index for index, name in enumerate(TAGS)})
    classes = TASKS["token-classification"].find_classes(splits, Columns(("tokens",), "ner_tags"))
    assert list(classes.names) == TAGS
    tokenized, _ = encode("token-classification", splits, config=config, label_to_id=classes.ids(TAGS))
    row = tokenized["train"][0]
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert sum(token.startswith("##") for token in tokens) >= 1
    labelled = [(token, label) for token, label in zip(tokens, row["labels"], strict=True) if label != -100]
    assert [label for _, label in labelled] == [1, 2, 0, 3]
    assert not any(token.startswith("##") or token.startswith("[") for token, _ in labelled)


def test_metrics_count_complete_entities():
    config = BertConfig(id2label=dict(enumerate(TAGS)))
    labels = np.array([[-100, 1, 2, 0, 3, -100]])
    predicted = np.array([[0, 1, 0, 0, 3, 2]])  # the person is cut short, the place is right
    compute_metrics = TASKS["token-classification"].build_compute_metrics(None, None, None, config)
    metrics = compute_metrics(EvalPrediction(np.eye(4)[predicted], labels))
    assert metrics == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.75}
