import itertools
import random
import re
import time
from collections import Counter
from dataclasses import replace

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

# Costs are integers, so that the rounding of the search, a few thousandths, makes no difference half way between them.
HALF = 0.5


def network(layers=2, heads=2, neurons=4, step=1, stack="encoder"):
    blocks = []
    for index in range(layers):
        layer = f"{stack}.{index}"
        blocks.append(BlockInfo(f"{layer}.attention", layer, "heads", heads, 1, f"{stack}.attention"))
        if stack == "decoder":
            blocks.append(BlockInfo(f"{layer}.cross_attention", layer, "heads", heads, 1, f"{stack}.cross_attention"))
        blocks.append(BlockInfo(f"{layer}.feed_forward", layer, "neurons", neurons, step, f"{stack}.feed_forward"))
    return blocks


def pairs(units, errors):
    """Returns a matrix by which removing the k lowest units costs `errors[k]`, (units + 1,)."""
    return torch.diag(torch.zeros(len(units)).scatter(0, units.argsort(stable=True), errors.diff()))


def with_pairwise_scores(draw, blocks, scores):
    """Units that are removed together cost more, or less, than the sum of their scores."""
    pairwise = {}
    for name, units in scores.units.items():
        steps = torch.tensor([0.0, *(draw.choice([0.0, draw.random(), 3 * draw.random()]) for _ in units)])
        pairwise[name] = pairs(units, steps.cumsum(0))
    return blocks, replace(scores, pairwise=pairwise)


def with_negative_scores(draw, blocks, scores):
    """Some units and layers have negative scores, as those of movement."""
    units = {name: each - 0.5 for name, each in scores.units.items()}
    return blocks, Scores(units, {name: score - 0.5 for name, score in scores.layers.items()})


def with_min_units(draw, blocks, scores):
    """Some blocks must keep some of their units."""
    return [replace(block, min_units=min(block.units, draw.choice([0, 0, 1, 2]))) for block in blocks], scores


KINDS = {
    "plain": lambda draw, blocks, scores: (blocks, scores),
    "cross attention": lambda draw, blocks, scores: (blocks, scores),
    "pairwise scores": with_pairwise_scores,
    "negative scores": with_negative_scores,
    "min units": with_min_units,
}


def random_instance(seed, uniform=False, kind="plain"):
    """Returns a small problem whose costs and budget are integers."""
    draw = random.Random(seed)
    stack, max_layers = ("decoder", 2) if kind == "cross attention" else ("encoder", 3)
    layers, heads, step = min(max_layers, draw.choice([1, 2, 2, 3])), draw.randint(1, 2), draw.choice([1, 2, 3])
    blocks = network(layers, heads, neurons=4, step=step, stack=stack)
    layers = tuple(dict.fromkeys(block.layer for block in blocks))
    table = CostTable(
        base=float(draw.randint(0, 5)),
        layer={layer: float(draw.randint(0, 2)) for layer in layers},
        widths={block.name: list(range(block.units + 1)) for block in blocks},
        costs={
            block.name: list(itertools.accumulate([0.0, *(float(draw.randint(0, 5)) for _ in range(block.units))]))
            for block in blocks
        },
    )
    scores = Scores(
        {
            block.name: torch.tensor([draw.choice([0.0, draw.random()]) for _ in range(block.units)])
            for block in blocks
        },
        {layer: draw.choice([0.1, 1.0]) * draw.random() for layer in layers if uniform or draw.random() < 0.8},
    )
    blocks, scores = KINDS[kind](draw, blocks, scores)
    return blocks, scores, table, table.base + draw.randint(2, 10 + 10 * len(layers)) + HALF


def layer_options(layer, blocks, scores, table, uniform):
    """Yields (widths, cost, error) of every way to keep a layer, and of its removal, whose widths are None."""
    members = [block for block in blocks if block.layer == layer]
    removal_errors = {}
    for block in members:
        units = scores.units[block.name]
        order = units.argsort(stable=True)
        for width in block.widths:
            removed = order[: len(units) - width]
            values = scores.pairwise[block.name][removed][:, removed] if scores.pairwise else units[removed]
            removal_errors[block.name, width] = float(values.sum())
    for widths in itertools.product(*(block.widths for block in members)):
        kept = {block.name: width for block, width in zip(members, widths, strict=True)}
        if uniform and any(kept[block.name] != block.units for block in members if block.kind == "heads"):
            continue
        cost = table.layer[layer] + sum(table.costs[name][width] for name, width in kept.items())
        yield kept, cost, sum(removal_errors[item] for item in kept.items())
    if layer in scores.layers and not any(block.min_units for block in members):
        yield None, 0.0, scores.layers[layer]


