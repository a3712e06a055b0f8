import json
import re
from dataclasses import asdict

import pytest
import torch

from hf_efficient import PruningConfig
from hf_efficient.pruning.scoring import BudgetSelector, block_infos, score_units, select_fractions, take_examples
from hf_efficient.pruning.selection import Scores, Selection, remove_units


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_speedup": 0.5}, "target_speedup=0.5 asks for a larger model: give a ratio of at least 1"),
        (
            {"target_flops": 0},
            "target_flops=0 asks for a larger model: give a ratio of at least 1, such as 2 to halve",
        ),
        ({"target_size": -2.0}, "target_size=-2.0 asks for a larger model"),
        ({"heads": 1.2}, "heads=1.2 is no fraction: give a number in [0, 1)"),
        ({"neurons": 1}, "neurons=1 is no fraction"),
        ({"layers": -0.1}, "layers=-0.1 is no fraction"),
        ({"layers": float("nan")}, "layers=nan is no fraction"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"scoring_samples": 0}, "scoring_samples=0 must be at least 1"),
        ({"multiple_of": 0}, "multiple_of=0 must be at least 1"),
        ({"latency_batch_size": 0}, "latency_batch_size=0 must be at least 1"),
        ({"latency_sequence_length": -1}, "latency_sequence_length=-1 must be at least 1"),
        ({"criterion": "luck"}, "criterion='luck' is unknown: give one of fisher, taylor"),
        (
            {"target_speedup": 2.0, "target_size": 2.0},
            "target_speedup, target_size cannot be asked for together: give one target or fractions",
        ),
        ({"target_flops": 2.0, "heads": 0.5}, "target_flops, heads cannot be asked for together"),
        (
            {"portable": True, "heads": 0.5},
            "portable=True keeps shapes that a stock class holds, which fractions of heads",
        ),
        ({"portable": True, "neurons": 0.5}, "give a target, or only layers"),
    ],
)
def test_bad_config_is_told_what_to_do(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PruningConfig(**fields)


@pytest.mark.parametrize(
    ("config", "active", "target"),
    [
        (PruningConfig(), False, None),
        (PruningConfig(heads=0.0), False, None),
        (PruningConfig(layers=0.5, portable=True), True, None),
        (PruningConfig(target_size=2.0, portable=True), True, ("target_size", 2.0)),
    ],
)
def test_config_says_whether_and_what_it_asks_for(config, active, target):
    assert (config.removes_anything, config.target) == (active, target)


def test_config_survives_json():
    config = PruningConfig(target_flops=3.0, rounds=2, criterion="magnitude", multiple_of=4)
    assert PruningConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_every_field_has_a_help():
    assert all(field.metadata["help"].endswith(".") for field in PruningConfig.__dataclass_fields__.values())


@pytest.mark.parametrize("target", ["target_speedup", "target_flops", "target_size"])
def test_rounds_reach_the_target_by_equal_ratios(target):
    config = PruningConfig(**{target: 8.0}, rounds=3)
    steps = [config.for_round(number) for number in (1, 2, 3)]
    assert [step.target for step in steps] == [(target, pytest.approx(ratio)) for ratio in (2, 4, 8)]
    assert [step.rounds for step in steps] == [1, 1, 1]


def test_rounds_of_fractions_multiply_to_the_whole():
    config = PruningConfig(heads=0.5, layers=0.36, rounds=2, neurons=0.0)
    steps = [config.for_round(number) for number in (1, 2)]
    assert (1 - steps[0].heads) * (1 - steps[1].heads) == pytest.approx(0.5)
    assert [1 - step.layers for step in steps] == pytest.approx([0.8, 0.8])
    assert {step.neurons for step in steps} == {0.0}


def test_facts_of_blocks_follow_the_config(make_model, select):
    facts = block_infos(remove_units(make_model(), select("uneven widths")), PruningConfig(multiple_of=16))
    assert [(fact.name, fact.layer, fact.kind, fact.units, fact.step, fact.shape_key) for fact in facts[:2]] == [
        ("encoder.0.attention", "encoder.0", "heads", 2, 1, "encoder.attention"),
        ("encoder.0.feed_forward", "encoder.0", "neurons", 22, 16, "encoder.feed_forward"),
    ]
    assert [fact.units for fact in facts] == [2, 22, 1, 5, 4, 64]


def test_scoring_stops_at_the_number_of_samples(make_model, make_batch):
    seen = []

    def loss(model, batch):
        seen.append(batch["input_ids"].shape[0])
        assert "text" not in batch
        return model(**batch).loss * batch["input_ids"].shape[0]

    def batches():
        for _ in range(3):
            yield {**make_batch(labelled=True), "text": ["kept", "out", "here"]}
        pytest.fail("more was read than asked for")

    drawn = take_examples(batches(), 7, torch.device("cpu"))
    score_units(make_model(), PruningConfig(), drawn, loss)
    assert seen == [3, 3, 1]


def ranked_scores(model):
    """Returns scores that are all different, spread over the blocks, with the second layer the least of all."""
    generator = torch.Generator().manual_seed(3)
    facts = block_infos(model, PruningConfig())
    units = {fact.name: torch.rand(fact.units, generator=generator) for fact in facts}
    return Scores(units, {"encoder.0": 2.0, "encoder.1": 0.5, "encoder.2": 1.0})


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75, 0.95])
def test_fraction_of_heads_goes_lowest_first(make_model, fraction):
    model = make_model()
    scores = ranked_scores(model)
    selection = select_fractions(model, PruningConfig(heads=fraction), scores)
    names = [name for name in selection.units if name.endswith("attention")]
    kept = [float(scores.units[name][unit]) for name in names for unit in selection.units[name]]
    everything = torch.cat([scores.units[name] for name in names]).sort(descending=True).values
    assert len(kept) == max(1, round(12 * (1 - fraction)))
    assert sorted(kept, reverse=True) == everything[: len(kept)].tolist()
    assert all(len(units) == 64 for name, units in selection.units.items() if name.endswith("feed_forward"))


