import json
import re
from dataclasses import asdict, fields, replace

import pytest
from transformers import HfArgumentParser

from hf_efficient import PruningConfig
from hf_efficient.pruning.config import FRACTIONS, TARGETS
from hf_efficient.pruning.criteria import CONNECTION_CRITERIA, CRITERIA

BY_STACK = "encoder=0.25,decoder=0.5"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_speedup": 0.5}, "target_speedup=0.5 asks for a larger model: give a ratio of at least 1"),
        (
            {"target_flops": 0},
            "target_flops=0 asks for a larger model: give a ratio of at least 1, such as 2 to halve",
        ),
        ({"target_size": -2.0}, "target_size=-2.0 asks for a larger model"),
        ({"target_size": float("nan")}, "target_size=nan asks for a larger model"),
        ({"heads": 1.2}, "heads=1.2 is no fraction: give a number in [0, 1)"),
        ({"neurons": 1}, "neurons=1 is no fraction"),
        ({"layers": -0.1}, "layers=-0.1 is no fraction"),
        ({"blocks": float("nan")}, "blocks=nan is no fraction"),
        (
            {"heads": "half"},
            "heads='half' is no fraction: give a number in [0, 1), or one for each stack, such as "
            "'encoder=0.25,decoder=0.5'",
        ),
        ({"heads": "encoder=0.5,decoder=1.5"}, "heads='encoder=0.5,decoder=1.5' is no fraction"),
        ({"heads": "encoder=,decoder=0.5"}, "heads='encoder=,decoder=0.5' is no fraction"),
        ({"heads": "0.25,0.5"}, "heads='0.25,0.5' is no fraction"),
        ({"layers": "decoder=0.25,decoder=0.5"}, "layers='decoder=0.25,decoder=0.5' is no fraction"),
        ({"heads": ""}, "heads='' is no fraction"),
        ({"keep_at_least": 1.0}, "keep_at_least=1.0 is no fraction"),
        ({"keep_at_least": "encoder=2"}, "keep_at_least='encoder=2' is no fraction"),
        ({"weights": 1.0}, "weights=1.0 is no fraction: give a number in [0, 1)"),
        ({"ramp": 1.5, "heads": 0.5}, "ramp=1.5 is no fraction"),
        ({"n_m": "4:2"}, "n_m='4:2' is no pattern"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"scoring_samples": 0}, "scoring_samples=0 must be at least 1"),
        ({"multiple_of": 0}, "multiple_of=0 must be at least 1"),
        ({"latency_batch_size": 0}, "latency_batch_size=0 must be at least 1"),
        ({"latency_sequence_length": -1}, "latency_sequence_length=-1 must be at least 1"),
        ({"criterion": "luck"}, f"criterion='luck' is unknown: give one of {', '.join(CRITERIA)}"),
        ({"scope": "row"}, "scope='row' is unknown: give one of global, layer"),
        ({"rewind": "time"}, "rewind='time' is unknown: give one of weights, learning_rate"),
        (
            {"weights": 0.5, "criterion": "activation"},
            f"criterion='activation' does not score single connections: give one of {', '.join(CONNECTION_CRITERIA)}",
        ),
        ({"n_m": "2:4", "criterion": "magnitude_l1"}, "criterion='magnitude_l1' does not score single connections"),
    ],
)
def test_bad_value_is_told_what_to_do(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PruningConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target_speedup": 2.0, "target_size": 2.0},
            "target_speedup, target_size cannot be asked for together: give one target or fractions",
        ),
        ({"target_flops": 2.0, "heads": 0.5}, "target_flops, heads cannot be asked for together"),
        ({"target_flops": 2.0, "blocks": BY_STACK}, "target_flops, blocks cannot be asked for together"),
        ({"weights": 0.5, "n_m": "2:4"}, "weights=0.5 and n_m='2:4' cannot be asked for together: give one"),
        ({"portable": True, "heads": 0.5}, "portable=True keeps shapes that a stock class holds, which fractions of"),
        ({"portable": True, "neurons": "decoder=0.5"}, "give a target, or only layers"),
        ({"portable": True, "blocks": 0.5}, "give a target, or only layers"),
        ({"portable": True, "scope": "layer", "target_flops": 2.0}, "portable=True keeps every head, scope='layer'"),
        ({"ramp": 0.5, "heads": 0.5, "rounds": 2}, "ramp closes gates within one run of training: leave out rounds"),
        ({"ramp": 0.5, "heads": 0.5, "rewind": "weights"}, "ramp closes gates within one run of training"),
        ({"ramp": 0.5}, "ramp=0.5 has nothing to grow: give a target, a fraction, or weights"),
        ({"ramp": 0.5, "n_m": "2:4"}, "ramp=0.5 has nothing to grow"),
        (
            {"rewind": "weights", "heads": 0.5, "weights": 0.5},
            "rewind='weights' goes back with units or with single connections: ask for one of them",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PruningConfig(**changes)


def test_criterion_for_connections_alone_does_not_score_units(monkeypatch):
    monkeypatch.setitem(CONNECTION_CRITERIA, "mine", CONNECTION_CRITERIA["magnitude"])
    assert PruningConfig(weights=0.5, criterion="mine").criterion == "mine"
    with pytest.raises(ValueError, match=r"criterion='mine' does not score units: give one of fisher, taylor"):
        PruningConfig(heads=0.5, criterion="mine")


@pytest.mark.parametrize(
    ("changes", "units", "connections", "target"),
    [
        ({}, False, False, None),
        ({"heads": 0.0}, False, False, None),
        ({"heads": "encoder=0,decoder=0.0"}, False, False, None),
        ({"weights": 0.0}, False, False, None),
        ({"portable": True, "heads": "0"}, False, False, None),
        ({"keep_at_least": 0.5}, False, False, None),
        ({"heads": "decoder=0.5"}, True, False, None),
        ({"blocks": 0.5}, True, False, None),
        ({"layers": 0.5, "portable": True}, True, False, None),
        ({"weights": 0.5}, False, True, None),
        ({"n_m": "2:4"}, False, True, None),
        ({"neurons": 0.5, "n_m": "2:4"}, True, True, None),
        ({"target_size": 2.0, "portable": True}, True, False, ("target_size", 2.0)),
        ({"target_speedup": 1.0}, True, False, ("target_speedup", 1.0)),
    ],
)
def test_config_says_whether_and_what_it_asks_for(changes, units, connections, target):
    config = PruningConfig(**changes)
    assert (config.removes_units, config.removes_connections, config.target) == (units, connections, target)
    assert config.removes_anything == (units or connections)


@pytest.mark.parametrize(
    ("value", "encoder", "decoder"),
    [
        (None, 0, 0),
        (0.3, 0.3, 0.3),
        ("0.3", 0.3, 0.3),
        (BY_STACK, 0.25, 0.5),
        (" decoder=0.5 , encoder=0.25", 0.25, 0.5),
        ("decoder=0.5", 0, 0.5),
        ("0.1,decoder=0.5", 0.1, 0.5),
    ],
)
@pytest.mark.parametrize("name", [*FRACTIONS, "keep_at_least"])
def test_fractions_differ_by_stack(name, value, encoder, decoder):
    config = PruningConfig(**{name: value})
    assert [config.fraction_for(name, stack) for stack in ("encoder", "decoder")] == [encoder, decoder]


@pytest.mark.parametrize("name", [*FRACTIONS, "keep_at_least"])
def test_stack_that_the_model_does_not_have_is_refused(name):
    config = PruningConfig(**{name: BY_STACK})
    config.check_stacks(("encoder", "decoder"))
    message = f"{name}='{BY_STACK}' names decoder: the model has the stacks encoder"
    with pytest.raises(ValueError, match=re.escape(message)):
        config.check_stacks(("encoder",))
    PruningConfig(**{name: 0.5}).check_stacks(("encoder",))


# ---- rounds and ramps ----


@pytest.mark.parametrize("target", TARGETS)
def test_rounds_reach_the_target_by_equal_ratios(target):
    config = PruningConfig(**{target: 8.0}, rounds=3)
    steps = [config.for_round(number) for number in (1, 2, 3)]
    assert [step.target for step in steps] == [(target, pytest.approx(ratio)) for ratio in (2, 4, 8)]
    assert [step.rounds for step in steps] == [1, 1, 1]


def test_rounds_of_fractions_multiply_to_the_whole():
    config = PruningConfig(heads=0.5, layers="0.36", blocks="encoder=0.19,decoder=0.36", rounds=2, neurons=0.0)
    steps = [config.for_round(number) for number in (1, 2)]
    assert (1 - steps[0].heads) * (1 - steps[1].heads) == pytest.approx(0.5)
    assert [1 - step.layers for step in steps] == pytest.approx([0.8, 0.8])
    for step in steps:
        assert [step.fraction_for("blocks", stack) for stack in ("encoder", "decoder")] == pytest.approx([0.1, 0.2])
    assert {step.neurons for step in steps} == {0.0}


def test_rounds_of_connections_count_from_the_whole():
    config = PruningConfig(weights=0.875, rounds=3)
    assert [config.for_round(number).weights for number in (1, 2, 3)] == pytest.approx([0.5, 0.75, 0.875])
    assert PruningConfig(n_m="2:4", rounds=2).for_round(1).n_m == "2:4"


def test_one_round_is_the_config_itself():
    for changes in ({"target_flops": 3.0}, {"heads": 0.5, "weights": 0.25}, {"layers": BY_STACK}):
        step, config = PruningConfig(**changes).for_round(1), PruningConfig(**changes)
        assert step.target == config.target
        for name in FRACTIONS:
            shares = [[each.fraction_for(name, stack) for stack in ("encoder", "decoder")] for each in (step, config)]
            assert shares[0] == pytest.approx(shares[1])
        assert step.weights == (None if config.weights is None else pytest.approx(config.weights))


@pytest.mark.parametrize("target", TARGETS)
def test_ramp_removes_evenly(target):
    config = PruningConfig(**{target: 4.0}, ramp=0.5)
    left = [1 / config.at_progress(progress).target[1] for progress in (0, 0.5, 1)]
    assert left == pytest.approx([1, 1 - 0.5 * 0.75, 0.25])


def test_ramp_of_fractions_is_in_proportion():
    config = PruningConfig(heads=0.5, layers=BY_STACK, weights=0.8, ramp=0.3)
    half = config.at_progress(0.5)
    assert (half.heads, half.weights) == (0.25, 0.4)
    assert [half.fraction_for("layers", stack) for stack in ("encoder", "decoder")] == [0.125, 0.25]
    assert not config.at_progress(0.0).removes_anything
    assert config.at_progress(1.0) == config


def test_units_and_connections_come_apart():
    config = PruningConfig(heads=0.5, weights=0.5)
    assert config.units_only() == replace(config, weights=None)
    assert PruningConfig(heads=0.5, n_m="2:4").units_only() == PruningConfig(heads=0.5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weights": 0.5}, {"fraction": 0.5, "n_m": None, "scope": "global"}),
        ({"weights": 0.5, "scope": "layer"}, {"fraction": 0.5, "n_m": None, "scope": "layer"}),
        ({"weights": 0.5, "criterion": "wanda"}, {"fraction": 0.5, "n_m": None, "scope": "row"}),
        ({"n_m": "2:4", "scope": "layer"}, {"fraction": None, "n_m": "2:4", "scope": None}),
    ],
)
def test_connections_are_asked_for_as_sparsity_takes_them(changes, expected):
    assert PruningConfig(**changes).connection_settings() == expected


