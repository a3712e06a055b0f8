import pytest
import torch
from trainers import build, classifier, stop

from hf_efficient import DistillationConfig, PruningConfig
from hf_efficient.pruning.criteria import CRITERIA
from hf_efficient.pruning.schedule import Phase, plan_phases
from hf_efficient.pruning.sparsity import zero_fraction

STEPS = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
SMALL = {"scoring_samples": 16, "multiple_of": 4}


def shape(model):
    layers = model.base_model.encoder.layer
    return [(layer.attention.output.dense.in_features, layer.output.dense.in_features) for layer in layers]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rounds": 2}, [Phase(1, 0.5), Phase(2, 0.5)]),
        ({"ramp": 0.25}, [Phase(0, 0.25, closes_gates=True), Phase(1, 0.75)]),
        ({"rewind": "weights"}, [Phase(0, 0.5), Phase(1, 0.5)]),
        ({"rewind": "learning_rate", "rounds": 3}, [Phase(0, 0.25), Phase(1, 0.25), Phase(2, 0.25), Phase(3, 0.25)]),
    ],
)
def test_phases_share_the_training(changes, expected):
    assert plan_phases(PruningConfig(target_flops=2, **changes)) == expected


@pytest.mark.parametrize("criterion", ["fisher", "taylor", "movement", "activation", "magnitude", "random"])
def test_gates_close_while_training_and_what_is_closed_is_cut(tmp_path, criterion):
    pruning = PruningConfig(target_flops=2.0, ramp=0.5, criterion=criterion, **SMALL)
    trainer = build(tmp_path, techniques={"pruning": pruning}, num_train_epochs=4)
    open_units = []
    training_step = trainer.training_step

    def step(*args, **kwargs):
        gates = trainer.phases.gate_callback
        open_units.append(sum(int(gate.sum()) for gate in gates.units.values()) if gates and gates.is_open else None)
        return training_step(*args, **kwargs)

    trainer.training_step = step
    trainer.train()
    ramp = [count for count in open_units if count is not None]
    assert len(ramp) == 8  # half of four epochs of four steps
    assert len(open_units) == 16
    assert ramp[0] == 2 * (4 + 64)
    assert ramp[-1] < 0.95 * ramp[0]
    assert trainer.report.row("student").ratios.flops >= 2.0
    assert trainer.report.stages[0] == f"gates closed by {criterion} during training"


def test_the_gates_of_the_ramp_end_as_the_shape_that_is_cut(tmp_path):
    pruning = PruningConfig(neurons=0.5, ramp=0.5, recovery=False, **SMALL)
    trainer = build(tmp_path, techniques={"pruning": pruning}, num_train_epochs=4)
    ends = {}
    final_scores = trainer.phases.scores_for_pruning

    def remember(*args):
        ends.update({name: int(gate.sum()) for name, gate in trainer.phases.gate_callback.units.items()})
        return final_scores(*args)

    trainer.phases.scores_for_pruning = remember
    trainer.train()
    assert [ends[f"encoder.{index}.feed_forward"] for index in range(2)] == [
        width for _, width in shape(trainer.model)
    ]
    assert sum(width for _, width in shape(trainer.model)) == pytest.approx(64, abs=8)


