import itertools
import random
import re
import time
from collections import Counter

import numpy as np
import pytest
import torch

from hf_efficient.pruning.budget import (
    BlockFacts,
    CostTable,
    Scores,
    Selection,
    choose,
    keep_best,
    measure_costs,
    smallest_cost,
)

# Whole numbers of costs are exact in the search when 4000 is a multiple of the budget.
ROOMS = [room for room in range(4, 101) if 4000 % room == 0]


def network(layers=2, heads=2, neurons=4, step=1):
    facts = []
    for index in range(layers):
        layer = f"encoder.{index}"
        facts.append(BlockFacts(f"{layer}.attention", layer, "heads", heads, 1, "encoder.attention"))
        facts.append(BlockFacts(f"{layer}.feed_forward", layer, "neurons", neurons, step, "encoder.feed_forward"))
    return facts


def random_instance(seed, uniform=False):
    """Returns a small problem whose costs and budget are whole numbers."""
    draw = random.Random(seed)
    facts = network(layers=draw.choice([1, 2, 2, 3]), heads=draw.randint(1, 2), neurons=4, step=draw.choice([1, 2, 3]))
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
    return facts, scores, table, table.base + draw.choice(ROOMS[: 8 + 2 * len(layers)])


def every_shape(facts, scores, uniform):
    """Yields the widths of every allowed shape: a layer's are None where it is gone."""
    layers = {block.layer: [other for other in facts if other.layer == block.layer] for block in facts}
    ways = []
    for layer, blocks in layers.items():
        widths = [
            dict(zip([b.name for b in blocks], w, strict=True)) for w in itertools.product(*(b.widths for b in blocks))
        ]
        ways.append([*widths, *([None] if layer in scores.layers else [])])
    for shape in itertools.product(*ways):
        left = [widths for widths in shape if widths is not None]
        if not any(width for widths in left for name, width in widths.items() if name.endswith("attention")):
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
            ordered = sorted(scores.units[name].tolist())
            error += sum(ordered[: len(ordered) - width])
    return cost, error


def shape_of(selection, facts):
    return {
        block.layer: {b.name: len(selection.units[b.name]) for b in facts if b.layer == block.layer}
        if block.layer in selection.layers
        else None
        for block in facts
    }


@pytest.mark.parametrize("uniform", [False, True], ids=["any shape", "stock shapes"])
@pytest.mark.parametrize("seed", range(60))
def test_choice_is_the_best_of_all(seed, uniform):
    facts, scores, table, budget = random_instance(seed, uniform)
    found = [cost_and_error(shape, scores, table) for shape in every_shape(facts, scores, uniform)]
    within = [error for cost, error in found if cost <= budget]
    if not within:
        with pytest.raises(ValueError, match="no shape of this network costs"):
            choose(facts, scores, table, budget, uniform)
        return
    selection = choose(facts, scores, table, budget, uniform)
    cost, error = cost_and_error(shape_of(selection, facts), scores, table)
    assert cost <= budget
    assert error == pytest.approx(min(within), abs=1e-6)
    assert table.total(selection) == pytest.approx(cost)
    assert any(selection.units[b.name] for b in facts if b.kind == "heads" and b.layer in selection.layers)


def test_the_random_instances_are_of_every_kind():
    kinds = []
    for seed, uniform in itertools.product(range(60), (False, True)):
        facts, scores, table, budget = random_instance(seed, uniform)
        costs = [cost_and_error(shape, scores, table)[0] for shape in every_shape(facts, scores, uniform)]
        full = max(costs)
        kinds.append("none fits" if min(costs) > budget else "all fit" if full <= budget else "some fit")
        if kinds[-1] == "some fit" and len(choose(facts, scores, table, budget, uniform).layers) < len(table.layer):
            kinds[-1] = "a layer goes"
    counts = Counter(kinds)
    assert counts.keys() == {"none fits", "all fit", "some fit", "a layer goes"}
    assert min(counts.values()) > 1


def test_the_best_units_of_a_block_stay():
    assert keep_best(torch.tensor([0.2, 0.9, 0.1, 0.9, 0.5]), 3) == (1, 3, 4)
    assert keep_best(torch.tensor([1.0, 1.0, 1.0]), 2) == (0, 1)
    assert keep_best(torch.tensor([1.0, 2.0]), 0) == ()


def test_error_of_a_width_is_what_goes():
    errors = Scores({"a": torch.tensor([3.0, 1.0, 2.0])}).removal_errors("a", [0, 1, 2, 3])
    assert errors.tolist() == [6.0, 3.0, 1.0, 0.0]


