import json
import re
import subprocess
import sys
from dataclasses import asdict, fields, replace

import pytest
from transformers import HfArgumentParser

from hf_efficient import PruningConfig
from hf_efficient.pruning.config import FRACTIONS, TARGETS, parse_n_m
from hf_efficient.pruning.criteria import CONNECTION_CRITERIA, CRITERIA

BY_STACK = "encoder=0.25,decoder=0.5"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_speedup": 0.5}, "target_speedup=0.5 requests a larger model: give a ratio of at least 1"),
        (
            {"target_flops": 0},
            "target_flops=0 requests a larger model: give a ratio of at least 1, such as 2 to halve",
        ),
        ({"target_size": -2.0}, "target_size=-2.0 requests a larger model"),
        ({"target_size": float("nan")}, "target_size=nan is not possible: give a finite number"),
        ({"heads": 1.2}, "heads=1.2 is not a fraction: give a number in [0, 1)"),
        ({"neurons": 1}, "neurons=1 is not a fraction"),
        ({"layers": -0.1}, "layers=-0.1 is not a fraction"),
        ({"blocks": float("nan")}, "blocks=nan is not possible: give a finite number or a text"),
        (
            {"heads": "half"},
            "heads='half' is not a fraction: give a number in [0, 1), or one for each stack, such as "
            "'encoder=0.25,decoder=0.5'",
        ),
        ({"heads": "encoder=0.5,decoder=1.5"}, "heads='encoder=0.5,decoder=1.5' is not a fraction"),
        ({"heads": "encoder=,decoder=0.5"}, "heads='encoder=,decoder=0.5' is not a fraction"),
        ({"heads": "0.25,0.5"}, "heads='0.25,0.5' is not a fraction"),
        ({"layers": "decoder=0.25,decoder=0.5"}, "layers='decoder=0.25,decoder=0.5' is not a fraction"),
        ({"heads": ""}, "heads='' is not a fraction"),
        ({"keep_at_least": 1.0}, "keep_at_least=1.0 is not a fraction"),
        ({"keep_at_least": "encoder=2"}, "keep_at_least='encoder=2' is not a fraction"),
        ({"weights": 1.0}, "weights=1.0 is not a fraction: give a number in [0, 1)"),
        ({"ramp": 1.5, "heads": 0.5}, "ramp=1.5 is not a fraction"),
        ({"n_m": "4:2"}, "n_m='4:2' is not a pattern"),
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
def test_value_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PruningConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target_speedup": 2.0, "target_size": 2.0},
            "target_speedup, target_size cannot be combined: give one target or fractions",
        ),
        ({"target_flops": 2.0, "heads": 0.5}, "target_flops, heads cannot be combined"),
        ({"target_flops": 2.0, "blocks": BY_STACK}, "target_flops, blocks cannot be combined"),
        ({"weights": 0.5, "n_m": "2:4"}, "weights=0.5 and n_m='2:4' cannot be combined: give one"),
        (
            {"portable": True, "heads": 0.5},
            "portable=True allows only shapes that a stock class can hold, which fractions of",
        ),
        ({"portable": True, "neurons": "decoder=0.5"}, "give a target, or only layers"),
        ({"portable": True, "blocks": 0.5}, "give a target, or only layers"),
        ({"portable": True, "scope": "layer", "target_flops": 2.0}, "portable=True keeps every head, scope='layer'"),
        ({"ramp": 0.5, "heads": 0.5, "rounds": 2}, "ramp closes gates within one training run: leave out rounds"),
        ({"ramp": 0.5, "heads": 0.5, "rewind": "weights"}, "ramp closes gates within one training run"),
        ({"ramp": 0.5}, "ramp=0.5 has nothing to remove: give a target, a fraction, or weights"),
        (
            {"target_generation_speedup": 2.0, "latency_runtime": "onnx"},
            "latency_runtime='onnx' is for target_speedup",
        ),
        ({"ramp": 0.5, "n_m": "2:4"}, "ramp=0.5 has nothing to remove"),
        (
            {"rewind": "weights", "heads": 0.5, "weights": 0.5},
            "rewind='weights' is supported for units or for single connections, not for both: give one of them",
        ),
    ],
)
def test_contradicting_fields_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PruningConfig(**changes)


def test_criterion_for_connections_only_is_refused_for_units(monkeypatch):
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
def test_config_describes_what_it_removes(changes, units, connections, target):
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
def test_fraction_for_each_stack(value, encoder, decoder):
    for name in (*FRACTIONS, "keep_at_least"):
        config = PruningConfig(**{name: value})
        assert [config.fraction_for(name, stack) for stack in ("encoder", "decoder")] == [encoder, decoder]


@pytest.mark.parametrize("name", [*FRACTIONS, "keep_at_least"])
def test_unknown_stack_is_refused(name):
    config = PruningConfig(**{name: BY_STACK})
    config.check_stacks(("encoder", "decoder"))
    message = f"{name}='{BY_STACK}' names decoder: the model has the stacks encoder"
    with pytest.raises(ValueError, match=re.escape(message)):
        config.check_stacks(("encoder",))
    PruningConfig(**{name: 0.5}).check_stacks(("encoder",))


# ---- rounds and progress ----


@pytest.mark.parametrize("target", TARGETS)
def test_rounds_reach_the_target_by_equal_ratios(target):
    config = PruningConfig(**{target: 8.0}, rounds=3)
    rounds = [config.for_round(number) for number in (1, 2, 3)]
    assert [each.target for each in rounds] == [(target, pytest.approx(ratio)) for ratio in (2, 4, 8)]
    assert [each.rounds for each in rounds] == [1, 1, 1]


