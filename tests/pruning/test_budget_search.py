import itertools
import random
import re
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_efficient.pruning.budget_search import (
    keep_uniform_fraction,
    measure_costs,
    min_cost,
    select_uniformly,
    select_within_budget,
)
from hf_efficient.pruning.selection import BlockInfo, CostTable, Scores, Selection, top_units

# Costs are whole numbers, so that what rounding loses, a few thousandths, cannot matter half way between them.
HALF = 0.5


def network(layers=2, heads=2, neurons=4, step=1, stack="encoder"):
    facts = []
    for index in range(layers):
        layer = f"{stack}.{index}"
        facts.append(BlockInfo(f"{layer}.attention", layer, "heads", heads, 1, f"{stack}.attention"))
        if stack == "decoder":
            facts.append(BlockInfo(f"{layer}.cross_attention", layer, "heads", heads, 1, f"{stack}.cross_attention"))
        facts.append(BlockInfo(f"{layer}.feed_forward", layer, "neurons", neurons, step, f"{stack}.feed_forward"))
    return facts


def with_rises(draw, facts, scores):
    """Units that go together raise the loss by more than the sum of what each does, and by less."""
    together = {}
    for name, units in scores.units.items():
        steps = torch.tensor([0.0, *(draw.choice([0.0, draw.random(), 3 * draw.random()]) for _ in units)])
        together[name] = pairs(units, steps.cumsum(0))
    return facts, replace(scores, pairwise=together)


def pairs(units, rises):
    """Returns a matrix that makes the k lowest of the units rise the loss so much together, (units + 1,)."""
    return torch.diag(torch.zeros(len(units)).scatter(0, units.argsort(stable=True), rises.diff()))


def with_signs(draw, facts, scores):
    """Some units are better gone, and some layers: movement says so."""
    units = {name: each - 0.5 for name, each in scores.units.items()}
    return facts, Scores(units, {name: score - 0.5 for name, score in scores.layers.items()})


def with_a_floor(draw, facts, scores):
    """Some blocks must keep some of their units."""
    return [replace(block, min_units=min(block.units, draw.choice([0, 0, 1, 2]))) for block in facts], scores


PARTICULAR = {
    "any": lambda draw, facts, scores: (facts, scores),
    "looks at an encoder": lambda draw, facts, scores: (facts, scores),
    "together": with_rises,
    "signed": with_signs,
    "floors": with_a_floor,
}


def random_instance(seed, uniform=False, kind="any"):
    """Returns a small problem whose costs and budget are whole numbers."""
    draw = random.Random(seed)
    stack, most = ("decoder", 2) if kind == "looks at an encoder" else ("encoder", 3)
    layers, heads, step = min(most, draw.choice([1, 2, 2, 3])), draw.randint(1, 2), draw.choice([1, 2, 3])
    facts = network(layers, heads, neurons=4, step=step, stack=stack)
    layers = tuple(dict.fromkeys(block.layer for block in facts))
    table = CostTable(
        base=float(draw.randint(0, 5)),
        layer={layer: float(draw.randint(0, 2)) for layer in layers},
        widths={block.name: list(range(block.units + 1)) for block in facts},
        costs={
            block.name: list(itertools.accumulate([0.0, *(float(draw.randint(0, 5)) for _ in range(block.units))]))
            for block in facts
        },
    )
    scores = Scores(
        {block.name: torch.tensor([draw.choice([0.0, draw.random()]) for _ in range(block.units)]) for block in facts},
        {layer: draw.choice([0.1, 1.0]) * draw.random() for layer in layers if uniform or draw.random() < 0.8},
    )
    facts, scores = PARTICULAR[kind](draw, facts, scores)
    return facts, scores, table, table.base + draw.randint(2, 10 + 10 * len(layers)) + HALF


def every_shape(facts, scores, uniform):
    """Yields the widths of every allowed shape: a layer's are None where it is gone."""
    attending = "cross_attention" if any(b.name.endswith("cross_attention") for b in facts) else "attention"
    layers = {block.layer: [other for other in facts if other.layer == block.layer] for block in facts}
    ways = []
    for layer, blocks in layers.items():
        widths = [
            dict(zip([b.name for b in blocks], w, strict=True)) for w in itertools.product(*(b.widths for b in blocks))
        ]
        may_go = layer in scores.layers and not any(block.min_units for block in blocks)
        ways.append([*widths, *([None] if may_go else [])])
    for shape in itertools.product(*ways):
        left = [widths for widths in shape if widths is not None]
        if not any(width for widths in left for name, width in widths.items() if name.endswith(attending)):
            continue
        if uniform:
            full = all(
                widths[b.name] == b.units for widths in left for b in facts if b.kind == "heads" and b.name in widths
            )
            common = {width for widths in left for name, width in widths.items() if name.endswith("feed_forward")}
            if not full or len(common) != 1 or common == {0}:
                continue
        yield dict(zip(layers, shape, strict=True))