def every_shape(blocks, scores, table, uniform):
    """Yields (cost, error, widths by layer) of every allowed shape."""
    has_cross_attention = any(block.name.endswith("cross_attention") for block in blocks)
    required = "cross_attention" if has_cross_attention else "attention"
    layers = list(dict.fromkeys(block.layer for block in blocks))
    options = [list(layer_options(layer, blocks, scores, table, uniform)) for layer in layers]
    for shape in itertools.product(*options):
        kept = [widths for widths, _, _ in shape if widths is not None]
        if not any(width for widths in kept for name, width in widths.items() if name.endswith(required)):
            continue
        if uniform:
            common = {width for widths in kept for name, width in widths.items() if name.endswith("feed_forward")}
            if len(common) != 1 or common == {0}:
                continue
        yield (
            table.base + sum(cost for _, cost, _ in shape),
            sum(error for _, _, error in shape),
            dict(zip(layers, (widths for widths, _, _ in shape), strict=True)),
        )


def total_units(shape):
    return sum(sum(widths.values()) for widths in shape.values() if widths is not None)


def contains(larger, smaller):
    """Whether a shape has all that another one has, and more units."""
    return total_units(larger) > total_units(smaller) and all(
        widths is None
        or (larger[layer] is not None and all(larger[layer][name] >= width for name, width in widths.items()))
        for layer, widths in smaller.items()
    )


def leaves_out_free_units(candidate, shapes):
    """Whether another one of the (cost, error, shape) costs the same and contains the candidate."""
    return any(cost == candidate[0] and contains(shape, candidate[2]) for cost, _, shape in shapes)


def shape_of(selection, blocks):
    return {
        block.layer: {b.name: len(selection.units[b.name]) for b in blocks if b.layer == block.layer}
        if block.layer in selection.layers
        else None
        for block in blocks
    }


@pytest.mark.parametrize("uniform", [False, True], ids=["any shape", "stock shapes"])
@pytest.mark.parametrize("kind", KINDS)
def test_selection_is_the_best_of_all_shapes_that_leave_out_nothing_free(kind, uniform):
    for seed in range(60 if kind == "plain" else 25):
        blocks, scores, table, budget = random_instance(seed, uniform, kind)
        shapes = list(every_shape(blocks, scores, table, uniform))
        fitting = sorted((shape for shape in shapes if shape[0] <= budget), key=lambda shape: shape[1])
        if not fitting:
            with pytest.raises(ValueError, match="no shape of this network costs"):
                select_within_budget(blocks, scores, table, budget, uniform)
            continue
        lowest_error = next(shape[1] for shape in fitting if not leaves_out_free_units(shape, fitting))
        selection = select_within_budget(blocks, scores, table, budget, uniform)
        selected = next(shape for shape in fitting if shape[2] == shape_of(selection, blocks))
        assert not leaves_out_free_units(selected, fitting)
        assert selected[1] == pytest.approx(lowest_error, abs=1e-6)
        assert table.total(selection) == pytest.approx(selected[0])
        assert any(selection.units[b.name] for b in blocks if b.kind == "heads" and b.layer in selection.layers)
        for block in blocks:
            kept = selection.units[block.name]
            assert len(kept) >= block.min_units
            assert kept == top_units(scores.units[block.name], len(kept))


def test_random_instances_cover_every_outcome():
    outcomes = []
    for seed, uniform in itertools.product(range(60), (False, True)):
        blocks, scores, table, budget = random_instance(seed, uniform)
        costs = [cost for cost, _, _ in every_shape(blocks, scores, table, uniform)]
        if min(costs) > budget:
            outcomes.append("none fits")
        elif max(costs) <= budget:
            outcomes.append("all fit")
        else:
            layers = select_within_budget(blocks, scores, table, budget, uniform).layers
            outcomes.append("a layer is removed" if len(layers) < len(table.layer) else "some fit")
    counts = Counter(outcomes)
    assert counts.keys() == {"none fits", "all fit", "some fit", "a layer is removed"}
    assert min(counts.values()) > 1


def test_top_units_are_the_best_ones():
    assert top_units(torch.tensor([0.2, 0.9, 0.1, 0.9, 0.5]), 3) == (1, 3, 4)
    assert top_units(torch.tensor([1.0, 1.0, 1.0]), 2) == (0, 1)
    assert top_units(torch.tensor([1.0, 2.0]), 0) == ()


