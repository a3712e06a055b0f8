import re

import pytest
import torch
from heads import HEADS
from torch.nn import functional as F

from hf_efficient.distillation.head_outputs import get_head_outputs
from hf_efficient.distillation.losses import independent_soft_label_loss, soft_label_loss, squared_error
from hf_efficient.models.inputs import task_head_of

# Every task, every family, and every task of a T5, whose batches and outputs differ.
TASK_HEADS = [
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForMaskedLM",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
    "ElectraForPreTraining",
    "T5ForConditionalGeneration",
    "T5ForSequenceClassification",
    "T5ForTokenClassification",
    "T5ForQuestionAnswering",
    "MT5ForConditionalGeneration",
    "RobertaForQuestionAnswering",
    "XLMRobertaForTokenClassification",
    "CamembertForMaskedLM",
    "DistilBertForMultipleChoice",
    "ElectraForTokenClassification",
]
TOKEN_TASKS = ("TokenClassification", "MaskedLM", "ConditionalGeneration", "PreTraining")
TOKEN_HEADS = [head for head in TASK_HEADS if head.endswith(TOKEN_TASKS)]
HEADLESS = [head for head in HEADS if not task_head_of(head)]


def outputs_of(model, batch):
    with torch.no_grad():
        return model(**batch)


def loss_between(student, teacher, batch, temperature=2.0, loss_inputs=None):
    """Return the loss on a batch; `loss_inputs` are other inputs of the loss than `batch`, such as labels."""
    outputs = outputs_of(student, batch), outputs_of(teacher, batch)
    inputs = batch if loss_inputs is None else loss_inputs
    return float(get_head_outputs(teacher).loss(*outputs, temperature, inputs))


def with_padding(batch, by=4):
    """Append padding to the inputs, with arbitrary ids, and to the labels."""
    padding_values = {"attention_mask": 0, "labels": -100, "token_type_ids": 1}
    padded = {}
    for name, value in batch.items():
        has_tokens = value.dim() > 1 and name != "decoder_input_ids"
        padded[name] = F.pad(value, (0, by), value=padding_values.get(name, 7)) if has_tokens else value
    return padded


@pytest.mark.parametrize("head", HEADLESS)
def test_model_without_task_head_has_no_outputs(make_model, head):
    assert get_head_outputs(make_model(head)) is None


@pytest.mark.parametrize("head", [head for head in HEADS if task_head_of(head)])
def test_model_with_task_head_has_its_outputs(make_model, make_batch, head):
    model = make_model(head)
    head_outputs = get_head_outputs(model)
    task = task_head_of(head)
    assert head_outputs.outputs == (("start_logits", "end_logits") if task == "QuestionAnswering" else ("logits",))
    assert head_outputs.per_token is (task in TOKEN_TASKS)
    assert head_outputs.decoder_reads_labels is (task == "ConditionalGeneration")
    assert head_outputs.detects_replaced_tokens is (task == "PreTraining")
    expected = {"TokenClassification": 18, "MaskedLM": 18, "PreTraining": 18, "ConditionalGeneration": 7 + 6 + 3}
    assert int(head_outputs.count(make_batch(head, labelled=True))) == expected.get(task, 3)


@pytest.mark.parametrize("head", TASK_HEADS)
def test_loss_of_an_equal_student_is_zero(make_model, make_batch, head):
    batch = make_batch(head, labelled=True)
    assert loss_between(make_model(head), make_model(head), batch) == 0
    assert loss_between(make_model(head, seed=1), make_model(head), batch) > 0.01


@pytest.mark.parametrize("head", TASK_HEADS)
def test_padding_does_not_change_the_loss(make_model, make_batch, head):
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head, labelled=True)
    if head.endswith("PreTraining"):
        batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["labels"], -100)
    padded = with_padding(batch)
    if head == "T5ForSequenceClassification":
        padded["input_ids"][:, 9:] = 0  # T5 takes the logits at the last end token
    head_outputs = get_head_outputs(teacher)
    expected = loss_between(student, teacher, batch)
    assert loss_between(student, teacher, padded) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert int(head_outputs.count(padded)) == int(head_outputs.count(batch))


@pytest.mark.parametrize("head", TASK_HEADS)
def test_losses_of_rows_sum_to_that_of_the_batch(make_model, make_batch, head):
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head, labelled=True)
    rows = [{name: value[index : index + 1] for name, value in batch.items()} for index in range(3)]
    head_outputs, expected = get_head_outputs(teacher), loss_between(student, teacher, batch)
    assert sum(loss_between(student, teacher, row) for row in rows) == pytest.approx(expected, rel=1e-4)
    assert sum(int(head_outputs.count(row)) for row in rows) == int(head_outputs.count(batch))


@pytest.mark.parametrize("head", [head for head in TOKEN_HEADS if not head.endswith("PreTraining")])
def test_only_labelled_tokens_are_compared(make_model, make_batch, head):
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head, labelled=True)
    student_logits, teacher_logits = outputs_of(student, batch).logits, outputs_of(teacher, batch).logits
    labels = batch["labels"].clone()
    labels[0, ::2] = -100
    head_outputs, inputs = get_head_outputs(teacher), {**batch, "labels": labels}
    expected, count = soft_label_loss(student_logits[labels != -100], teacher_logits[labels != -100], 2.0)
    loss = head_outputs.loss({"logits": student_logits}, {"logits": teacher_logits}, 2.0, inputs)
    torch.testing.assert_close(loss, expected)
    assert int(head_outputs.count(inputs)) == int(count) < int(head_outputs.count(batch))