def cost_and_error(shape, scores, table):
    cost, error = table.base, 0.0
    for layer, widths in shape.items():
        if widths is None:
            error += scores.layers[layer]
            continue
        cost += table.layer[layer]
        for name, width in widths.items():
            cost += table.costs[name][width]
            units = scores.units[name]
            gone = units.argsort(stable=True)[: len(units) - width]
            error += float(scores.pairwise[name][gone][:, gone].sum() if scores.pairwise else units[gone].sum())
    return cost, error


def shape_of(selection, facts):
    return {
        block.layer: {b.name: len(selection.units[b.name]) for b in facts if b.layer == block.layer}
        if block.layer in selection.layers
        else None
        for block in facts
    }


@pytest.mark.parametrize("uniform", [False, True], ids=["any shape", "stock shapes"])
@pytest.mark.parametrize(
    ("kind", "seed"), [(kind, seed) for kind in PARTICULAR for seed in range(60 if kind == "any" else 25)]
)
def test_choice_is_the_best_of_all(seed, kind, uniform):
    facts, scores, table, budget = random_instance(seed, uniform, kind)
    found = [cost_and_error(shape, scores, table) for shape in every_shape(facts, scores, uniform)]
    within = [error for cost, error in found if cost <= budget]
    if not within:
        with pytest.raises(ValueError, match="no shape of this network costs"):
            select_within_budget(facts, scores, table, budget, uniform)
        return
    selection = select_within_budget(facts, scores, table, budget, uniform)
    cost, error = cost_and_error(shape_of(selection, facts), scores, table)
    assert cost <= budget
    assert error == pytest.approx(min(within), abs=1e-6)
    assert table.total(selection) == pytest.approx(cost)
    assert any(selection.units[b.name] for b in facts if b.kind == "heads" and b.layer in selection.layers)
    for block in facts:
        kept = selection.units[block.name]
        assert len(kept) >= block.min_units
        assert kept == top_units(scores.units[block.name], len(kept))


def test_the_random_instances_are_of_every_kind():
    kinds = []
    for seed, uniform in itertools.product(range(60), (False, True)):
        facts, scores, table, budget = random_instance(seed, uniform)
        costs = [cost_and_error(shape, scores, table)[0] for shape in every_shape(facts, scores, uniform)]
        full = max(costs)
        kinds.append("none fits" if min(costs) > budget else "all fit" if full <= budget else "some fit")
        if kinds[-1] == "some fit" and len(select_within_budget(facts, scores, table, budget, uniform).layers) < len(
            table.layer
        ):
            kinds[-1] = "a layer goes"
    counts = Counter(kinds)
    assert counts.keys() == {"none fits", "all fit", "some fit", "a layer goes"}
    assert min(counts.values()) > 1


def test_the_best_units_of_a_block_stay():
    assert top_units(torch.tensor([0.2, 0.9, 0.1, 0.9, 0.5]), 3) == (1, 3, 4)
    assert top_units(torch.tensor([1.0, 1.0, 1.0]), 2) == (0, 1)
    assert top_units(torch.tensor([1.0, 2.0]), 0) == ()


def test_error_of_a_width_is_what_goes():
    errors = Scores({"a": torch.tensor([3.0, 1.0, 2.0])}).removal_errors("a", [0, 1, 2, 3])
    assert errors.tolist() == [6.0, 3.0, 1.0, 0.0]


def test_error_of_a_width_is_that_of_what_goes_together():
    # The lowest alone 1; with the next, whose own is 2, twice 3 for the pair; the last one takes some of it back.
    matrix = torch.tensor([[3.0, 0.0, -1.25], [0.0, 1.0, 3.0], [-1.25, 3.0, 2.0]])
    scores = Scores({"a": torch.tensor([3.0, 1.0, 2.0])}, pairwise={"a": matrix})
    assert scores.removal_errors("a", [0, 1, 2, 3]).tolist() == [9.5, 9.0, 1.0, 0.0]


