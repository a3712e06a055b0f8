import pytest
import torch
from trainers import classifier
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification

from hf_efficient.distillation.agreement import agreement_of, decide
from hf_efficient.distillation.head_outputs import get_head_outputs

INPUTS = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
TINY = BertConfig(
    vocab_size=9, hidden_size=4, num_attention_heads=1, num_hidden_layers=1, intermediate_size=4, num_labels=2
)


def test_texts_are_decided_by_the_largest_logit():
    head = get_head_outputs(classifier())
    student = decide(head, {"logits": torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])}, INPUTS)
    teacher = decide(head, {"logits": torch.tensor([[0.0, 2.0, 9.0], [1.0, 0.0, 0.0]])}, INPUTS)
    assert student.tolist() == [[1], [0]]
    assert agreement_of(head, student, teacher) == 0.5


def test_labels_of_a_text_are_decided_together():
    head = get_head_outputs(classifier(problem_type="multi_label_classification"))
    decisions = decide(head, {"logits": torch.tensor([[1.0, -1.0, 2.0], [-1.0, -1.0, -1.0]])}, INPUTS)
    assert decisions.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert agreement_of(head, decisions, torch.tensor([[1, 1, 1], [0, 0, 0]])) == 0.5


def test_numbers_are_compared_by_correlation():
    head = get_head_outputs(classifier(labels=1))
    numbers = decide(head, {"logits": torch.tensor([[1.0], [2.0], [4.0]])}, INPUTS)
    assert agreement_of(head, numbers, 3 * numbers + 1) == pytest.approx(1.0)
    assert agreement_of(head, numbers, -numbers) == pytest.approx(-1.0)
    assert agreement_of(head, numbers, torch.ones(3, 1)) == 0.0


def test_tokens_without_a_label_do_not_count():
    head = get_head_outputs(BertForTokenClassification(TINY))
    logits = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    inputs = {**INPUTS, "labels": torch.tensor([[-100, 1, 1], [0, -100, -100]])}
    assert decide(head, {"logits": logits}, inputs).tolist() == [[1], [0], [1]]
    assert len(decide(head, {"logits": logits}, INPUTS)) == 5  # without labels all but padding


def test_both_ends_of_an_answer_must_agree_and_are_no_padding():
    head = get_head_outputs(BertForQuestionAnswering(TINY))
    starts, ends = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 9.0]]), torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 9.0]])
    decisions = decide(head, {"start_logits": starts, "end_logits": ends}, INPUTS)
    assert decisions.tolist() == [[0, 2], [1, 1]]
    assert agreement_of(head, decisions, torch.tensor([[0, 1], [1, 1]])) == 0.5
