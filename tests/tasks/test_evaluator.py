import dataclasses

import pytest
import torch
from transformers import BertConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.measurement import latency
from hf_efficient.tasks import TASKS
from hf_efficient.tasks.evaluator import TaskEvaluator

CONFIG = BertConfig(id2label={0: "animal", 1: "place"}, label2id={"animal": 0, "place": 1})
TEXTS = ["cat", "dog", "berlin", "park", "the cat", "the dog ran", "in berlin"]
LABELS = ["animal", "animal", "place", "place", "animal", "animal", "place"]


@pytest.fixture
def splits(make_splits):
    return make_splits([{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)] * 10)


def build(splits, tokenizer, task="text-classification", **options):
    return TaskEvaluator.from_splits(splits, CONFIG, tokenizer, TASKS[task], DataConfig(), 5, **options)


def test_predictions_of_all_batches_are_compared_with_the_labels(splits, tokenizer):
    places = tokenizer.convert_tokens_to_ids(["berlin", "park"])

    def classify(input_ids, **_):
        is_place = torch.isin(input_ids, torch.tensor(places)).any(dim=1)
        return SequenceClassifierOutput(logits=torch.stack([~is_place, is_place], dim=1).double())

    evaluator = build(splits, tokenizer)
    assert evaluator.metrics(classify) == {"accuracy": 1.0, "f1": 1.0}
    animals = evaluator.metrics(
        lambda input_ids, **_: SequenceClassifierOutput(logits=torch.tensor([[1.0, 0.0]]).repeat(len(input_ids), 1))
    )
    assert animals["accuracy"] == pytest.approx(4 / 7)


def test_batches_hold_texts_of_similar_length_and_metrics_see_the_order_of_the_data(splits, tokenizer):
    evaluator = build(splits, tokenizer)
    rows, lengths, seen = evaluator.tokenized_splits["evaluation"], [], []

    def classify(input_ids, attention_mask, **_):
        lengths.extend(attention_mask.sum(dim=1).tolist())
        return SequenceClassifierOutput(logits=torch.stack([input_ids[:, 1], input_ids.sum(dim=1)], dim=1).float())

    task = dataclasses.replace(evaluator.task, build_compute_metrics=lambda *_: lambda each: seen.append(each) or {})
    dataclasses.replace(evaluator, task=task).metrics(classify)
    assert lengths == [5] * 10 + [4] * 20 + [3] * 40
    assert seen[0].label_ids.tolist() == rows["labels"][:]
    assert seen[0].predictions.tolist() == [[ids[1], sum(ids)] for ids in rows["input_ids"]]


def test_throughput_is_measured_on_batches_of_all_lengths(splits, tokenizer, monkeypatch):
    monkeypatch.setattr(latency, "THROUGHPUT_TEXTS", 64)
    evaluator, calls = build(splits, tokenizer), []
    batches = evaluator.sample_batches()
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(32, 5), (6, 3)]  # of three
    evaluator.predict(lambda **inputs: calls.append(inputs) or {"logits": torch.zeros(1)}, batches)
    assert [call.keys() for call in calls] == [{"input_ids", "token_type_ids", "attention_mask"}] * 2


def test_calibration_batches_hold_few_training_rows_and_no_raw_columns(splits, tokenizer):
    (batch,) = build(splits, tokenizer).calibration_batches()
    assert batch["input_ids"].shape[0] == 5
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}


def test_masked_tokens_are_the_same_for_every_model(splits, tokenizer, make_model):
    first, second = (build(splits, tokenizer, "fill-mask") for _ in range(2))
    assert first.tokenized_splits["evaluation"][:] == second.tokenized_splits["evaluation"][:]
    metrics = first.metrics(make_model("BertForMaskedLM", vocab_size=200))
    assert metrics["perplexity"] > 1


def test_labels_that_the_model_lacks_are_refused(make_splits, tokenizer):
    splits = make_splits([{"text": "cat", "label": "plant"}])
    with pytest.raises(UserError, match="holds the labels 'plant', which the model does not have"):
        build(splits, tokenizer)
