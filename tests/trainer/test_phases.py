"""Pruning in phases of training: gates that close, rewinding, zeros that stay, and resuming each of them."""

import pytest
import torch
from trainers import build, classifier, log_entries, stop, without_report

from hf_efficient import DistillationConfig, PruningConfig
from hf_efficient.measurement.comparison import model_inputs
from hf_efficient.measurement.cost import count_flops
from hf_efficient.pruning.criteria import CRITERIA
from hf_efficient.pruning.sparsity import zero_fraction

STEPS = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
SMALL = {"scoring_samples": 16, "multiple_of": 4}
HALF = {"heads": 0.5, "neurons": 0.5}
TARGET = {"target_flops": 2.0, "multiple_of": 16}  # takes longer: the cost of every width is computed


def build_pruning(folder, changes, techniques=None, **arguments):
    techniques = {"pruning": PruningConfig(**{**SMALL, **changes}), **(techniques or {})}
    return without_report(build(folder, techniques=techniques, **arguments))


def block_widths(model):
    """Return, for each layer, the width of its attention and of its feed-forward block."""
    layers = model.base_model.encoder.layer
    return [(layer.attention.output.dense.in_features, layer.output.dense.in_features) for layer in layers]


def feed_forward_widths(model):
    return [width for _, width in block_widths(model)]


def flops_ratio(trainer):
    config = trainer.techniques.pruning
    inputs = model_inputs(trainer.model, config.latency_batch_size, config.latency_sequence_length)
    return count_flops(trainer.teacher, inputs) / count_flops(trainer.model, inputs)


def assert_half_remains(model):
    widths = block_widths(model)
    assert sum(width for width, _ in widths) == 4 * 8
    assert sum(width for _, width in widths) == pytest.approx(64, abs=8)


def record_steps(trainer, read):
    """Return a list that receives `read()` before every training step."""
    values, training_step = [], trainer.training_step

    def step(*args, **kwargs):
        values.append(read())
        return training_step(*args, **kwargs)

    trainer.training_step = step
    return values


def record_gate_callback(trainer, read):
    """Return a dict that receives `read(gate_callback)` when the scores to prune by are taken from the gates."""
    values, scores_for_pruning = {}, trainer.phases.scores_for_pruning

    def record(*args):
        values.update(read(trainer.phases.gate_callback))
        return scores_for_pruning(*args)

    trainer.phases.scores_for_pruning = record
    return values


# ---- gates ----


@pytest.mark.parametrize("criterion", ["fisher", "taylor", "movement", "activation", "magnitude", "random"])
def test_gates_close_during_training_and_the_closed_units_are_removed(tmp_path, criterion):
    amount = TARGET if criterion == "fisher" else HALF
    trainer = build_pruning(tmp_path, {**amount, "ramp": 0.5, "criterion": criterion}, num_train_epochs=2)

    def count_open_units():
        gates = trainer.phases.gate_callback
        return sum(int(gate.sum()) for gate in gates.units.values()) if gates and gates.is_open else None

    open_units = record_steps(trainer, count_open_units)
    trainer.train()
    assert len(open_units) == 8
    assert open_units[4:] == [None] * 4  # the second half of the training has no gates
    assert open_units[0] == 2 * (4 + 64)
    assert open_units[3] < 0.95 * open_units[0]
    if amount is HALF:
        assert_half_remains(trainer.model)
    else:
        assert flops_ratio(trainer) >= 2.0
    assert trainer.stages[0] == f"gates closed by {criterion} during training"


def test_gates_end_with_the_widths_of_the_pruned_model(tmp_path):
    trainer = build_pruning(tmp_path, {"neurons": 0.5, "ramp": 0.5, "recovery": False}, num_train_epochs=4)
    last = record_gate_callback(trainer, lambda gates: {name: int(gate.sum()) for name, gate in gates.units.items()})
    trainer.train()
    widths = feed_forward_widths(trainer.model)
    assert [last[f"encoder.{index}.feed_forward"] for index in range(2)] == widths
    assert sum(widths) == pytest.approx(64, abs=8)