def test_removal_error_is_the_sum_of_the_removed_scores():
    errors = Scores({"a": torch.tensor([3.0, 1.0, 2.0])}).removal_errors("a", [0, 1, 2, 3])
    assert errors.tolist() == [6.0, 3.0, 1.0, 0.0]


def test_removal_error_is_the_sum_over_pairs():
    # The lowest unit costs 1; with the next one, 2 more and twice 3 for the pair; with the last one, less than before.
    matrix = torch.tensor([[3.0, 0.0, -1.25], [0.0, 1.0, 3.0], [-1.25, 3.0, 2.0]])
    scores = Scores({"a": torch.tensor([3.0, 1.0, 2.0])}, pairwise={"a": matrix})
    assert scores.removal_errors("a", [0, 1, 2, 3]).tolist() == [9.5, 9.0, 1.0, 0.0]


def test_removal_error_is_negative_for_negative_scores():
    errors = Scores({"a": torch.tensor([3.0, -1.0, -2.0])}).removal_errors("a", [0, 1, 2, 3])
    assert errors.tolist() == [0.0, -3.0, -2.0, 0.0]


def test_map_applies_a_function_to_every_score():
    scores = Scores({"a": torch.tensor([1.0, 2.0])}, {"l": 3.0}, {"a": torch.tensor([[1.0, 0.5], [0.5, 2.0]])})
    doubled = scores.map(lambda values: 2 * values)
    assert doubled.units["a"].tolist() == [2, 4]
    assert doubled.layers == {"l": 6.0}
    assert doubled.pairwise["a"].tolist() == [[2, 1], [1, 4]]