# ---- as text ----


WHOLE = (
    PruningConfig(),
    PruningConfig(target_flops=3.0, rounds=2, criterion="magnitude", multiple_of=4, keep_at_least="encoder=0.25"),
    PruningConfig(heads=BY_STACK, neurons="0.5", recovery=False, rewind="weights", scope="layer"),
    PruningConfig(weights=0.5, ramp=0.25, vocabulary=True, latency_runtime="onnx", scoring_samples=7),
    PruningConfig(layers="decoder=0.5", n_m="2:4", before_training=True, portable=True),
)


@pytest.mark.parametrize("config", WHOLE)
def test_config_survives_json(config):
    assert PruningConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize("config", WHOLE)
def test_config_survives_flags(config):
    flags = []
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            flags += [f"--{field.name}", str(value)]
    (parsed,) = HfArgumentParser(PruningConfig, allow_abbrev=False).parse_args_into_dataclasses(flags)
    assert parsed == config


def test_a_number_as_a_flag_asks_for_the_same():
    flags = ["--heads", "0.5", "--keep_at_least", "0.125"]
    (parsed,) = HfArgumentParser(PruningConfig).parse_args_into_dataclasses(flags)
    assert (parsed.fraction_for("heads", "encoder"), parsed.fraction_for("keep_at_least", "encoder")) == (0.5, 0.125)


def test_every_field_has_a_help():
    assert all(field.metadata["help"].endswith(".") for field in fields(PruningConfig))
