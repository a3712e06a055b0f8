import json
import re
from dataclasses import asdict

import pytest
import torch
from torch import nn

from hf_efficient import DistillationConfig
from hf_efficient.distillation.distiller import Distiller, check_same_task
from hf_efficient.distillation.objectives import soft_label_loss


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0}, "temperature=0 must be above 0; usual values lie between 1 and 10"),
        ({"temperature": -1.0}, "temperature=-1.0 must be above 0"),
        ({"hard_label_weight": -0.1}, "hard_label_weight=-0.1 must not be negative"),
        ({"logits_weight": -2}, "logits_weight=-2 must not be negative"),
        (
            {"hard_label_weight": 0, "logits_weight": 0},
            "hard_label_weight and logits_weight are both 0: nothing would be",
        ),
    ],
)
def test_bad_config_is_told_what_to_do(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DistillationConfig(**fields)


def test_config_survives_json():
    config = DistillationConfig(temperature=4.0, hard_label_weight=0.0)
    assert DistillationConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_every_field_has_a_help():
    assert all(field.metadata["help"].endswith(".") for field in DistillationConfig.__dataclass_fields__.values())


def test_teacher_stays_frozen_and_in_eval_mode(make_model):
    teacher = make_model().train()
    distiller = Distiller(teacher, DistillationConfig())
    assert not teacher.training
    assert nn.Sequential(distiller).train() is not None
    assert distiller.train() is distiller
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in distiller.parameters())


def test_teacher_gives_the_same_answer_every_time_and_gets_no_gradient(make_model, make_batch):
    teacher = make_model(hidden_dropout_prob=0.5)
    distiller = Distiller(teacher, DistillationConfig()).train()
    logits = torch.zeros(3, 3, requires_grad=True)
    first, second = (distiller(make_batch(), logits)[0] for _ in range(2))
    assert torch.equal(first, second)
    first.backward()
    assert logits.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_student_equal_to_teacher_loses_nothing(make_model, make_batch):
    batch = make_batch(labelled=True)
    logits = make_model()(**batch).logits.detach()
    loss, count = Distiller(make_model(), DistillationConfig())(batch, logits)
    assert (float(loss), int(count)) == (0, 3)


def test_distance_uses_the_temperature_of_the_config(make_model, make_batch):
    batch, student = make_batch(labelled=True), make_model(seed=1)
    found = Distiller(make_model(), DistillationConfig(temperature=5.0))(batch, student(**batch).logits)
    expected = soft_label_loss(student(**batch).logits, make_model()(**batch).logits, 5.0)
    torch.testing.assert_close(found, expected)
    assert float(found[0].detach()) > 0.1


@pytest.mark.parametrize("head", ["BertForTokenClassification", "BertForMaskedLM"])
def test_only_tokens_with_a_label_are_compared(make_model, make_batch, head):
    batch = make_batch(head, labelled=True)
    student_logits, teacher_logits = make_model(head, seed=1)(**batch).logits, make_model(head)(**batch).logits
    distiller = Distiller(make_model(head), DistillationConfig(temperature=1.0))
    loss, count = distiller(batch, student_logits)
    labelled = batch["labels"] != -100
    expected, _ = soft_label_loss(student_logits[labelled], teacher_logits[labelled], 1.0)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert int(count) == int(distiller.count(batch)) == 9 + 6 + 3


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        (torch.tensor([0, 2, 1]), 3),
        (torch.tensor([0.5, 1.0, 0.0]), 3),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), 3),
        (torch.tensor([[-100, 4, 5], [-100, -100, 7], [1, 2, 3]]), 6),
        (None, 3),
    ],
    ids=["classes", "numbers", "many labels an example", "tokens", "no labels"],
)
def test_count_is_of_tokens_with_a_label_or_else_of_examples(make_batch, labels, count):
    batch = make_batch() if labels is None else {**make_batch(), "labels": labels}
    assert int(Distiller.count(batch)) == count


@pytest.mark.parametrize("changes", [{"num_labels": 1}, {"problem_type": "regression", "num_labels": 2}])
def test_numbers_are_matched_by_their_squared_difference(make_model, make_batch, changes):
    batch, teacher = make_batch(), make_model(**changes)
    logits = teacher(**batch).logits
    loss, count = Distiller(make_model(**changes), DistillationConfig())(batch, logits + 2)
    assert float(loss.detach()) == pytest.approx(3 * 4.0, rel=1e-5)
    assert int(count) == 3


def test_labels_are_not_shown_to_the_teacher(make_model, make_batch):
    seen = {}
    teacher = make_model()
    teacher.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    Distiller(teacher, DistillationConfig())(
        {**make_batch(labelled=True), "label_ids": torch.zeros(3)}, torch.zeros(3, 3)
    )
    assert seen.keys() == make_batch().keys()


def test_other_vocabulary_is_refused(make_model):
    message = "the teacher has a vocabulary of 120 tokens and the student one of 100: they must share a tokenizer"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_same_task(make_model(), make_model(vocab_size=120))


def named(*names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ({"num_labels": 2}, {"num_labels": 3}),
        (named("bad", "good"), named("good", "bad")),
        (named("bad", "good"), named("bad", "good", "neutral")),
        (named("bad", "good"), {"num_labels": 2}),
    ],
    ids=["other number", "other order", "one more", "unnamed"],
)
def test_other_labels_are_refused(make_model, student, teacher):
    student, teacher = make_model(**student), make_model(**teacher)
    message = (
        f"the teacher predicts {teacher.config.id2label} and the student {student.config.id2label}: give both the same"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check_same_task(student, teacher)


@pytest.mark.parametrize("changes", [{"num_labels": 2}, named("bad", "good")])
def test_same_labels_pass(make_model, changes):
    check_same_task(make_model(**changes), make_model(**changes, num_hidden_layers=2))


def test_heads_without_one_distribution_are_refused(make_model):
    with pytest.raises(ValueError, match="soft labels of BertForQuestionAnswering are not one distribution"):
        Distiller(make_model("BertForQuestionAnswering"), DistillationConfig())
