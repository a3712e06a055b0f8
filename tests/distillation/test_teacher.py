import copy
import re

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from hf_efficient.distillation.activations import HIDDEN, KEYS
from hf_efficient.distillation.teacher import Teacher, load_teacher
from hf_efficient.models.inputs import is_label


def test_teachers_stay_frozen_and_in_eval_mode(make_model):
    models = [make_model().train(), make_model(seed=1).train()]
    teacher = Teacher(models, [0.5, 0.5])
    assert nn.Sequential(teacher).train() is not None
    assert teacher.train() is teacher
    assert list(teacher.models) == models
    assert not any(module.training for model in models for module in model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_predictions_are_deterministic_and_without_gradients(make_model, make_batch):
    teacher = Teacher([make_model(hidden_dropout_prob=0.5)]).train()
    first, second = (teacher.predict(make_batch(labelled=True), [(HIDDEN, "encoder.1")]) for _ in range(2))
    assert torch.equal(first[0]["logits"], second[0]["logits"])
    assert not first[0]["logits"].requires_grad
    assert not first[1][HIDDEN, "encoder.1"].requires_grad


def test_teacher_in_another_dtype_is_a_copy(make_model, make_batch):
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
def test_teacher_in_its_own_dtype_is_not_copied(make_model, dtype):
    model = make_model()
    assert Teacher([model], dtype=dtype).model is model


@pytest.mark.parametrize(
    "head", ["BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering"]
)
def test_logits_of_several_teachers_are_averaged_by_weight(make_model, make_batch, head):
    models, batch = [make_model(head, seed=seed) for seed in range(3)], make_batch(head, labelled=True)
    outputs, _ = Teacher(models, [0.5, 0.3, 0.2]).predict(batch)
    assert outputs.keys() == ({"start_logits", "end_logits"} if "Question" in head else {"logits"})
    for name, value in outputs.items():
        logits = [model(**batch)[name].detach() for model in models]
        torch.testing.assert_close(value, 0.5 * logits[0] + 0.3 * logits[1] + 0.2 * logits[2])
        assert (logits[0] - logits[1]).abs().min() > 0


def test_teachers_of_different_sizes_are_averaged(make_model, make_batch):
    small, batch = make_model(seed=1, num_hidden_layers=1, hidden_size=16), make_batch()
    other, large = make_model("RobertaForSequenceClassification"), make_model()
    outputs, _ = Teacher([large, small], [0.9, 0.1]).predict(batch)
    torch.testing.assert_close(outputs["logits"], 0.9 * large(**batch).logits + 0.1 * small(**batch).logits)
    assert Teacher([large, other], [0.5, 0.5]).head_outputs.outputs == ("logits",)


def test_other_number_of_weights_than_teachers_is_refused(make_model):
    with pytest.raises(ValueError, match="there are 2 teachers and 1 weights: give one weight for each"):
        Teacher([make_model(), make_model()], [1.0])


@pytest.mark.parametrize(
    ("changes", "head"),
    [
        ({}, "BertForTokenClassification"),
        ({"problem_type": "multi_label_classification"}, "BertForSequenceClassification"),
        ({}, "BertModel"),
    ],
    ids=["another head", "another problem", "no head"],
)
def test_teachers_with_different_task_heads_are_refused(make_model, changes, head):
    message = f"several teachers need the same kind of task head, these are BertForSequenceClassification, {head}"
    with pytest.raises(ValueError, match=re.escape(message)):
        Teacher([make_model(), make_model(head, **changes)], [0.5, 0.5])


def record_inputs(model):
    """Return a dict that fills with the inputs of `model` when it runs."""
    inputs = {}
    model.register_forward_pre_hook(lambda module, args, kwargs: inputs.update(kwargs), with_kwargs=True)
    return inputs


@pytest.mark.parametrize(
    "head",
    [
        "BertForSequenceClassification",
        "BertForMaskedLM",
        "DistilBertForQuestionAnswering",
        "T5ForSequenceClassification",
    ],
)
def test_teacher_gets_no_labels(make_model, make_batch, head):
    model = make_model(head)
    inputs, batch = record_inputs(model), make_batch(head, labelled=True)
    Teacher([model]).predict({**batch, "label_ids": torch.zeros(3)})
    assert inputs.keys() == make_batch(head).keys()
    assert all(is_label(name) for name in batch.keys() - inputs.keys())


def test_teacher_gets_the_labels_that_its_decoder_reads(make_model, make_batch):
    model = make_model("T5ForConditionalGeneration")
    inputs, batch = record_inputs(model), make_batch("T5ForConditionalGeneration", labelled=True)
    outputs, _ = Teacher([model]).predict(batch)
    assert torch.equal(inputs["labels"], batch["labels"])
    assert torch.equal(outputs["logits"], model(**batch).logits)


def test_teacher_without_task_head_has_only_activations(make_model, make_batch):
    model, batch = make_model("BertModel"), make_batch()
    outputs, activations = Teacher([model]).predict(batch, [(HIDDEN, "encoder.2"), (KEYS, "encoder.0")])
    assert outputs == {}
    assert torch.equal(activations[HIDDEN, "encoder.2"], model(**batch).last_hidden_state)
    assert activations[KEYS, "encoder.0"].shape == (3, 9, 32)


def test_token_ids_translate_inputs_and_logits(make_model, make_batch):
    model = make_model("BertForMaskedLM")
    kept = torch.tensor([0, 99, 3, 50, 7, 20])
    teacher = Teacher([model], token_ids=kept)
    student_ids = torch.tensor([[1, 2, 5], [3, 4, 0]])
    batch = {"input_ids": student_ids, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    before = student_ids.clone()
    outputs, _ = teacher.predict(batch)
    teacher_ids = torch.tensor([[99, 3, 20], [50, 7, 0]])
    expected = model(teacher_ids, attention_mask=batch["attention_mask"]).logits[..., kept]
    torch.testing.assert_close(outputs["logits"], expected)
    assert torch.equal(student_ids, before)


def test_ignored_labels_stay_ignored_when_translated(make_model):
    model = make_model("T5ForConditionalGeneration")
    inputs, kept = record_inputs(model), torch.tensor([0, 1, 30, 40])
    batch = {"input_ids": torch.tensor([[2, 3, 1]]), "labels": torch.tensor([[3, 1, -100]])}
    outputs, _ = Teacher([model], token_ids=kept).predict(batch)
    assert inputs["input_ids"].tolist() == [[30, 40, 1]]
    assert inputs["labels"].tolist() == [[40, 1, -100]]
    assert outputs["logits"].shape == (1, 3, 4)


def test_logits_of_labels_are_not_translated(make_model, make_batch):
    model, batch = make_model(), make_batch()
    outputs, _ = Teacher([model], token_ids=torch.arange(100)).predict(batch)
    assert torch.equal(outputs["logits"], model(**batch).logits)


def test_span_logits_of_a_text_as_long_as_the_vocabulary_are_not_translated(make_model):
    model = make_model("BertForQuestionAnswering", vocab_size=30)
    ids = torch.randint(1, 30, (2, 30), generator=torch.Generator().manual_seed(0))
    teacher = Teacher([model], token_ids=torch.tensor([0, *range(29, 0, -1)]))
    outputs, _ = teacher.predict({"input_ids": ids})
    torch.testing.assert_close(outputs["start_logits"], model(30 - ids).start_logits)


def test_teacher_with_untrained_head_is_refused_if_its_logits_are_used(make_model, tmp_path):
    make_model("BertModel").save_pretrained(tmp_path)
    name = str(tmp_path)
    message = r"has no weights for classifier.bias, classifier.weight.*: its logits would be random; name a model"
    with pytest.raises(ValueError, match=message):
        load_teacher(name, AutoModelForSequenceClassification, requires_trained_head=True)
    teacher = load_teacher(name, AutoModelForSequenceClassification, requires_trained_head=False)
    assert type(teacher) is type(make_model())