def test_gates_work_with_accumulation_checkpointing_and_bf16(tmp_path):
    arguments = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    arguments |= {"activation_checkpointing": True, "bf16": True}
    techniques = {"distillation": DistillationConfig()}
    trainer = build_pruning(tmp_path, {**HALF, "ramp": 0.5}, techniques, **arguments)
    trainer.train()
    assert_half_remains(trainer.model)


def test_gate_scores_of_accumulated_batches_are_those_of_one_large_batch(tmp_path):
    def sums(**sizes):
        changes = {**HALF, "ramp": 0.5, "criterion": "movement"}
        trainer = build_pruning(tmp_path, changes, num_train_epochs=1, max_steps=2, **sizes)
        values = record_gate_callback(
            trainer, lambda gates: {name: total.clone() for name, total in gates.sums.items()}
        )
        trainer.train()
        return values

    expected = sums(per_device_train_batch_size=8)
    accumulated = sums(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert expected
    for name, total in expected.items():
        torch.testing.assert_close(accumulated[name], total, rtol=1e-4, atol=1e-6)


# ---- resuming ----


@pytest.fixture(scope="module")
def complete_model(tmp_path_factory):
    """Return a function that trains without an interruption, once for each pruning, and returns the model."""
    models = {}

    def train(changes):
        if str(changes) not in models:
            folder = tmp_path_factory.mktemp("complete")
            trainer = build_pruning(folder, changes, model=classifier(dropout=0.1), **STEPS)
            trainer.train()
            models[str(changes)] = trainer.model
        return models[str(changes)]

    return train


@pytest.mark.parametrize(
    ("changes", "interrupted_at"),  # of twelve steps
    [
        ({**TARGET, "rounds": 2}, 9),
        ({**HALF, "ramp": 0.6}, 0),
        ({**TARGET, "ramp": 0.6}, 3),
        ({**HALF, "ramp": 0.6, "criterion": "movement"}, 9),
        ({**HALF, "rewind": "weights"}, 3),
        ({"heads": 0.5, "neurons": 0.25, "rewind": "learning_rate"}, 9),
        ({"weights": 0.7, "rounds": 2}, 9),
        ({"weights": 0.7, "ramp": 0.6, "criterion": "magnitude"}, 3),
        ({"n_m": "2:4", "rewind": "weights", "criterion": "magnitude"}, 9),
        ({"heads": 0.5, "weights": 0.5}, 0),
    ],
    ids=str,
)
def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_run(
    tmp_path, complete_model, assert_same_weights, changes, interrupted_at
):
    interrupted, resumed = (build_pruning(tmp_path, changes, model=classifier(dropout=0.1), **STEPS) for _ in range(2))
    stop(interrupted, interrupted_at)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed.model, complete_model(changes))


# ---- rewinding ----


def test_rewinding_restores_the_initial_weights(tmp_path):
    model = classifier()
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = build_pruning(tmp_path, {"neurons": 0.5, "rewind": "weights", "rounds": 2}, model=model, **STEPS)
    trainer.train()
    rewound = type(trainer.model).from_pretrained(tmp_path / "_round-2")
    assert block_widths(rewound) == block_widths(trainer.model)
    assert sum(feed_forward_widths(rewound)) < sum(feed_forward_widths(model))
    for name, value in rewound.state_dict().items():
        if value.shape == initial[name].shape:
            assert torch.equal(value, initial[name]), name
        else:  # each of its rows, or columns, is one of the initial weights
            removes_rows = value.shape[1:] == initial[name].shape[1:]
            kept, full = (value, initial[name]) if removes_rows else (value.T, initial[name].T)
            full_rows = full.tolist()
            assert all(row in full_rows for row in kept.tolist()), name
    assert not torch.equal(rewound.classifier.weight, trainer.model.classifier.weight)


