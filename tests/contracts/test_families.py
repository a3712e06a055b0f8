"""What every family must do in training, with padding and in generation, shown by one pruned model of each."""

import pytest
import torch
from heads import GENERATORS, HEADS
from torch import nn
from trainers import arguments, seq2seq_arguments, stop, without_report

from hf_efficient import (
    FAMILIES,
    DistillationConfig,
    EfficientSeq2SeqTrainer,
    EfficientTrainer,
    PruningConfig,
    QuantizationConfig,
    prune,
    quantize,
)
from hf_efficient.errors import UserError
from hf_efficient.measurement.comparison import model_inputs
from hf_efficient.measurement.cost import count_flops
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.selection import remove_units

# Of each family the classifier, or the class that generates text.
HEAD_OF = {
    model_type: next(
        head
        for head, (family, _) in HEADS.items()
        if family.model_type == model_type and head.endswith(("ForSequenceClassification", "MTModel"))
    )
    for model_type in FAMILIES
}
# Tokens have the same states behind padding as before it: positions are relative, or counted from the first token.
LEFT_PADDING = ("roberta", "xlm-roberta", "camembert", "t5", "mt5", "modernbert", "mpnet", "deberta-v2")
SHAPE = "all of these"


def pad(batch, model, left=0, right=0):
    """Return the batch with more padding on the left and on the right."""
    padding = {"input_ids": model.config.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    return {
        name: nn.functional.pad(values, (left, right), value=padding[name]) if name in padding else values
        for name, values in batch.items()
    }


@pytest.fixture(params=FAMILIES)
def model_type(request):
    """Run the test for each family, by name."""
    return request.param


def test_padding_on_the_right_changes_nothing(make_model, make_batch, outputs, assert_same, select, model_type):
    head = HEAD_OF[model_type]
    student, batch = remove_units(make_model(head), select("uneven widths", head)), make_batch(head)
    expected, padded = outputs(student, batch), outputs(student, pad(batch, student, right=20))
    assert_same({"logits": padded["logits"]}, {"logits": expected["logits"]}, atol=2e-5)


def test_target_is_reached(make_model, make_batch, model_type):
    head = HEAD_OF[model_type]
    model = make_model(head)
    config = PruningConfig(target_flops=1.3, multiple_of=1, latency_sequence_length=8, scoring_samples=4)
    student = prune(model, config, [make_batch(head, labelled=True)])
    inputs = model_inputs(model, 1, 8)
    assert count_flops(model, inputs) >= 1.3 * count_flops(student, inputs)


@pytest.mark.parametrize("model_type", LEFT_PADDING)
def test_padding_on_the_left_changes_nothing(make_model, make_batch, outputs, select, model_type):
    head = next(iter(FAMILIES[model_type].pruned_classes)).__name__  # classifiers read the first token
    student, batch = remove_units(make_model(head), select("uneven widths", head)), make_batch(head)
    expected, padded = outputs(student, batch), outputs(student, pad(batch, student, left=20))
    for row, length in enumerate((9, 6, 3)):
        states, padded_states = expected["last_hidden_state"][row], padded["last_hidden_state"][row]
        if "decoder_input_ids" not in batch:
            states, padded_states = states[:length], padded_states[20 : 20 + length]
        torch.testing.assert_close(padded_states, states, atol=2e-5, rtol=2e-5)


def test_pruned_equals_gated_with_padding_on_both_sides(
    make_model, make_batch, outputs, assert_same, select, gates_of, model_type
):
    head = HEAD_OF[model_type]
    model, selection = make_model(head).double(), select(SHAPE, head)
    batch = pad(make_batch(head), model, left=4, right=8)
    with apply_gates(model, *gates_of(model, selection)):
        expected = outputs(model, batch)
    assert_same(outputs(remove_units(model, selection), batch), expected, atol=1e-9)
    assert all(values.isfinite().all() for values in expected.values())


@pytest.mark.parametrize("head", GENERATORS)
@pytest.mark.parametrize("shape", ["uneven widths", SHAPE])
def test_generation_is_the_same_with_and_without_cache(make_model, make_batch, select, head, shape):
    model = remove_units(make_model(head), select(shape, head))
    source = {name: make_batch(head)[name] for name in ("input_ids", "attention_mask")}
    for beams in (1, 3):
        settings = {"max_new_tokens": 8, "min_new_tokens": 8, "num_beams": beams}
        with_cache, without_cache = (model.generate(**source, **settings, use_cache=each) for each in (True, False))
        assert torch.equal(with_cache, without_cache)
        assert with_cache.shape == (3, 9)


def build(model, folder, make_batch, head, pruning, distillation, **changes):
    """Build a trainer of a few steps on the rows of a batch."""
    generates = head in GENERATORS
    batches = [make_batch(head, labelled=True, seed=seed) for seed in range(2)]
    rows = [{name: values[row] for name, values in batch.items()} for batch in batches for row in range(3)]
    args = arguments(folder, **{"per_device_train_batch_size": 3, "num_train_epochs": 2, **changes})
    collator = {"data_collator": lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]}}
    trainer = (EfficientSeq2SeqTrainer if generates else EfficientTrainer)(
        model=model,
        args=seq2seq_arguments(args) if generates else args,
        train_dataset=rows,
        pruning=pruning,
        distillation=distillation,
        **collator,
    )
    return without_report(trainer)


