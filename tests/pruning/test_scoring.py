import pytest
import torch

from hf_efficient import PruningConfig
from hf_efficient.pruning.scoring import (
    BudgetSelector,
    block_infos,
    default_multiple,
    score_units,
    select_fractions,
    take_examples,
)
from hf_efficient.pruning.selection import Scores, Selection, remove_units


def test_block_infos_follow_the_config(make_model, select):
    infos = block_infos(remove_units(make_model(), select("uneven widths")), PruningConfig(multiple_of=16))
    assert [(info.name, info.layer, info.kind, info.units, info.step, info.shape_key) for info in infos[:2]] == [
        ("encoder.0.attention", "encoder.0", "heads", 2, 1, "encoder.attention"),
        ("encoder.0.feed_forward", "encoder.0", "neurons", 22, 16, "encoder.feed_forward"),
    ]
    assert [info.units for info in infos] == [2, 22, 1, 5, 4, 64]


def test_scoring_stops_at_the_number_of_samples(make_model, make_batch):
    counts = []

    def loss(model, batch):
        counts.append(batch["input_ids"].shape[0])
        assert "text" not in batch
        return model(**batch).loss * batch["input_ids"].shape[0]

    def batches():
        for _ in range(3):
            yield {**make_batch(labelled=True), "text": ["a", "b", "c"]}
        pytest.fail("more batches were read than required")

    examples = take_examples(batches(), 7, torch.device("cpu"))
    score_units(make_model(), PruningConfig(), examples, loss)
    assert counts == [3, 3, 1]


def ranked_scores(model):
    """Returns distinct scores; the second layer has the lowest."""
    generator = torch.Generator().manual_seed(3)
    infos = block_infos(model, PruningConfig())
    units = {info.name: torch.rand(info.units, generator=generator) for info in infos}
    return Scores(units, {"encoder.0": 2.0, "encoder.1": 0.5, "encoder.2": 1.0})


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75, 0.95])
def test_fraction_of_heads_with_the_lowest_scores_is_removed(make_model, fraction):
    model = make_model()
    scores = ranked_scores(model)
    selection = select_fractions(model, PruningConfig(heads=fraction), scores)
    names = [name for name in selection.units if name.endswith("attention")]
    kept = [float(scores.units[name][unit]) for name in names for unit in selection.units[name]]
    ranking = torch.cat([scores.units[name] for name in names]).sort(descending=True).values
    assert len(kept) == max(1, round(12 * (1 - fraction)))
    assert sorted(kept, reverse=True) == ranking[: len(kept)].tolist()
    assert all(len(units) == 64 for name, units in selection.units.items() if name.endswith("feed_forward"))


@pytest.mark.parametrize(("fraction", "multiple_of"), [(0.5, 1), (0.9, 1), (0.5, 8), (0.9, 16)])
def test_fraction_of_neurons_is_rounded_to_the_multiple(make_model, fraction, multiple_of):
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
def test_fraction_of_layers_with_the_lowest_scores_is_removed(make_model, fraction, kept):
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
def test_decoder_keeps_a_head_of_cross_attention(make_model, fractions):
    model = make_model("T5ForConditionalGeneration")
    scores = ranked_scores(model)
    scores.layers.update({f"decoder.{index}": float(index) for index in range(3)})
    for name, units in scores.units.items():
        if name.endswith("cross_attention"):
            units *= 1e-4
    selection = select_fractions(model, PruningConfig(**{k: f"decoder={v}" for k, v in fractions.items()}), scores)
    kept = {name: len(units) for name, units in selection.units.items() if name.startswith("decoder") and units}
    assert any(name.endswith("cross_attention") and name.rpartition(".")[0] in selection.layers for name in kept)


def test_fractions_of_heads_and_neurons_refer_to_the_kept_layers(make_model):
    model = make_model()
    config = PruningConfig(layers=0.3, heads=0.5, neurons=0.5, multiple_of=1)
    selection = select_fractions(model, config, ranked_scores(model))
    assert selection.layers == ("encoder.0", "encoder.2")
    assert sum(len(units) for name, units in selection.units.items() if name.endswith("attention")) == 4
    assert sum(len(units) for name, units in selection.units.items() if name.endswith("feed_forward")) == 64


def test_costs_are_measured_once_for_all_budgets(make_model):
    model, measured = make_model(), []

    def cost_of(selection: Selection) -> float:
        measured.append(selection)
        return float(sum(len(units) for units in selection.units.values()))

    scores = Scores(ranked_scores(model).units, {})
    selector = BudgetSelector.from_costs(model, PruningConfig(multiple_of=1), cost_of)
    count = len(measured)
    widths = [sum(len(units) for units in selector.select(budget, scores).units.values()) for budget in (20, 50, 100)]
    assert widths == [20, 50, 100]
    assert len(measured) == count < 20


def test_uniform_scope_selects_the_same_fraction_of_every_block(make_model):
    model = make_model()
    scores = ranked_scores(model)
    config = PruningConfig(multiple_of=1, scope="layer")
    selector = BudgetSelector.from_costs(model, config, lambda s: float(sum(len(units) for units in s.units.values())))
    assert selector.min_cost(scores) == 6  # one unit of every block
    assert {len(units) for units in selector.select(3 * (2 + 32), scores).units.values()} == {2, 32}


@pytest.mark.parametrize(("device", "multiple"), [("cpu", 8), ("meta", 8), ("cuda", 32)])
def test_default_widths_suit_the_device(device, multiple):
    assert default_multiple(torch.device(device)) == multiple