@pytest.mark.parametrize(("fraction", "multiple_of"), [(0.5, 1), (0.9, 1), (0.5, 8), (0.9, 16)])
def test_fraction_of_neurons_goes_up_to_the_multiple(make_model, fraction, multiple_of):
    model = make_model()
    selection = select_fractions(model, PruningConfig(neurons=fraction, multiple_of=multiple_of), ranked_scores(model))
    widths = [len(units) for name, units in selection.units.items() if name.endswith("feed_forward")]
    exact = round(192 * (1 - fraction))
    assert exact <= sum(widths) <= exact + 3 * (multiple_of - 1)
    assert not [width for width in widths if width % multiple_of]
    assert all(len(units) == 4 for name, units in selection.units.items() if name.endswith("attention"))


@pytest.mark.parametrize(
    ("fraction", "kept"), [(0.3, ("encoder.0", "encoder.2")), (0.6, ("encoder.0",)), (0.99, ("encoder.0",))]
)
def test_fraction_of_layers_goes_lowest_first(make_model, fraction, kept):
    model = make_model()
    selection = select_fractions(model, PruningConfig(layers=fraction), ranked_scores(model))
    assert selection.layers == kept
    assert {name: len(units) for name, units in selection.units.items()} == {
        f"encoder.{i}.{block}": units if f"encoder.{i}" in kept else 0
        for i in range(3)
        for block, units in (("attention", 4), ("feed_forward", 64))
    }


@pytest.mark.parametrize(
    "fractions", [{"blocks": 0.6}, {"heads": 0.8}, {"layers": 0.6, "blocks": 0.6, "heads": 0.8}], ids=str
)
def test_a_decoder_goes_on_looking_at_its_encoder(make_model, fractions):
    model = make_model("T5ForConditionalGeneration")
    scores = ranked_scores(model)
    scores.layers.update({f"decoder.{index}": float(index) for index in range(3)})
    for name, units in scores.units.items():
        if name.endswith("cross_attention"):
            units *= 1e-4
    selection = select_fractions(model, PruningConfig(**{k: f"decoder={v}" for k, v in fractions.items()}), scores)
    kept = {name: len(units) for name, units in selection.units.items() if name.startswith("decoder") and units}
    assert any(name.endswith("cross_attention") and name.rpartition(".")[0] in selection.layers for name in kept)


def test_fractions_of_heads_and_neurons_are_of_the_layers_that_stay(make_model):
    model = make_model()
    config = PruningConfig(layers=0.3, heads=0.5, neurons=0.5, multiple_of=1)
    selection = select_fractions(model, config, ranked_scores(model))
    assert selection.layers == ("encoder.0", "encoder.2")
    assert sum(len(units) for name, units in selection.units.items() if name.endswith("attention")) == 4
    assert sum(len(units) for name, units in selection.units.items() if name.endswith("feed_forward")) == 64


def test_choice_under_budgets_asks_for_costs_once(make_model):
    model, asked = make_model(), []

    def cost_of(selection: Selection) -> float:
        asked.append(selection)
        return float(sum(len(units) for units in selection.units.values()))

    scores = Scores(ranked_scores(model).units, {})
    selector = BudgetSelector(model, PruningConfig(multiple_of=1), cost_of)
    before = len(asked)
    widths = [sum(len(units) for units in selector.select(budget, scores).units.values()) for budget in (20, 50, 100)]
    assert widths == [20, 50, 100]
    assert len(asked) == before < 20
