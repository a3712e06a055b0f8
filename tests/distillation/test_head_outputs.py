import re

import conftest
import pytest
import torch
from torch.nn import functional as F

from hf_efficient.distillation.head_outputs import get_head_outputs
from hf_efficient.distillation.losses import independent_soft_label_loss, soft_label_loss, squared_error

TASKS = [head for head in conftest.HEADS if "For" in head]
WITH_TOKENS = ("TokenClassification", "MaskedLM", "ConditionalGeneration", "PreTraining")
TOKEN_TASKS = [head for head in TASKS if head.endswith(WITH_TOKENS)]
HEADLESS = [head for head in conftest.HEADS if head not in TASKS]


def asked(model, batch):
    with torch.no_grad():
        return model(**batch)


def distance(student, teacher, batch, temperature=2.0, told=None):
    """The distance on a batch; `told` is what else the loss may read, such as the labels."""
    return float(
        get_head_outputs(teacher).loss(asked(student, batch), asked(teacher, batch), temperature, told or batch)
    )


def with_padding(batch, head, by=4):
    """Appends padded tokens to the inputs, with garbage as ids, and to the labels."""
    filled = {"attention_mask": 0, "labels": -100, "token_type_ids": 1}
    found = {}
    for name, value in batch.items():
        per_token = value.dim() > 1 and name != "decoder_input_ids"
        found[name] = F.pad(value, (0, by), value=filled.get(name, 7)) if per_token else value
    return found


@pytest.mark.parametrize("head", HEADLESS)
def test_a_model_without_a_task_head_answers_nothing(make_model, head):
    assert get_head_outputs(make_model(head)) is None


@pytest.mark.parametrize("head", TASKS)
def test_a_student_that_equals_its_teacher_loses_nothing(make_model, make_batch, head):
    batch = make_batch(head, labelled=True)
    assert distance(make_model(head), make_model(head), batch) == 0
    assert distance(make_model(head, seed=1), make_model(head), batch) > 0.01


@pytest.mark.parametrize("head", TASKS)
def test_padding_changes_no_distance(make_model, make_batch, head):
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head, labelled=True)
    if head.endswith("PreTraining"):
        batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["labels"], -100)
    more = with_padding(batch, head)
    if "T5" in head and head.endswith("SequenceClassification"):
        more["input_ids"][:, 9:] = 0  # T5 finds the text's end by its token
    answers = get_head_outputs(teacher)
    assert distance(student, teacher, more) == pytest.approx(distance(student, teacher, batch), rel=1e-5, abs=1e-5)
    assert int(answers.count(more)) == int(answers.count(batch))


@pytest.mark.parametrize("head", TASKS)
def test_rows_add_up_to_the_batch(make_model, make_batch, head):
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head, labelled=True)
    parts = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(3)]
    answers, whole = get_head_outputs(teacher), distance(student, teacher, batch)
    assert sum(distance(student, teacher, part) for part in parts) == pytest.approx(whole, rel=1e-4)
    assert sum(int(answers.count(part)) for part in parts) == int(answers.count(batch))


@pytest.mark.parametrize("head", TASKS)
def test_what_is_counted_is_labelled_tokens_or_examples(make_model, make_batch, head):
    answers, batch = get_head_outputs(make_model(head)), make_batch(head, labelled=True)
    expected = {"TokenClassification": 18, "MaskedLM": 18, "PreTraining": 18, "ConditionalGeneration": 7 + 6 + 3}
    assert int(answers.count(batch)) == expected.get(head.partition("For")[2], 3)


@pytest.mark.parametrize("head", [head for head in TOKEN_TASKS if not head.endswith("PreTraining")])
def test_only_labelled_tokens_are_compared(make_model, make_batch, head):
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head, labelled=True)
    ours, theirs = asked(student, batch).logits, asked(teacher, batch).logits
    labels = batch["labels"].clone()
    labels[0, ::2] = -100
    answers, told = get_head_outputs(teacher), {**batch, "labels": labels}
    expected, count = soft_label_loss(ours[labels != -100], theirs[labels != -100], 2.0)
    found = answers.loss({"logits": ours}, {"logits": theirs}, 2.0, told)
    torch.testing.assert_close(found, expected)
    assert int(answers.count(told)) == int(count) < int(answers.count(batch))