def test_rewinding_of_connections_keeps_those_that_are_large_after_training(tmp_path):
    model = classifier()
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    changes = {"weights": 0.5, "rewind": "weights", "criterion": "magnitude"}
    trainer = build_pruning(tmp_path, changes, model=model, **STEPS)
    trainer.train()
    rewound = type(trainer.model).from_pretrained(tmp_path / "_round-1").state_dict()
    trained = type(trainer.model).from_pretrained(sorted((tmp_path / "_round-0").glob("checkpoint-*"))[-1])
    name = "bert.encoder.layer.0.output.dense.weight"
    kept = rewound[name] != 0
    assert torch.equal(rewound[name][kept], initial[name][kept])
    magnitudes = trained.state_dict()[name].abs()
    assert magnitudes[kept].min() >= magnitudes[~kept].max() * 0.999
    assert zero_fraction(trainer.model) == pytest.approx(0.5, abs=0.01)


def test_learning_rate_is_rewound_after_the_training_before_pruning(tmp_path):
    trainer = build_pruning(tmp_path, {"neurons": 0.5, "rewind": "learning_rate"}, num_train_epochs=2)
    rates = record_steps(trainer, lambda: trainer.optimizer.param_groups[0]["lr"])
    trainer.train()
    assert rates[:4] == rates[4:]
    assert rates[0] == 1e-3 > rates[3]


# ---- connections ----


def test_connections_at_zero_stay_at_zero_through_the_rounds(tmp_path):
    trainer = build_pruning(tmp_path, {"weights": 0.75, "rounds": 2}, **STEPS)
    trainer.train()
    assert zero_fraction(trainer.model) == pytest.approx(0.75, abs=0.01)
    first_round = type(trainer.model).from_pretrained(tmp_path / "_round-1")
    assert zero_fraction(first_round) == pytest.approx(0.5, abs=0.01)
    assert "75.0% of their connections are zero" in trainer.stages[-2]


def test_n_m_pattern_holds_in_every_group_after_training(tmp_path):
    trainer = build_pruning(tmp_path, {"n_m": "2:4"}, **STEPS)
    trainer.train()
    weight = trainer.model.base_model.encoder.layer[1].intermediate.dense.weight
    assert (weight.view(-1, 4) != 0).sum(-1).max() == 2


# ---- a complete run ----


def test_pruning_without_training_steps_only_prunes(tmp_path):
    trainer = build_pruning(tmp_path, {"heads": 0.5}, num_train_epochs=0)
    assert trainer.train() is None
    assert log_entries(trainer) == []
    assert sum(width for width, _ in block_widths(trainer.model)) == 4 * 8


def test_phases_restore_the_arguments_after_an_error(tmp_path):
    trainer = build_pruning(tmp_path, {"heads": 0.5, "rounds": 2}, num_train_epochs=2, max_steps=4)
    stop(trainer, at=1)
    assert (trainer.args.output_dir, trainer.args.num_train_epochs, trainer.args.max_steps) == (str(tmp_path), 2, 4)


def test_user_defined_criterion_is_an_entry_in_the_registry(tmp_path, monkeypatch):
    monkeypatch.setitem(CRITERIA, "mine", CRITERIA["magnitude"])
    trainer = build_pruning(tmp_path, {"heads": 0.5, "criterion": "mine"})
    trainer.train()
    assert sum(width for width, _ in block_widths(trainer.model)) == 4 * 8


def test_report_times_models_in_the_runtime_of_the_target(tmp_path):
    pytest.importorskip("onnxruntime")
    pruning = PruningConfig(heads=0.5, latency_runtime="onnx", **SMALL)
    trainer = build(tmp_path, techniques={"pruning": pruning}, max_steps=1)
    trainer.train()
    assert {row.latency_ms.runtime for row in trainer.report.models} == {"onnxruntime float32"}