@pytest.mark.parametrize(
    ("units", "step", "min_units", "widths"),
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
def test_widths_are_multiples_of_the_step_and_all(units, step, min_units, widths):
    assert BlockInfo("b", "l", "neurons", units=units, step=step, min_units=min_units).widths == widths


def test_one_head_is_kept_even_if_heads_have_the_lowest_scores():
    blocks = network(layers=2)
    scores = Scores(
        {block.name: torch.full((block.units,), 0.0 if block.kind == "heads" else 5.0) for block in blocks},
        {"encoder.0": 1.0, "encoder.1": 1.0},
    )
    table = measure_costs(blocks, lambda s: float(sum(len(keep) for keep in s.units.values())))
    selection = select_within_budget(blocks, scores, table, budget=1.0)
    assert sum(len(selection.units[b.name]) for b in blocks if b.kind == "heads") == 1
    assert table.total(selection) <= 1.0


def test_one_head_is_kept_if_all_scores_are_zero():
    blocks = network(layers=2)
    scores = Scores({block.name: torch.zeros(block.units) for block in blocks}, {"encoder.0": 0.0, "encoder.1": 0.0})
    table = measure_costs(blocks, lambda s: float(sum(len(keep) for keep in s.units.values())))
    selection = select_within_budget(blocks, scores, table, budget=1.0)
    assert sum(len(selection.units[b.name]) for b in blocks if b.kind == "heads" and b.layer in selection.layers) == 1


@pytest.mark.parametrize(("uniform", "smallest"), [(False, 2 + 1 + 10), (True, 2 + 1 + 20 + 2)])
def test_unreachable_budget_names_the_smallest_cost(uniform, smallest):
    blocks = network(layers=3, heads=2, neurons=4, step=2)

    def cost_of(selection):
        units = {
            kind: sum(len(selection.units[b.name]) for b in blocks if b.kind == kind) for kind in ("heads", "neurons")
        }
        return 2.0 + len(selection.layers) + 10 * units["heads"] + units["neurons"]

    scores = Scores(
        {b.name: torch.ones(b.units) for b in blocks}, dict.fromkeys(("encoder.0", "encoder.1", "encoder.2"), 1)
    )
    table = measure_costs(blocks, cost_of)
    assert min_cost(blocks, scores, table, uniform) == smallest
    message = f"no shape of this network costs {smallest - 0.5:.4g} or less; the smallest costs {smallest}"
    with pytest.raises(ValueError, match=re.escape(message)):
        select_within_budget(blocks, scores, table, smallest - 0.5, uniform)
    assert select_within_budget(blocks, scores, table, smallest, uniform).layers


def test_required_head_is_not_in_a_layer_without_heads():
    blocks = [replace(block, units=0) if block.name == "encoder.1.attention" else block for block in network(layers=2)]
    scores = Scores({block.name: torch.ones(block.units) for block in blocks}, {"encoder.0": 1.0, "encoder.1": 1.0})
    table = CostTable(
        base=1.0,
        layer={"encoder.0": 3.0, "encoder.1": 1.0},
        widths={block.name: [0, block.units or 1] for block in blocks},
        costs={block.name: [0.0, float(block.units)] for block in blocks},
    )
    assert min_cost(blocks, scores, table) == 1 + 3 + 1
    assert select_within_budget(blocks, scores, table, 5.0).layers == ("encoder.0",)


def test_layers_without_a_score_are_part_of_the_smallest_cost():
    blocks = network(layers=2)
    scores = Scores({block.name: torch.ones(block.units) for block in blocks})
    table = measure_costs(blocks, lambda s: 10.0 * len(s.layers) + sum(len(keep) for keep in s.units.values()))
    assert min_cost(blocks, scores, table) == 2 * 10 + 1
    assert select_within_budget(blocks, scores, table, 21.1).layers == ("encoder.0", "encoder.1")
    with pytest.raises(ValueError, match=r"costs 20\.5 or less; the smallest costs 21"):
        select_within_budget(blocks, scores, table, 20.5)


@pytest.mark.parametrize("kind", KINDS)
def test_smallest_cost_can_be_selected(kind):
    for seed in range(20):
        blocks, scores, table, _ = random_instance(seed, kind=kind)
        scores.layers.update({block.layer: 0.01 for block in blocks})
        smallest = min(cost for cost, _, _ in every_shape(blocks, scores, table, False))
        assert min_cost(blocks, scores, table) == smallest
        if smallest > table.base:
            assert table.total(select_within_budget(blocks, scores, table, smallest)) == smallest


@pytest.mark.parametrize("runs_without_layers", [True, False])
def test_measured_costs_are_exact_for_additive_costs(runs_without_layers):
    blocks = network(layers=3, heads=4, neurons=64)

    def cost_of(selection):
        heads = sum(len(selection.units[b.name]) for b in blocks if b.kind == "heads")
        neurons = sum(len(selection.units[b.name]) for b in blocks if b.kind == "neurons")
        return 7 + 2 * len(selection.layers) + 3 * heads + 0.5 * neurons

    measured = []
    table = measure_costs(
        blocks, lambda each: measured.append(each) or cost_of(each), runs_without_layers=runs_without_layers
    )
    assert any(not each.layers for each in measured) is runs_without_layers
    assert (table.base, table.layer) == (7, {"encoder.0": 2, "encoder.1": 2, "encoder.2": 2})
    units = {block.name: tuple(range(3 if block.kind == "heads" else 17)) for block in blocks}
    for layers in (("encoder.0", "encoder.1", "encoder.2"), ("encoder.1",), ()):
        selection = Selection(layers, {n: u if n.rpartition(".")[0] in layers else () for n, u in units.items()})
        assert table.total(selection) == pytest.approx(cost_of(selection))


def test_costs_are_divided_by_width_among_blocks_of_different_sizes():
    blocks = [
        BlockInfo("encoder.0.feed_forward", "encoder.0", "neurons", 8, 1, "encoder.feed_forward"),
        BlockInfo("encoder.1.feed_forward", "encoder.1", "neurons", 2, 1, "encoder.feed_forward"),
    ]
    table = measure_costs(blocks, lambda selection: float(sum(len(keep) for keep in selection.units.values())))
    assert table.block("encoder.0.feed_forward", [0, 2, 8]).tolist() == pytest.approx([0, 2, 8])
    assert float(table.block("encoder.1.feed_forward", 2)) == pytest.approx(2)


def measured_costs(*samples):
    """Returns the costs of a block of four units, by its width, from the samples of 1 to 4 units on top of 10."""
    samples = iter([10.0, 10.0, *(10.0 + sample for sample in samples)])
    block = BlockInfo("encoder.0.feed_forward", "encoder.0", "neurons", 4, 1, "encoder.feed_forward")
    costs = measure_costs([block], lambda selection: next(samples)).costs[block.name]
    assert list(samples) == []
    return costs


@pytest.mark.parametrize(
    ("samples", "costs"),
    [
        ([0.1, 0.2, 0.4, 0.5], [0, 0.1, 0.2, 0.4, 0.5]),
        ([0.1, 0.5, 0.2, 0.3], [0, 0.1, 1 / 3, 1 / 3, 1 / 3]),
        ([0.1, 0.5, 0.2, 0.6], [0, 0.1, 0.35, 0.35, 0.6]),
        ([-0.2, -0.3, 0.2, 0.1], [0, 0, 0, 0.15, 0.15]),
    ],
    ids=["monotone", "one step down", "step down and up", "negative"],
)
def test_noisy_costs_are_replaced_by_the_closest_that_do_not_decrease(samples, costs):
    assert measured_costs(*samples) == pytest.approx(costs)


def test_slow_sample_is_measured_again():
    assert measured_costs(1.0, 9.0, 3.0, 4.0, 2.0) == pytest.approx([0, 1, 2, 3, 4])


def test_sample_that_stays_slow_does_not_lift_all_later_ones():
    assert measured_costs(1.0, 5.0, 3.0, 5.0, 7.0) == pytest.approx([0, 1, 4, 4, 5])


def test_layer_with_min_units_is_kept_whatever_its_score():
    blocks = [
        replace(block, min_units=1 if block.name == "encoder.1.feed_forward" else 0) for block in network(layers=3)
    ]
    scores = Scores({block.name: torch.ones(block.units) for block in blocks}, {f"encoder.{i}": 0.0 for i in range(3)})
    table = measure_costs(blocks, lambda s: 5.0 * len(s.layers) + sum(len(keep) for keep in s.units.values()))
    assert min_cost(blocks, scores, table) == 5 + 1 + 1
    selection = select_within_budget(blocks, scores, table, 7.0)
    assert selection.layers == ("encoder.1",)
    assert [len(selection.units[f"encoder.1.{block}"]) for block in ("attention", "feed_forward")] == [1, 1]


@pytest.mark.parametrize("uniform", [False, True], ids=["any shape", "stock shapes"])
@pytest.mark.parametrize("score", [1.0, 0.0, -1.0])
def test_blocks_are_not_narrowed_where_their_width_costs_nothing(score, uniform):
    blocks = network(layers=4, heads=4, neurons=64, step=8)
    scores = Scores({b.name: torch.full((b.units,), score) for b in blocks}, {f"encoder.{i}": i for i in range(4)})
    table = measure_costs(blocks, lambda s: 10.0 + 2 * len(s.layers) + sum(bool(keep) for keep in s.units.values()))
    selection = select_within_budget(blocks, scores, table, 10 + 2 * 4 + HALF, uniform)
    assert {len(selection.units[block.name]) for block in blocks} == {0, 4, 64} if score == 1 or uniform else {0, 4}


def test_layer_is_kept_that_costs_nothing():
    blocks = network(layers=2)
    scores = Scores({b.name: torch.ones(b.units) for b in blocks}, {"encoder.0": -1.0, "encoder.1": -1.0})
    table = CostTable(
        base=1.0,
        layer={"encoder.0": 1.0, "encoder.1": 0.0},
        widths={block.name: [0, block.units] for block in blocks},
        costs={block.name: [0.0, 0.0] for block in blocks},
    )
    selection = select_within_budget(blocks, scores, table, 10.0)
    assert selection.layers == ("encoder.1",)
    assert [len(selection.units[f"encoder.1.{block}"]) for block in ("attention", "feed_forward")] == [2, 4]


def test_pairwise_scores_change_the_selection():
    """Two layers differ only in their pairwise scores: the neurons of the first one matter more together."""
    blocks = network(layers=2, heads=1, neurons=4)
    units = {block.name: torch.ones(block.units) * (9.0 if block.kind == "heads" else 0.1) for block in blocks}
    pairwise = {name: pairs(scores, torch.arange(len(scores) + 1) * scores[0]) for name, scores in units.items()}
    first = "encoder.0.feed_forward"
    pairwise[first] = pairs(units[first], torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0]))
    table = measure_costs(blocks, lambda s: float(sum(len(keep) for keep in s.units.values())))
    selection = select_within_budget(blocks, Scores(units, pairwise=pairwise), table, budget=2 + 4 + HALF)
    assert [len(selection.units[f"encoder.{i}.feed_forward"]) for i in range(2)] == [4, 0]
    selection = select_within_budget(blocks, Scores(units, pairwise=pairwise), table, budget=2 + 3 + HALF)
    assert [len(selection.units[f"encoder.{i}.feed_forward"]) for i in range(2)] == [3, 0]