@pytest.mark.parametrize("head", [head for head in TOKEN_TASKS if "ConditionalGeneration" not in head])
def test_without_labels_all_real_tokens_are_compared(make_model, make_batch, head):
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head)
    answers, real = get_head_outputs(teacher), batch["attention_mask"].bool()
    assert int(answers.count(batch)) == 18
    ours, theirs = asked(student, batch).logits[real], asked(teacher, batch).logits[real]
    if head.endswith("PreTraining"):
        expected, _ = independent_soft_label_loss(ours[:, None], theirs[:, None], 2.0)
    else:
        expected, _ = soft_label_loss(ours, theirs, 2.0)
    assert distance(student, teacher, batch) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("head", [head for head in TASKS if head.endswith("QuestionAnswering")])
def test_spans_are_distributions_over_the_real_tokens_of_an_example(make_model, make_batch, head):
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head)
    ours, theirs = asked(student, batch), asked(teacher, batch)
    expected = 0.0
    for name in ("start_logits", "end_logits"):
        for row, length in enumerate((9, 6, 3)):
            expected += float(soft_label_loss(ours[name][row, :length], theirs[name][row, :length], 2.0)[0]) / 2
    assert distance(student, teacher, batch) == pytest.approx(expected, rel=1e-5)
    ours["start_logits"][1, 6:] = 1e4
    theirs["start_logits"][2, 3:] = float("nan")
    found = get_head_outputs(teacher).loss(ours, theirs, 2.0, batch)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_choices_are_one_distribution_an_example(make_model, make_batch):
    head = "BertForMultipleChoice"
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head)
    ours, theirs = asked(student, batch).logits, asked(teacher, batch).logits
    assert ours.shape == (3, 2)
    expected, count = soft_label_loss(ours, theirs, 2.0)
    assert distance(student, teacher, batch) == pytest.approx(float(expected))
    assert int(get_head_outputs(teacher).count(batch)) == int(count) == 3


HEADS_OF_CLASSIFIERS = [
    ({"problem_type": "multi_label_classification"}, independent_soft_label_loss, torch.float32),
    ({"num_labels": 1}, lambda student, teacher, temperature: squared_error(student, teacher), torch.float32),
    (
        {"problem_type": "regression", "num_labels": 2},
        lambda student, teacher, temperature: squared_error(student, teacher),
        torch.float32,
    ),
    ({"problem_type": "single_label_classification"}, soft_label_loss, torch.int64),
]


@pytest.mark.parametrize(
    ("changes", "objective", "dtype"),
    HEADS_OF_CLASSIFIERS,
    ids=["labels that hold independently", "a number", "numbers", "classes"],
)
@pytest.mark.parametrize("head", [head for head in TASKS if head.endswith("SequenceClassification")])
def test_a_classifier_is_compared_as_its_problem_asks(make_model, make_batch, head, changes, objective, dtype):
    student, teacher = make_model(head, seed=1, **changes), make_model(head, **changes)
    batch = make_batch(head)
    expected, count = objective(asked(student, batch).logits, asked(teacher, batch).logits, 3.0)
    assert distance(student, teacher, batch, 3.0) == pytest.approx(float(expected), rel=1e-6)
    labels = torch.zeros(3, teacher.config.num_labels if dtype.is_floating_point else 1, dtype=dtype).squeeze(-1)
    assert int(get_head_outputs(teacher).count({**batch, "labels": labels})) == int(count) == 3


def test_a_decoder_with_nothing_to_read_says_so(make_model, make_batch):
    answers, batch = get_head_outputs(make_model("T5ForConditionalGeneration")), make_batch()
    message = "the batches hold input_ids, attention_mask, token_type_ids, and nothing for the decoder to read: give"
    with pytest.raises(ValueError, match=message):
        answers.count(batch)


def test_a_decoder_that_is_given_tokens_needs_no_labels(make_model, make_batch):
    head = "T5ForConditionalGeneration"
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head)
    assert int(get_head_outputs(teacher).count(batch)) == 15
    told = {**batch, "decoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])}
    assert int(get_head_outputs(teacher).count(told)) == 8
    assert 0 < distance(student, teacher, batch, told=told) < distance(student, teacher, batch)


def test_answers_of_other_shapes_are_named(make_model, make_batch):
    batch, answers = make_batch(), get_head_outputs(make_model())
    ours, theirs = {"logits": torch.zeros(3, 4)}, {"logits": torch.zeros(3, 3)}
    message = (
        "the student's logits have the shape (3, 4) and the teacher's (3, 3): both must see the same tokens and know"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        answers.loss(ours, theirs, 1.0, batch)