@pytest.mark.parametrize(
    ("changes", "interrupted_at"),
    [
        ({"target_flops": 2.0, "ramp": 0.6}, 0),
        ({"target_flops": 2.0, "ramp": 0.6}, 3),
        ({"target_flops": 2.0, "ramp": 0.6, "criterion": "movement"}, 9),
        ({"target_flops": 2.0, "rewind": "weights"}, 3),
        ({"heads": 0.5, "neurons": 0.25, "rewind": "learning_rate"}, 9),
        ({"weights": 0.7, "rounds": 2}, 9),
        ({"weights": 0.7, "ramp": 0.6, "criterion": "magnitude"}, 3),
        ({"n_m": "2:4", "rewind": "weights", "criterion": "magnitude"}, 9),
        ({"target_flops": 1.5, "weights": 0.5}, 0),
    ],
    ids=str,
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_run(tmp_path, changes, interrupted_at):
    techniques = {"pruning": PruningConfig(**changes, **SMALL)}
    complete, interrupted, resumed = (
        build(tmp_path / name, model=classifier(dropout=0.1), techniques=techniques, **STEPS)
        for name in ("complete", "interrupted", "interrupted")
    )
    complete.train()
    stop(interrupted, interrupted_at)
    resumed.train(resume_from_checkpoint=True)
    expected = complete.model.state_dict()
    assert resumed.model.state_dict().keys() == expected.keys()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_gates_survive_accumulation_checkpointing_and_bf16(tmp_path):
    pruning = PruningConfig(target_flops=2.0, ramp=0.5, **SMALL)
    trainer = build(
        tmp_path,
        techniques={"pruning": pruning, "distillation": DistillationConfig()},
        num_train_epochs=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        activation_checkpointing=True,
        bf16=True,
    )
    trainer.train()
    assert trainer.report.row("student").ratios.flops >= 2.0


def test_accumulated_gates_score_as_one_large_batch_does(tmp_path):
    def sums(**changes):
        pruning = PruningConfig(target_flops=2.0, ramp=0.5, criterion="movement", **SMALL)
        trainer = build(tmp_path, techniques={"pruning": pruning}, num_train_epochs=1, max_steps=2, **changes)
        found = {}
        final_scores = trainer.phases.scores_for_pruning

        def remember(*args):
            found.update({name: total.clone() for name, total in trainer.phases.gate_callback.sums.items()})
            return final_scores(*args)

        trainer.phases.scores_for_pruning = remember
        trainer.train()
        return found

    one = sums(per_device_train_batch_size=8)
    four = sums(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for name, total in one.items():
        torch.testing.assert_close(four[name], total, rtol=1e-4, atol=1e-6)


def test_rewinding_goes_back_to_the_weights_of_the_start(tmp_path):
    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruning = PruningConfig(neurons=0.5, rewind="weights", rounds=2, **SMALL)
    trainer = build(tmp_path, model=model, techniques={"pruning": pruning}, **STEPS)
    trainer.train()
    start = type(trainer.model).from_pretrained(tmp_path / "_round-2")
    assert shape(start) == shape(trainer.model)
    assert sum(width for _, width in shape(start)) < sum(width for _, width in shape(model))
    for name, value in start.state_dict().items():
        old = before[name]
        if value.shape == old.shape:
            assert torch.equal(value, old), name
        else:  # rows, or columns, of the very weights that training began with
            rows_went = value.shape[1:] == old.shape[1:]
            kept, all_of_them = (value, old) if rows_went else (value.T, old.T)
            pool = [row.tolist() for row in all_of_them]
            assert all(row.tolist() in pool for row in kept), name
    assert not torch.equal(start.classifier.weight, trainer.model.classifier.weight)


def test_rewinding_connections_keeps_what_training_found(tmp_path):
    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruning = PruningConfig(weights=0.5, rewind="weights", criterion="magnitude", **SMALL)
    trainer = build(tmp_path, model=model, techniques={"pruning": pruning}, **STEPS)
    trainer.train()
    start = type(trainer.model).from_pretrained(tmp_path / "_round-1").state_dict()
    trained = type(trainer.model).from_pretrained(sorted((tmp_path / "_round-0").glob("checkpoint-*"))[-1])
    name = "bert.encoder.layer.0.output.dense.weight"
    left = start[name] != 0
    assert torch.equal(start[name][left], before[name][left])
    weights = trained.state_dict()[name].abs()
    assert weights[left].min() >= weights[~left].max() * 0.999  # the trained weights chose
    assert zero_fraction(trainer.model) == pytest.approx(0.5, abs=0.01)


def test_the_learning_rate_is_rewound_after_a_dense_run(tmp_path):
    pruning = PruningConfig(neurons=0.5, rewind="learning_rate", **SMALL)
    trainer = build(tmp_path, techniques={"pruning": pruning}, num_train_epochs=2)
    rates = []
    training_step = trainer.training_step

    def step(*args, **kwargs):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return training_step(*args, **kwargs)

    trainer.training_step = step
    trainer.train()
    assert rates[:4] == rates[4:]
    assert rates[0] == 1e-3 > rates[3]


def test_zeros_stay_zero_through_the_rounds_and_quantity_is_as_asked(tmp_path):
    pruning = PruningConfig(weights=0.75, rounds=2, **SMALL)
    trainer = build(tmp_path, techniques={"pruning": pruning}, **STEPS)
    trainer.train()
    assert zero_fraction(trainer.model) == pytest.approx(0.75, abs=0.01)
    first = type(trainer.model).from_pretrained(tmp_path / "_round-1")
    assert zero_fraction(first) == pytest.approx(0.5, abs=0.01)
    assert "75.0% of their connections are zero" in trainer.report.stages[-2]


def test_an_n_m_pattern_holds_in_every_group_after_training(tmp_path):
    trainer = build(tmp_path, techniques={"pruning": PruningConfig(n_m="2:4", **SMALL)}, **STEPS)
    trainer.train()
    weight = trainer.model.base_model.encoder.layer[1].intermediate.dense.weight
    assert (weight.view(-1, 4) != 0).sum(-1).max() == 2


def test_a_criterion_of_ones_own_is_one_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(CRITERIA, "mine", CRITERIA["magnitude"])
    trainer = build(tmp_path, techniques={"pruning": PruningConfig(heads=0.5, criterion="mine", **SMALL)})
    trainer.train()
    assert sum(heads for heads, _ in shape(trainer.model)) == 4 * 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ramp": 0.5, "rounds": 2, "heads": 0.5}, "leave out rounds"),
        ({"ramp": 0.5, "n_m": "2:4"}, "nothing to grow"),
        ({"rewind": "weights", "heads": 0.5, "weights": 0.5}, "ask for one of them"),
        ({"rewind": "everything", "heads": 0.5}, "give one of weights, learning_rate"),
    ],
)
def test_schedules_that_contradict_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(**changes)


def test_a_stack_that_is_not_there_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="names decoder: the model has the stacks encoder"):
        build(tmp_path, techniques={"pruning": PruningConfig(layers="decoder=0.5")})


def test_the_report_times_in_the_runtime_that_the_target_is_for(tmp_path):
    pytest.importorskip("onnxruntime")
    pruning = PruningConfig(heads=0.5, latency_runtime="onnx", **SMALL)
    trainer = build(tmp_path, techniques={"pruning": pruning})
    trainer.train()
    assert {row.latency_ms.runtime for row in trainer.report.models} == {"onnxruntime float32"}