def test_error_of_a_width_falls_below_zero_where_units_are_better_gone():
    errors = Scores({"a": torch.tensor([3.0, -1.0, -2.0])}).removal_errors("a", [0, 1, 2, 3])
    assert errors.tolist() == [0.0, -3.0, -2.0, 0.0]


def test_a_function_maps_every_tensor_of_scores():
    scores = Scores({"a": torch.tensor([1.0, 2.0])}, {"l": 3.0}, {"a": torch.tensor([[1.0, 0.5], [0.5, 2.0]])})
    doubled = scores.map(lambda values: 2 * values)
    assert doubled.units["a"].tolist() == [2, 4]
    assert doubled.layers == {"l": 6.0}
    assert doubled.pairwise["a"].tolist() == [[2, 1], [1, 4]]


@pytest.mark.parametrize(
    ("units", "step", "least", "widths"),
    [
        (10, 4, 0, (0, 4, 8, 10)),
        (8, 4, 0, (0, 4, 8)),
        (10, 4, 5, (8, 10)),
        (10, 4, 8, (8, 10)),
        (10, 4, 9, (10,)),
        (10, 1, 10, (10,)),
        (0, 8, 0, (0,)),
    ],
)
def test_widths_are_multiples_of_the_step_and_all(units, step, least, widths):
    assert BlockInfo("b", "l", "neurons", units=units, step=step, min_units=least).widths == widths


def test_head_is_kept_even_where_giving_it_up_costs_least():
    facts = network(layers=2)
    scores = Scores(
        {block.name: torch.full((block.units,), 0.0 if block.kind == "heads" else 5.0) for block in facts},
        {"encoder.0": 1.0, "encoder.1": 1.0},
    )
    table = measure_costs(facts, lambda s: float(sum(len(keep) for keep in s.units.values())))
    selection = select_within_budget(facts, scores, table, budget=1.0)
    assert sum(len(selection.units[b.name]) for b in facts if b.kind == "heads") == 1
    assert table.total(selection) <= 1.0


def test_head_is_kept_where_nothing_matters_at_all():
    facts = network(layers=2)
    scores = Scores({block.name: torch.zeros(block.units) for block in facts}, {"encoder.0": 0.0, "encoder.1": 0.0})
    table = measure_costs(facts, lambda s: float(sum(len(keep) for keep in s.units.values())))
    selection = select_within_budget(facts, scores, table, budget=1.0)
    assert sum(len(selection.units[b.name]) for b in facts if b.kind == "heads" and b.layer in selection.layers) == 1


@pytest.mark.parametrize(("uniform", "smallest"), [(False, 2 + 1 + 10), (True, 2 + 1 + 20 + 2)])
def test_unreachable_budget_is_told_the_smallest_cost(uniform, smallest):
    facts = network(layers=3, heads=2, neurons=4, step=2)

    def cost_of(selection):
        units = {
            kind: sum(len(selection.units[b.name]) for b in facts if b.kind == kind) for kind in ("heads", "neurons")
        }
        return 2.0 + len(selection.layers) + 10 * units["heads"] + units["neurons"]

    scores = Scores(
        {b.name: torch.ones(b.units) for b in facts}, dict.fromkeys(("encoder.0", "encoder.1", "encoder.2"), 1)
    )
    table = measure_costs(facts, cost_of)
    assert min_cost(facts, scores, table, uniform) == smallest
    message = f"no shape of this network costs {smallest - 0.5:.4g} or less; the smallest costs {smallest}"
    with pytest.raises(ValueError, match=re.escape(message)):
        select_within_budget(facts, scores, table, smallest - 0.5, uniform)
    assert select_within_budget(facts, scores, table, smallest, uniform).layers


def test_a_layer_that_lost_its_heads_cannot_be_the_one_that_attends():
    facts = [replace(block, units=0) if block.name == "encoder.1.attention" else block for block in network(layers=2)]
    scores = Scores({block.name: torch.ones(block.units) for block in facts}, {"encoder.0": 1.0, "encoder.1": 1.0})
    table = CostTable(
        base=1.0,
        layer={"encoder.0": 3.0, "encoder.1": 1.0},
        widths={block.name: [0, block.units or 1] for block in facts},
        costs={block.name: [0.0, float(block.units)] for block in facts},
    )
    assert min_cost(facts, scores, table) == 1 + 3 + 1
    assert select_within_budget(facts, scores, table, 5.0).layers == ("encoder.0",)