def test_fractions_of_rounds_multiply_to_the_total():
    config = PruningConfig(heads=0.5, layers="0.36", blocks="encoder=0.19,decoder=0.36", rounds=2, neurons=0.0)
    rounds = [config.for_round(number) for number in (1, 2)]
    assert (1 - rounds[0].heads) * (1 - rounds[1].heads) == pytest.approx(0.5)
    assert [1 - each.layers for each in rounds] == pytest.approx([0.8, 0.8])
    for each in rounds:
        assert [each.fraction_for("blocks", stack) for stack in ("encoder", "decoder")] == pytest.approx([0.1, 0.2])
    assert {each.neurons for each in rounds} == {0.0}


def test_connections_of_rounds_refer_to_the_unpruned_model():
    config = PruningConfig(weights=0.875, rounds=3)
    assert [config.for_round(number).weights for number in (1, 2, 3)] == pytest.approx([0.5, 0.75, 0.875])
    assert PruningConfig(n_m="2:4", rounds=2).for_round(1).n_m == "2:4"


def test_config_for_a_single_round_is_the_config_itself():
    for changes in ({"target_flops": 3.0}, {"heads": 0.5, "weights": 0.25}, {"layers": BY_STACK}):
        step, config = PruningConfig(**changes).for_round(1), PruningConfig(**changes)
        assert step.target == config.target
        for name in FRACTIONS:
            fractions = [
                [each.fraction_for(name, stack) for stack in ("encoder", "decoder")] for each in (step, config)
            ]
            assert fractions[0] == pytest.approx(fractions[1])
        assert step.weights == (None if config.weights is None else pytest.approx(config.weights))


@pytest.mark.parametrize("target", TARGETS)
def test_cost_falls_linearly_with_progress(target):
    config = PruningConfig(**{target: 4.0}, ramp=0.5)
    costs = [1 / config.at_progress(progress).target[1] for progress in (0, 0.5, 1)]
    assert costs == pytest.approx([1, 1 - 0.5 * 0.75, 0.25])


def test_fractions_grow_linearly_with_progress():
    config = PruningConfig(heads=0.5, layers=BY_STACK, weights=0.8, ramp=0.3)
    half = config.at_progress(0.5)
    assert (half.heads, half.weights) == (0.25, 0.4)
    assert [half.fraction_for("layers", stack) for stack in ("encoder", "decoder")] == [0.125, 0.25]
    assert not config.at_progress(0.0).removes_anything
    assert config.at_progress(1.0) == config


def test_units_only_drops_connections():
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
def test_connection_settings_are_arguments_of_remove_connections(changes, expected):
    assert PruningConfig(**changes).connection_settings() == expected


# ---- as JSON and flags ----


CONFIGS = (
    PruningConfig(),
    PruningConfig(target_flops=3.0, rounds=2, criterion="magnitude", multiple_of=4, keep_at_least="encoder=0.25"),
    PruningConfig(heads=BY_STACK, neurons="0.5", recovery=False, rewind="weights", scope="layer"),
    PruningConfig(weights=0.5, ramp=0.25, vocabulary=True, latency_runtime="onnx", scoring_samples=7),
    PruningConfig(layers="decoder=0.5", n_m="2:4", before_training=True, portable=True),
)


@pytest.mark.parametrize("config", CONFIGS)
def test_config_round_trips_through_json(config):
    assert PruningConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize("config", CONFIGS)
def test_config_round_trips_through_flags(config):
    flags = []
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            flags += [f"--{field.name}", str(value)]
    (parsed,) = HfArgumentParser(PruningConfig, allow_abbrev=False).parse_args_into_dataclasses(flags)
    assert parsed == config


def test_number_given_as_a_flag_applies_to_all_stacks():
    flags = ["--heads", "0.5", "--keep_at_least", "0.125"]
    (parsed,) = HfArgumentParser(PruningConfig).parse_args_into_dataclasses(flags)
    assert (parsed.fraction_for("heads", "encoder"), parsed.fraction_for("keep_at_least", "encoder")) == (0.5, 0.125)


def test_every_field_has_a_help_text():
    assert all(field.metadata["help"].endswith(".") for field in fields(PruningConfig))


@pytest.mark.parametrize("text", ["2:4", "1:2", "15:16"])
def test_pattern_is_parsed(text):
    assert parse_n_m(text) == tuple(int(part) for part in text.split(":"))


@pytest.mark.parametrize("text", ["4:4", "0:4", "4:2", "2", "2:", "a:b", "-1:4", "2:4:8", ""])
def test_invalid_pattern_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(f'n_m={text!r} is not a pattern: give "n:m" with 1 <= n < m')):
        PruningConfig(n_m=text)


def test_config_imports_no_heavy_package():
    code = "import sys, hf_efficient.pruning.config; print(*{'torch', 'transformers', 'numpy'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0.5, "rounds": 1.5}, "rounds=1.5 is not possible: give a whole number"),
        ({"layers": 0.5, "portable": "x"}, "portable='x' is not possible: give True or False"),
        ({"target_flops": float("inf")}, "target_flops=inf is not possible: give a finite number"),
        ({"heads": 0.5, "rounds": 1_000_000}, "rounds=1000000 would prune and train more than 100 times"),
    ],
    ids=str,
)
def test_values_of_another_type_and_without_bounds_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(**changes)
