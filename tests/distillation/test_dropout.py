"""The dropout of a student while it learns, and the defaults that depend on where the student comes from."""

import copy

import pytest
import torch
from trainers import bert, build_distillation, classifier, without_report

from hf_efficient import DistillationConfig
from hf_efficient.distillation.defaults import DEFAULT_HIDDEN_WEIGHT, resolve_defaults
from hf_efficient.distillation.dropout import replaced_dropout
from hf_efficient.pruning.selection import Selection, remove_units

HEADS = [
    "BertForSequenceClassification",
    "DistilBertForMaskedLM",
    "T5ForConditionalGeneration",
    "BartForConditionalGeneration",
    "ModernBertForSequenceClassification",
    "DebertaV2ForSequenceClassification",
]


def half_of(model):
    units = {"encoder.0.attention": (0, 1), "encoder.0.feed_forward": tuple(range(8))}
    return remove_units(model, Selection(("encoder.0",), units))


def probabilities(model):
    return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}


@pytest.mark.parametrize("head", HEADS)
def test_student_without_dropout_answers_as_in_evaluation(make_model, make_batch, head):
    model = make_model(head)
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout"):
            if isinstance(module.__dict__.get(name), float):
                setattr(module, name, 0.5)
    batch = make_batch(head)
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        model.train()
        before = model(**batch).logits
        with replaced_dropout(model, 0.0):
            without = model(**batch).logits
        after = model(**batch).logits
    torch.testing.assert_close(without, expected)
    assert (before - expected).abs().max() > 1e-3
    assert (after - expected).abs().max() > 1e-3


def test_another_probability_replaces_those_above_zero_even_after_an_error():
    model = bert(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.0)
    with replaced_dropout(model, 0.2):
        assert probabilities(model) == {0.0, 0.2}
    with pytest.raises(AttributeError), replaced_dropout(model, 0.2):
        model.no_such_attribute()
    assert probabilities(model) == {0.0, 0.3}
    with replaced_dropout(model, None):
        assert probabilities(model) == {0.0, 0.3}


def test_defaults_depend_on_whether_the_student_is_cut_from_its_teacher():
    teacher, config = bert(), DistillationConfig()
    itself = resolve_defaults(config, teacher, [])
    cut = resolve_defaults(config, half_of(teacher), [teacher])
    other = resolve_defaults(config, bert(1), [teacher])
    two = resolve_defaults(config, half_of(teacher), [teacher, copy.deepcopy(teacher)])
    for resolved in (itself, cut):
        assert (resolved.student_dropout, resolved.hidden_weight) == (0.0, DEFAULT_HIDDEN_WEIGHT)
        assert resolved.describe().endswith("its hidden states, without dropout")
    for resolved in (other, two):
        assert (resolved.student_dropout, resolved.hidden_weight) == (None, 0.0)
    cached = resolve_defaults(DistillationConfig(cache_teacher=True), teacher, [])
    assert (cached.student_dropout, cached.hidden_weight) == (0.0, 0.0)
    given = DistillationConfig(student_dropout=0.2, hidden_weight=1.0)
    assert resolve_defaults(given, teacher, []) == given


@pytest.mark.parametrize(("given", "expected"), [(None, 0.0), (0.2, 0.2)])
def test_training_steps_have_the_dropout_of_the_config(tmp_path, given, expected):
    student = classifier(dropout=0.5)
    settings = {"student_dropout": given}
    trainer = without_report(build_distillation(tmp_path, settings, student, None, activation_checkpointing=True))
    seen = []  # by the first forward pass and by that of checkpointing
    student.bert.encoder.layer[0].output.dropout.register_forward_pre_hook(
        lambda module, _: seen.append(module.p) if module.training else None
    )
    trainer.train()
    assert seen == [expected] * 8
    assert probabilities(trainer.model) == {0.5}
    assert trainer.model.config.hidden_dropout_prob == 0.5