def test_layers_without_a_score_count_in_the_smallest_cost():
    facts = network(layers=2)
    scores = Scores({block.name: torch.ones(block.units) for block in facts})
    table = measure_costs(facts, lambda s: 10.0 * len(s.layers) + sum(len(keep) for keep in s.units.values()))
    assert min_cost(facts, scores, table) == 2 * 10 + 1
    assert select_within_budget(facts, scores, table, 21.1).layers == ("encoder.0", "encoder.1")
    with pytest.raises(ValueError, match=r"costs 20\.5 or less; the smallest costs 21"):
        select_within_budget(facts, scores, table, 20.5)


@pytest.mark.parametrize("kind", PARTICULAR)
@pytest.mark.parametrize("seed", range(20))
def test_smallest_cost_can_be_chosen(seed, kind):
    facts, scores, table, _ = random_instance(seed, kind=kind)
    scores.layers.update({block.layer: 0.01 for block in facts})
    least = min(cost_and_error(shape, scores, table)[0] for shape in every_shape(facts, scores, False))
    assert min_cost(facts, scores, table) == least
    if least > table.base:
        assert table.total(select_within_budget(facts, scores, table, least)) == least


def test_costs_are_those_of_the_network_where_they_add_up():
    facts = network(layers=3, heads=4, neurons=64)

    def cost_of(selection):
        heads = sum(len(selection.units[b.name]) for b in facts if b.kind == "heads")
        neurons = sum(len(selection.units[b.name]) for b in facts if b.kind == "neurons")
        return 7 + 2 * len(selection.layers) + 3 * heads + 0.5 * neurons

    table = measure_costs(facts, cost_of)
    assert (table.base, table.layer) == (7, {"encoder.0": 2, "encoder.1": 2, "encoder.2": 2})
    units = {block.name: tuple(range(3 if block.kind == "heads" else 17)) for block in facts}
    for layers in (("encoder.0", "encoder.1", "encoder.2"), ("encoder.1",), ()):
        selection = Selection(layers, {n: u if n.rpartition(".")[0] in layers else () for n, u in units.items()})
        assert table.total(selection) == pytest.approx(cost_of(selection))


def test_costs_of_blocks_that_were_cut_unevenly_are_shared_by_their_width():
    facts = [
        BlockInfo("encoder.0.feed_forward", "encoder.0", "neurons", 8, 1, "encoder.feed_forward"),
        BlockInfo("encoder.1.feed_forward", "encoder.1", "neurons", 2, 1, "encoder.feed_forward"),
    ]
    table = measure_costs(facts, lambda selection: float(sum(len(keep) for keep in selection.units.values())))
    assert table.block("encoder.0.feed_forward", [0, 2, 8]).tolist() == pytest.approx([0, 2, 8])
    assert float(table.block("encoder.1.feed_forward", 2)) == pytest.approx(2)


def test_noise_does_not_make_a_wider_block_cheaper():
    noise = iter([10.0, 10.0, *([10.0, 14.0, 12.0, 18.0] * 3)])
    table = measure_costs(network(layers=1, heads=3, neurons=3), lambda selection: next(noise))
    for costs in table.costs.values():
        assert np.diff(costs).min() >= 0


def test_what_must_stay_keeps_its_layer_however_little_it_matters():
    facts = [replace(block, min_units=1 if block.name == "encoder.1.feed_forward" else 0) for block in network(layers=3)]
    scores = Scores({block.name: torch.ones(block.units) for block in facts}, {f"encoder.{i}": 0.0 for i in range(3)})
    table = measure_costs(facts, lambda s: 5.0 * len(s.layers) + sum(len(keep) for keep in s.units.values()))
    assert min_cost(facts, scores, table) == 5 + 1 + 1
    selection = select_within_budget(facts, scores, table, 7.0)
    assert selection.layers == ("encoder.1",)
    assert [len(selection.units[f"encoder.1.{block}"]) for block in ("attention", "feed_forward")] == [1, 1]


def test_units_that_go_together_are_told_from_units_that_go_alone():
    """Two layers alike but for what their neurons do together: alone each is worth little, in one layer all are."""
    facts = network(layers=2, heads=1, neurons=4)
    units = {block.name: torch.ones(block.units) * (9.0 if block.kind == "heads" else 0.1) for block in facts}
    together = {name: pairs(scores, torch.arange(len(scores) + 1) * scores[0]) for name, scores in units.items()}
    first = "encoder.0.feed_forward"
    together[first] = pairs(units[first], torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0]))
    table = measure_costs(facts, lambda s: float(sum(len(keep) for keep in s.units.values())))
    selection = select_within_budget(facts, Scores(units, pairwise=together), table, budget=2 + 4 + HALF)
    assert [len(selection.units[f"encoder.{i}.feed_forward"]) for i in range(2)] == [4, 0]
    selection = select_within_budget(facts, Scores(units, pairwise=together), table, budget=2 + 3 + HALF)
    assert [len(selection.units[f"encoder.{i}.feed_forward"]) for i in range(2)] == [3, 0]


