import copy
import re

import pytest
import torch
from torch import nn

from hf_efficient.distillation.activations import HIDDEN, KEYS
from hf_efficient.distillation.teacher import Teacher
from hf_efficient.models.inputs import is_label


def test_teachers_stay_frozen_and_in_eval_mode(make_model):
    models = [make_model().train(), make_model(seed=1).train()]
    teacher = Teacher(models, [0.5, 0.5])
    assert nn.Sequential(teacher).train() is not None
    assert teacher.train() is teacher
    assert list(teacher.models) == models
    assert not any(module.training for model in models for module in model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_gives_the_same_answer_every_time_and_without_a_graph(make_model, make_batch):
    teacher = Teacher([make_model(hidden_dropout_prob=0.5)]).train()
    first, second = (teacher.predict(make_batch(labelled=True), [(HIDDEN, "encoder.1")]) for _ in range(2))
    assert torch.equal(first[0]["logits"], second[0]["logits"])
    assert not first[0]["logits"].requires_grad
    assert not first[1][HIDDEN, "encoder.1"].requires_grad


def test_a_teacher_in_another_precision_is_a_copy(make_model, make_batch):
    model = make_model().train()
    before = copy.deepcopy(model.state_dict())
    teacher = Teacher([model], dtype=torch.bfloat16)
    assert teacher.model is not model
    assert teacher.predict(make_batch())[0]["logits"].dtype == torch.bfloat16
    assert model.training
    assert model.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_teacher_in_its_own_precision_is_no_copy(make_model, dtype):
    model = make_model()
    assert Teacher([model], dtype=dtype).model is model


@pytest.mark.parametrize(
    "head", ["BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering"]
)
def test_several_teachers_answer_with_the_weighted_mean_of_their_logits(make_model, make_batch, head):
    models, batch = [make_model(head, seed=seed) for seed in range(3)], make_batch(head, labelled=True)
    found, _ = Teacher(models, [0.5, 0.3, 0.2]).predict(batch)
    assert found.keys() == ({"start_logits", "end_logits"} if "Question" in head else {"logits"})
    for name, value in found.items():
        given = [model(**batch)[name].detach() for model in models]
        torch.testing.assert_close(value, 0.5 * given[0] + 0.3 * given[1] + 0.2 * given[2])
        assert (given[0] - given[1]).abs().min() > 0


def test_a_teacher_of_other_size_answers_with_the_rest(make_model, make_batch):
    small, batch = make_model(seed=1, num_hidden_layers=1, hidden_size=16), make_batch()
    other, large = make_model("RobertaForSequenceClassification"), make_model()
    found, _ = Teacher([large, small], [0.9, 0.1]).predict(batch)
    torch.testing.assert_close(found["logits"], 0.9 * large(**batch).logits + 0.1 * small(**batch).logits)
    assert Teacher([large, other], [0.5, 0.5]).head_outputs.outputs == ("logits",)


def test_teachers_and_weights_must_be_as_many(make_model, make_batch):
    with pytest.raises(ValueError, match="zip"):
        Teacher([make_model(), make_model()], [1.0]).predict(make_batch())


@pytest.mark.parametrize(
    ("changes", "head"),
    [
        ({}, "BertForTokenClassification"),
        ({"problem_type": "multi_label_classification"}, "BertForSequenceClassification"),
        ({}, "BertModel"),
    ],
    ids=["another head", "another problem", "no head"],
)
def test_teachers_that_answer_different_things_are_refused(make_model, changes, head):
    message = f"need one kind of task head, these are BertForSequenceClassification, {head}"
    with pytest.raises(ValueError, match=re.escape(message)):
        Teacher([make_model(), make_model(head, **changes)], [0.5, 0.5])


def seen_by(model):
    seen = {}
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    return seen


@pytest.mark.parametrize(
    "head",
    [
        "BertForSequenceClassification",
        "BertForMaskedLM",
        "DistilBertForQuestionAnswering",
        "T5ForSequenceClassification",
    ],
)
def test_labels_are_not_shown_to_the_teacher(make_model, make_batch, head):
    model = make_model(head)
    seen, batch = seen_by(model), make_batch(head, labelled=True)
    Teacher([model]).predict({**batch, "label_ids": torch.zeros(3)})
    assert seen.keys() == make_batch(head).keys()
    assert all(is_label(name) for name in batch.keys() - seen.keys())


def test_a_decoder_is_shown_the_labels_that_it_reads(make_model, make_batch):
    model = make_model("T5ForConditionalGeneration")
    seen, batch = seen_by(model), make_batch("T5ForConditionalGeneration", labelled=True)
    found, _ = Teacher([model]).predict(batch)
    assert torch.equal(seen["labels"], batch["labels"])
    assert torch.equal(found["logits"], model(**batch).logits)


def test_a_headless_teacher_answers_nothing_and_shows_what_is_inside(make_model, make_batch):
    model, batch = make_model("BertModel"), make_batch()
    found, signals = Teacher([model]).predict(batch, [(HIDDEN, "encoder.2"), (KEYS, "encoder.0")])
    assert found == {}
    assert torch.equal(signals[HIDDEN, "encoder.2"], model(**batch).last_hidden_state)
    assert signals[KEYS, "encoder.0"].shape == (3, 9, 32)


def test_the_teacher_is_asked_in_its_own_tokens_and_answers_in_the_students(make_model, make_batch):
    model = make_model("BertForMaskedLM")
    kept = torch.tensor([0, 99, 3, 50, 7, 20])
    teacher = Teacher([model], token_ids=kept)
    ours = torch.tensor([[1, 2, 5], [3, 4, 0]])
    batch = {"input_ids": ours, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    before = ours.clone()
    found, _ = teacher.predict(batch)
    theirs = torch.tensor([[99, 3, 20], [50, 7, 0]])
    expected = model(theirs, attention_mask=batch["attention_mask"]).logits[..., kept]
    torch.testing.assert_close(found["logits"], expected)
    assert torch.equal(ours, before)


def test_ignored_labels_stay_ignored_in_the_teachers_tokens(make_model):
    model = make_model("T5ForConditionalGeneration")
    seen, kept = seen_by(model), torch.tensor([0, 1, 30, 40])
    batch = {"input_ids": torch.tensor([[2, 3, 1]]), "labels": torch.tensor([[3, 1, -100]])}
    found, _ = Teacher([model], token_ids=kept).predict(batch)
    assert seen["input_ids"].tolist() == [[30, 40, 1]]
    assert seen["labels"].tolist() == [[40, 1, -100]]
    assert found["logits"].shape == (1, 3, 4)


def test_logits_over_labels_are_not_taken_for_tokens(make_model, make_batch):
    model, batch = make_model(), make_batch()
    found, _ = Teacher([model], token_ids=torch.arange(100)).predict(batch)
    assert torch.equal(found["logits"], model(**batch).logits)


def test_a_text_as_long_as_the_vocabulary_is_not_taken_for_tokens(make_model):
    model = make_model("BertForQuestionAnswering", vocab_size=30)
    ids = torch.randint(1, 30, (2, 30), generator=torch.Generator().manual_seed(0))
    found, _ = Teacher([model], token_ids=torch.tensor([0, *range(29, 0, -1)])).predict({"input_ids": ids})
    torch.testing.assert_close(found["start_logits"], model(30 - ids).start_logits)