# ---- the same fraction of every block ----


def uneven_blocks(min_units=0):
    """Blocks of 4 heads and of 39 neurons, and one without units."""
    blocks = [replace(block, min_units=min_units) for block in network(layers=2, heads=4, neurons=39)]
    return [*blocks, BlockInfo("encoder.2.attention", "encoder.2", "heads", 0, 1, "encoder.attention")]


def uniform_instance(min_units=0):
    blocks = uneven_blocks(min_units)
    generator = torch.Generator().manual_seed(0)
    scores = Scores({block.name: torch.rand(block.units, generator=generator) for block in blocks})
    return blocks, scores, measure_costs(blocks, lambda s: float(sum(len(keep) for keep in s.units.values())))


@pytest.mark.parametrize(
    ("fraction", "widths"), [(1.0, [4, 39]), (0.5, [2, 20]), (0.25, [1, 10]), (25 / 39, [3, 25]), (0.0, [1, 1])]
)
def test_every_block_keeps_the_same_fraction(fraction, widths):
    blocks, scores, _ = uniform_instance()
    selection = keep_uniform_fraction(blocks, scores, fraction)
    assert selection.layers == ("encoder.0", "encoder.1", "encoder.2")
    assert [len(selection.units[block.name]) for block in blocks] == [*widths, *widths, 0]
    for name, kept in selection.units.items():
        assert kept == top_units(scores.units[name], len(kept))