def test_widths_are_multiples_of_the_step_and_all():
    assert BlockFacts("b", "l", "neurons", units=10, step=4).widths == (0, 4, 8, 10)


def test_head_is_kept_even_where_giving_it_up_costs_least():
    facts = network(layers=2)
    scores = Scores(
        {block.name: torch.full((block.units,), 0.0 if block.kind == "heads" else 5.0) for block in facts},
        {"encoder.0": 1.0, "encoder.1": 1.0},
    )
    table = measure_costs(facts, lambda s: float(sum(len(keep) for keep in s.units.values())))
    selection = choose(facts, scores, table, budget=1.0)
    assert sum(len(selection.units[b.name]) for b in facts if b.kind == "heads") == 1
    assert table.total(selection) <= 1.0


def test_head_is_kept_where_nothing_matters_at_all():
    facts = network(layers=2)
    scores = Scores({block.name: torch.zeros(block.units) for block in facts}, {"encoder.0": 0.0, "encoder.1": 0.0})
    table = measure_costs(facts, lambda s: float(sum(len(keep) for keep in s.units.values())))
    selection = choose(facts, scores, table, budget=1.0)
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
    assert smallest_cost(facts, scores, table, uniform) == smallest
    message = f"no shape of this network costs {smallest - 0.5:.4g} or less; the smallest costs {smallest}"
    with pytest.raises(ValueError, match=re.escape(message)):
        choose(facts, scores, table, smallest - 0.5, uniform)
    assert choose(facts, scores, table, smallest, uniform).layers


def test_layers_without_a_score_count_in_the_smallest_cost():
    facts = network(layers=2)
    scores = Scores({block.name: torch.ones(block.units) for block in facts})
    table = measure_costs(facts, lambda s: 10.0 * len(s.layers) + sum(len(keep) for keep in s.units.values()))
    assert smallest_cost(facts, scores, table) == 2 * 10 + 1
    assert choose(facts, scores, table, 21.1).layers == ("encoder.0", "encoder.1")
    with pytest.raises(ValueError, match=r"costs 20\.5 or less; the smallest costs 21"):
        choose(facts, scores, table, 20.5)


@pytest.mark.parametrize("seed", range(20))
def test_smallest_cost_can_be_chosen(seed):
    facts, scores, table, _ = random_instance(seed)
    scores.layers.update({block.layer: 0.01 for block in facts})
    least = min(cost_and_error(shape, scores, table)[0] for shape in every_shape(facts, scores, False))
    assert smallest_cost(facts, scores, table) == least
    if least > table.base:
        assert table.total(choose(facts, scores, table, least)) == least


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
        BlockFacts("encoder.0.feed_forward", "encoder.0", "neurons", 8, 1, "encoder.feed_forward"),
        BlockFacts("encoder.1.feed_forward", "encoder.1", "neurons", 2, 1, "encoder.feed_forward"),
    ]
    table = measure_costs(facts, lambda selection: float(sum(len(keep) for keep in selection.units.values())))
    assert table.block("encoder.0.feed_forward", [0, 2, 8]).tolist() == pytest.approx([0, 2, 8])
    assert float(table.block("encoder.1.feed_forward", 2)) == pytest.approx(2)


def test_noise_does_not_make_a_wider_block_cheaper():
    noise = iter([10.0, 10.0, *([10.0, 14.0, 12.0, 18.0] * 3)])
    table = measure_costs(network(layers=1, heads=3, neurons=3), lambda selection: next(noise))
    for costs in table.costs.values():
        assert np.diff(costs).min() >= 0


def test_a_large_encoder_takes_moments():
    generator = torch.Generator().manual_seed(0)
    facts = network(layers=12, heads=12, neurons=3072, step=32)
    scores = Scores(
        {b.name: torch.rand(b.units, generator=generator) * (256 if b.kind == "heads" else 1) for b in facts},
        {f"encoder.{index}": 2000.0 for index in range(12)},
    )
    table = measure_costs(
        facts, lambda s: float(sum(len(u) * (256 if "attention" in n else 1) for n, u in s.units.items()))
    )
    full = table.total(Selection(tuple(table.layer), {b.name: tuple(range(b.units)) for b in facts}))
    start = time.process_time()
    selection = choose(facts, scores, table, full / 2)
    seconds = time.process_time() - start
    assert full * 0.49 < table.total(selection) <= full / 2
    assert seconds < 2