def train(*settings):
    trainer = build(*settings)
    trainer.train()
    return trainer


def test_student_is_pruned_and_distilled(make_model, make_batch, model_type, tmp_path):
    head = HEAD_OF[model_type]
    family = FAMILIES[model_type]
    schedule = ({"rounds": 2}, {"ramp": 0.5})[list(FAMILIES).index(model_type) % 2]
    attention = 0.0 if family.attention_scores_differ else 1.0
    distillation = DistillationConfig(
        hidden_weight=1.0, embedding_weight=1.0, relation_weight=1.0, attention_weight=attention
    )
    model = make_model(head)
    pruning = PruningConfig(heads=0.5, neurons=0.5, layers=0.34, multiple_of=4, **schedule)
    trainer = train(model, tmp_path, make_batch, head, pruning, distillation)
    assert isinstance(trainer.model.config, family.pruned_config_class)
    entries = [entry for entry in trainer.state.log_history if "relation_loss" in entry]
    assert len(entries) >= 2
    for entry in entries:
        for name in ("hidden_loss", "relation_loss", *(["attention_loss"] if attention else [])):
            assert 0 < entry[name] < float("inf"), name
    kept = sum(block.units for block in family.blocks(trainer.model).values())
    assert kept < 0.6 * sum(block.units for block in family.blocks(model).values())


# Of each kind of layers one; BERT is resumed in all ways by tests/trainer.
@pytest.mark.parametrize("model_type", ["t5", "modernbert", "deberta-v2", "marian", "albert"])
def test_interrupted_rounds_are_resumed_to_the_same_weights(
    make_model, make_batch, assert_same_weights, model_type, tmp_path
):
    def run(folder):
        head = HEAD_OF[model_type]
        pruning = PruningConfig(heads=0.5, neurons=0.5, rounds=2, criterion="magnitude", multiple_of=4)
        saving = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 4}
        return build(make_model(head), tmp_path / folder, make_batch, head, pruning, DistillationConfig(), **saving)

    complete, resumed = run("complete"), run("interrupted")
    complete.train()
    stop(run("interrupted"), 5)  # in the second round
    resumed.train(resume_from_checkpoint=True)
    assert (tmp_path / "interrupted" / "_round-2").exists()
    assert [stage.endswith("before an interruption") for stage in resumed.stages if "pruned" in stage] == [True, False]
    assert_same_weights(resumed.model, complete.model)


@pytest.mark.parametrize("model_type", [name for name, family in FAMILIES.items() if family.attention_scores_differ])
def test_attention_scores_that_are_no_products_are_not_compared(make_model, make_batch, model_type, tmp_path):
    distillation = DistillationConfig(attention_weight=1.0)
    head = HEAD_OF[model_type]
    with pytest.raises(UserError, match=f"attention_weight is not possible with .*{HEAD_OF[model_type]}: its"):
        train(make_model(head), tmp_path, make_batch, head, PruningConfig(heads=0.5), distillation)


@pytest.mark.usefixtures("kernels_for_tiny_weights")
@pytest.mark.parametrize("scheme", ["int8_static", "int8_dynamic", "int8_weight_only", "codebook"])
def test_quantized_student_is_close(make_model, make_batch, outputs, model_type, scheme):
    head = HEAD_OF[model_type]
    model, batch = make_model(head), make_batch(head)
    calibration = [make_batch(head, seed=seed) for seed in (1, 2)]
    settings = {"bits": 6} if scheme == "codebook" else {}
    student = prune(model, PruningConfig(heads=0.25, criterion="magnitude"))
    quantized = quantize(student, QuantizationConfig(scheme, **settings), calibration)
    expected, actual = outputs(student, batch)["logits"], outputs(quantized, batch)["logits"]
    error = float((actual - expected).norm() / expected.norm())
    assert 0 < error < 0.25, error