# ---- the same share of every block ----


def uneven(least=0):
    """Blocks of 4 heads and of 39 neurons, and one that is empty already."""
    facts = [replace(block, min_units=least) for block in network(layers=2, heads=4, neurons=39)]
    return [*facts, BlockInfo("encoder.2.attention", "encoder.2", "heads", 0, 1, "encoder.attention")]


def even_instance(least=0):
    facts = uneven(least)
    generator = torch.Generator().manual_seed(0)
    scores = Scores({block.name: torch.rand(block.units, generator=generator) for block in facts})
    return facts, scores, measure_costs(facts, lambda s: float(sum(len(keep) for keep in s.units.values())))


@pytest.mark.parametrize(
    ("fraction", "widths"), [(1.0, [4, 39]), (0.5, [2, 20]), (0.25, [1, 10]), (25 / 39, [3, 25]), (0.0, [1, 1])]
)
def test_every_block_keeps_the_same_share(fraction, widths):
    facts, scores, _ = even_instance()
    selection = keep_uniform_fraction(facts, scores, fraction)
    assert selection.layers == ("encoder.0", "encoder.1", "encoder.2")
    assert [len(selection.units[block.name]) for block in facts] == [*widths, *widths, 0]
    for name, kept in selection.units.items():
        assert kept == top_units(scores.units[name], len(kept))


def test_every_share_that_there_is_is_found_in_spite_of_rounding():
    for units in range(1, 130):
        block = BlockInfo("e.0.f", "e.0", "neurons", units)
        scores = Scores({block.name: torch.zeros(units)})
        widths = [
            len(keep_uniform_fraction([block], scores, width / units).units[block.name])
            for width in range(1, units + 1)
        ]
        assert widths == list(range(1, units + 1))


@pytest.mark.parametrize("budget", [4, 5, 21, 22, 43, 56, 85.9, 86, 1000])
def test_even_choice_is_the_largest_that_fits(budget):
    facts, scores, table = even_instance()
    selection = select_uniformly(facts, scores, table, budget)
    shares = {width / block.units for block in facts for width in block.widths if block.units}
    costs = [table.total(keep_uniform_fraction(facts, scores, share)) for share in shares]
    assert table.total(selection) == max(cost for cost in costs if cost <= budget)


def test_even_choice_keeps_what_must_stay():
    facts, scores, table = even_instance(least=3)
    selection = select_uniformly(facts, scores, table, budget=13)
    assert [len(selection.units[block.name]) for block in facts] == [3, 3, 3, 3, 0]


def test_even_choice_out_of_reach_is_told_the_smallest_cost():
    facts, scores, table = even_instance()
    message = "no shape with even layers costs 3.5 or less; the smallest costs 4"
    with pytest.raises(ValueError, match=re.escape(message)):
        select_uniformly(facts, scores, table, 3.5)


# ---- time ----


@pytest.mark.parametrize("uniform", [False, True], ids=["any shape", "stock shapes"])
@pytest.mark.parametrize("stacks", [["encoder"], ["encoder", "decoder"]], ids=["BERT", "T5"])
def test_a_search_over_twelve_layers_takes_under_a_second(stacks, uniform):
    generator = torch.Generator().manual_seed(0)
    facts = [block for stack in stacks for block in network(12, heads=12, neurons=3072, step=8, stack=stack)]
    scores = Scores(
        {b.name: torch.rand(b.units, generator=generator) * (256 if b.kind == "heads" else 1) for b in facts},
        {block.layer: 2000.0 for block in facts},
    )
    table = measure_costs(
        facts, lambda s: float(sum(len(u) * (256 if "attention" in n else 1) for n, u in s.units.items()))
    )
    full = table.total(Selection(tuple(table.layer), {b.name: tuple(range(b.units)) for b in facts}))
    start = time.process_time()
    selection = select_within_budget(facts, scores, table, full / 2, uniform)
    seconds = time.process_time() - start
    assert full * (0.4 if uniform else 0.49) < table.total(selection) <= full / 2
    assert seconds < 1