def test_every_width_can_be_kept_by_its_fraction_despite_rounding():
    for units in (*range(1, 33), 49, 63, 64, 98, 127, 128, 129):
        block = BlockInfo("e.0.f", "e.0", "neurons", units)
        scores = Scores({block.name: torch.zeros(units)})
        widths = [
            len(keep_uniform_fraction([block], scores, width / units).units[block.name])
            for width in range(1, units + 1)
        ]
        assert widths == list(range(1, units + 1))


@pytest.mark.parametrize("budget", [4, 5, 21, 22, 43, 56, 85.9, 86, 1000])
def test_uniform_selection_is_the_largest_that_fits(budget):
    blocks, scores, table = uniform_instance()
    selection = select_uniformly(blocks, scores, table, budget)
    fractions = {width / block.units for block in blocks for width in block.widths if block.units}
    costs = [table.total(keep_uniform_fraction(blocks, scores, fraction)) for fraction in fractions]
    assert table.total(selection) == max(cost for cost in costs if cost <= budget)


def test_uniform_selection_keeps_min_units():
    blocks, scores, table = uniform_instance(min_units=3)
    selection = select_uniformly(blocks, scores, table, budget=13)
    assert [len(selection.units[block.name]) for block in blocks] == [3, 3, 3, 3, 0]


def test_unreachable_uniform_budget_names_the_smallest_cost():
    blocks, scores, table = uniform_instance()
    message = "no shape with equal layers costs 3.5 or less; the smallest costs 4"
    with pytest.raises(ValueError, match=re.escape(message)):
        select_uniformly(blocks, scores, table, 3.5)


# ---- time ----


@pytest.mark.parametrize(
    ("stacks", "uniform"),
    [(["encoder"], False), (["encoder", "decoder"], True), (["encoder", "decoder"], False)],
    ids=["BERT, any shape", "T5, stock shapes", "T5, any shape"],
)
def test_search_over_twelve_layers_takes_seconds_at_most(stacks, uniform):
    generator = torch.Generator().manual_seed(0)
    blocks = [block for stack in stacks for block in network(12, heads=12, neurons=3072, step=8, stack=stack)]
    scores = Scores(
        {b.name: torch.rand(b.units, generator=generator) * (256 if b.kind == "heads" else 1) for b in blocks},
        {block.layer: 2000.0 for block in blocks},
    )
    table = measure_costs(
        blocks, lambda s: float(sum(len(u) * (256 if "attention" in n else 1) for n, u in s.units.items()))
    )
    full = table.total(Selection(tuple(table.layer), {b.name: tuple(range(b.units)) for b in blocks}))
    seconds = []
    while len(seconds) < 3 and min(seconds, default=3) >= 3:  # other processes may slow one of them down
        start = time.process_time()
        selection = select_within_budget(blocks, scores, table, full / 2, uniform)
        seconds.append(time.process_time() - start)
    assert full * (0.4 if uniform else 0.49) < table.total(selection) <= full / 2
    assert min(seconds) < 3  # 0.1 to 1.1 on the machines it was run on