@pytest.mark.parametrize("head", [head for head in TOKEN_HEADS if "ConditionalGeneration" not in head])
def test_all_tokens_but_padding_are_compared_without_labels(make_model, make_batch, head):
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head)
    mask = batch["attention_mask"].bool()
    assert int(get_head_outputs(teacher).count(batch)) == 18
    student_logits, teacher_logits = outputs_of(student, batch).logits[mask], outputs_of(teacher, batch).logits[mask]
    if head.endswith("PreTraining"):
        expected, _ = independent_soft_label_loss(student_logits[:, None], teacher_logits[:, None], 2.0)
    else:
        expected, _ = soft_label_loss(student_logits, teacher_logits, 2.0)
    assert loss_between(student, teacher, batch) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("head", [head for head in TASK_HEADS if head.endswith("QuestionAnswering")])
def test_spans_are_distributions_over_the_tokens_without_padding(make_model, make_batch, head):
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head)
    student_outputs, teacher_outputs = outputs_of(student, batch), outputs_of(teacher, batch)
    expected = 0.0
    for name in ("start_logits", "end_logits"):
        for row, length in enumerate((9, 6, 3)):
            logits = student_outputs[name][row, :length], teacher_outputs[name][row, :length]
            expected += float(soft_label_loss(*logits, 2.0)[0]) / 2
    assert loss_between(student, teacher, batch) == pytest.approx(expected, rel=1e-5)
    student_outputs["start_logits"][1, 6:] = 1e4
    teacher_outputs["start_logits"][2, 3:] = float("nan")
    loss = get_head_outputs(teacher).loss(student_outputs, teacher_outputs, 2.0, batch)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_choices_are_one_distribution_per_example(make_model, make_batch):
    head = "BertForMultipleChoice"
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head)
    student_logits, teacher_logits = outputs_of(student, batch).logits, outputs_of(teacher, batch).logits
    assert student_logits.shape == (3, 2)
    expected, count = soft_label_loss(student_logits, teacher_logits, 2.0)
    assert loss_between(student, teacher, batch) == pytest.approx(float(expected))
    assert int(get_head_outputs(teacher).count(batch)) == int(count) == 3


def regression_loss(student, teacher, temperature):
    return squared_error(student, teacher)


@pytest.mark.parametrize(
    ("changes", "expected_loss", "dtype"),
    [
        ({"problem_type": "multi_label_classification"}, independent_soft_label_loss, torch.float32),
        ({"num_labels": 1}, regression_loss, torch.float32),
        ({"problem_type": "regression", "num_labels": 2}, regression_loss, torch.float32),
        ({"problem_type": "single_label_classification"}, soft_label_loss, torch.int64),
    ],
    ids=["multi-label", "one number", "several numbers", "classes"],
)
@pytest.mark.parametrize("head", ["BertForSequenceClassification", "T5ForSequenceClassification"])
def test_loss_of_a_classifier_depends_on_its_problem_type(make_model, make_batch, head, changes, expected_loss, dtype):
    student, teacher = make_model(head, seed=1, **changes), make_model(head, **changes)
    batch = make_batch(head)
    expected, count = expected_loss(outputs_of(student, batch).logits, outputs_of(teacher, batch).logits, 3.0)
    assert loss_between(student, teacher, batch, 3.0) == pytest.approx(float(expected), rel=1e-6)
    labels = torch.zeros(3, teacher.config.num_labels if dtype.is_floating_point else 1, dtype=dtype).squeeze(-1)
    assert int(get_head_outputs(teacher).count({**batch, "labels": labels})) == int(count) == 3


def test_batch_without_inputs_for_the_decoder_is_refused(make_model, make_batch):
    head_outputs, batch = get_head_outputs(make_model("T5ForConditionalGeneration")), make_batch()
    message = "the batches have input_ids, attention_mask, token_type_ids, but no inputs for the decoder: give labels"
    with pytest.raises(ValueError, match=message):
        head_outputs.count(batch)


def test_decoder_inputs_are_counted_without_labels(make_model, make_batch):
    head = "T5ForConditionalGeneration"
    student, teacher, batch = make_model(head, seed=1), make_model(head), make_batch(head)
    assert int(get_head_outputs(teacher).count(batch)) == 15
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    masked = {**batch, "decoder_attention_mask": mask}
    assert int(get_head_outputs(teacher).count(masked)) == 8
    masked_loss = loss_between(student, teacher, batch, loss_inputs=masked)
    assert 0 < masked_loss < loss_between(student, teacher, batch)


def test_outputs_of_different_shapes_are_refused(make_model, make_batch):
    student, teacher = {"logits": torch.zeros(3, 4)}, {"logits": torch.zeros(3, 3)}
    message = (
        "the student's logits have the shape (3, 4) and the teacher's (3, 3): both need the same tokens and the same"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        get_head_outputs(make_model()).loss(student, teacher, 1.0, make_batch())
