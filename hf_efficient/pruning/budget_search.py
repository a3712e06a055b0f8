"""Costs of units, and the selection with the lowest score removed within a budget: arithmetic on tensors and a table.

No model is needed: a selection is computed from the scores of units and the cost table of a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import isotonic_regression

from hf_efficient.errors import UserError
from hf_efficient.pruning.selection import ROUNDING, BlockInfo, CostTable, Scores, Selection, top_units

BINS = 4000
# A sample this many times as slow as one of a wider shape is measured again: the machine was busy.
SLOW_SAMPLE = 1.05


def measure_costs(
    blocks: Sequence[BlockInfo],
    cost_of: Callable[[Selection], float],
    points: int = 9,
    runs_without_layers: bool = True,
) -> CostTable:
    """Return the cost table of a network, measured by `cost_of`, the cost of a copy that keeps a selection.

    Blocks with the same `shape_key` are narrowed together, all to one width, and each is assigned an equal part of the
    difference; so are the overheads of layers that consist of the same kinds of blocks. Measured costs are noisy:
    those of a block are replaced by the closest that do not decrease with its width (isotonic regression), from 0 on.

    A network that does not run without layers is measured with the first one instead, whose overhead is taken to be
    that of its kind.
    """
    layers = tuple(dict.fromkeys(block.layer for block in blocks))
    no_units = {block.name: () for block in blocks}
    first = () if runs_without_layers else layers[:1]
    base = cost_of(Selection(first, no_units))
    all_layers = cost_of(Selection(layers, no_units))
    overheads: dict[str, float] = {}
    kinds = {layer: tuple(block.shape_key for block in blocks if block.layer == layer) for layer in layers}
    for kind in dict.fromkeys(kinds.values()):
        equal_layers = [layer for layer in layers if kinds[layer] == kind]
        measured = tuple(layer for layer in layers if layer in equal_layers or layer in first)
        cost = all_layers if measured == layers else cost_of(Selection(measured, no_units))
        overhead = max(0.0, (cost - base) / max(1, len(measured) - len(first)))
        overheads |= dict.fromkeys(equal_layers, overhead)
    base = max(0.0, base - sum(overheads[layer] for layer in first))

    widths: dict[str, Sequence[int]] = {}
    costs: dict[str, Sequence[float]] = {}
    for key in dict.fromkeys(block.shape_key for block in blocks):
        group = [block for block in blocks if block.shape_key == key]
        largest = max(block.units for block in group)
        support = sorted(
            {round(width) for width in np.linspace(0, largest, min(points, largest + 1))} | {min(1, largest)}
        )
        selections = [
            Selection(layers, no_units | {block.name: tuple(range(min(width, block.units))) for block in group})
            for width in support[1:]
        ]
        samples = [cost_of(selection) for selection in selections]
        for index, selection in enumerate(selections):
            if samples[index] > SLOW_SAMPLE * min(samples[index:]):
                samples[index] = min(samples[index], cost_of(selection))
        increases = [
            (sample - all_layers) / sum(min(width, block.units) / width for block in group)
            for width, sample in zip(support[1:], samples, strict=True)
        ]
        fitted = isotonic_regression(increases, y_min=0).tolist() if increases else []
        for block in group:
            widths[block.name], costs[block.name] = support, [0.0, *fitted]
    return CostTable(base, overheads, widths, costs)


@dataclass(frozen=True)
class _Option:
    """One way to keep a layer: the width of each of its blocks, or None for the removed layer; cost in bins."""

    widths: Mapping[str, int] | None
    cost: int
    error: float


WidthChoices = Mapping[str, Sequence[int]]
# (costs, errors) of each block by its width, both (units + 1,).
Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]


def select_within_budget(
    blocks: Sequence[BlockInfo], scores: Scores, table: CostTable, budget: float, uniform: bool = False
) -> Selection:
    """Return the selection with the smallest sum of removed scores among those that cost at most `budget`.

    Exact for the table, up to a rounding of the cost of each layer to 1/4000 of the budget that can be spent, by
    dynamic programming over the layers. A layer that has a score may be removed completely. What costs nothing is
    kept, also units with negative scores: no other shape with the same cost has all that the selection has, and more
    units. At least one attention head of the network is kept; in a network with cross attention one of those, since
    otherwise the output of the decoder does not depend on the encoder. With `uniform`, only shapes that a stock class
    can hold are considered: all heads, and one width of the feed-forward blocks for all layers.

    Raises UserError if no selection fits the budget; the message names the smallest cost.
    Source: Kurtic et al. 2023, "ZipLM", section 3.2 (structured search).
    """
    curves = {
        block.name: (
            table.block(block.name, range(block.units + 1)),
            scores.removal_errors(block.name, range(block.units + 1)),
        )
        for block in blocks
    }
    choices = _width_choices(blocks, table, uniform)
    results = [_search(blocks, scores, curves, table, budget, widths) for widths in choices]
    feasible = [result for result in results if result is not None]
    if not feasible:
        raise UserError(
            f"no shape of this network costs {budget:.4g} or less; the smallest costs "
            f"{min_cost(blocks, scores, table, uniform):.4g}"
        )
    layer_widths = min(feasible, key=lambda result: result[0])[1]
    return Selection(
        layers=tuple(layer for layer, widths in layer_widths.items() if widths is not None),
        units={
            block.name: top_units(scores.units[block.name], (layer_widths[block.layer] or {}).get(block.name, 0))
            for block in blocks
        },
    )


def min_cost(blocks: Sequence[BlockInfo], scores: Scores, table: CostTable, uniform: bool = False) -> float:
    """Return the cost of the cheapest selection that `select_within_budget` considers."""
    layer_blocks, totals, required = _blocks_by_layer(blocks), [], required_attention_blocks(blocks)
    for choices in _width_choices(blocks, table, uniform):
        costs = {
            layer: 0.0 if _is_removable(scores, members) else _min_layer_cost(layer, members, table, choices)
            for layer, members in layer_blocks.items()
        }
        attention_costs = [
            _min_layer_cost(layer, members, table, choices, block.name) - costs[layer]
            for layer, members in layer_blocks.items()
            for block in members
            if block.name in required
        ]
        totals.append(sum(costs.values()) + min(attention_costs, default=0.0))
    return table.base + min(totals)


def _is_removable(scores: Scores, blocks: Sequence[BlockInfo]) -> bool:
    """Whether the layer of these blocks may be removed completely."""
    return blocks[0].layer in scores.layers and not any(block.min_units for block in blocks)


def required_attention_blocks(blocks: Iterable[BlockInfo]) -> set[str]:
    """Return the names of the blocks of which one must keep a head: cross attention if there is any, else all."""
    heads = {block.name for block in blocks if block.kind == "heads" and block.units}
    return cross_attention_blocks(heads) or heads


def cross_attention_blocks(names: Iterable[str]) -> set[str]:
    """Return those names that are of cross attention blocks, through which a decoder reads the encoder."""
    return {name for name in names if name.endswith(".cross_attention")}


def _min_layer_cost(
    layer: str,
    blocks: Sequence[BlockInfo],
    table: CostTable,
    choices: WidthChoices,
    required_block: str | None = None,
) -> float:
    """Return the cost of a layer that keeps its smallest widths, but at least one unit of `required_block`."""
    widths = {block.name: max(choices[block.name][0], int(block.name == required_block)) for block in blocks}
    return table.layer[layer] + sum(float(table.block(name, width)) for name, width in widths.items())


def select_uniformly(blocks: Sequence[BlockInfo], scores: Scores, table: CostTable, budget: float) -> Selection:
    """Return the selection that keeps the largest fraction, the same of every block, with a cost within `budget`.

    Raises UserError if no fraction fits the budget.
    """
    fractions = sorted(
        {width / block.units for block in blocks for width in block.widths if block.units}, reverse=True
    )
    for fraction in fractions:
        selection = keep_uniform_fraction(blocks, scores, fraction)
        if table.total(selection) <= budget:
            return selection
    smallest = table.total(keep_uniform_fraction(blocks, scores, 0))
    raise UserError(f"no shape with equal layers costs {budget:.4g} or less; the smallest costs {smallest:.4g}")


def keep_uniform_fraction(blocks: Sequence[BlockInfo], scores: Scores, fraction: float) -> Selection:
    """Return the selection that keeps `fraction` of every block, rounded up to a width, and at least one unit."""
    units = {}
    for block in blocks:
        count = min(block.units, max(1, math.ceil(fraction * block.units - ROUNDING)))
        units[block.name] = top_units(scores.units[block.name], min(width for width in block.widths if width >= count))
    return Selection(tuple(_blocks_by_layer(blocks)), units)


def _blocks_by_layer(blocks: Sequence[BlockInfo]) -> dict[str, list[BlockInfo]]:
    layers: dict[str, list[BlockInfo]] = {}
    for block in blocks:
        layers.setdefault(block.layer, []).append(block)
    return layers


def _width_choices(blocks: Sequence[BlockInfo], table: CostTable, uniform: bool) -> Iterable[WidthChoices]:
    """Yield, for each search, the widths that each block may have in it, ascending; of equal costs only the widest."""
    if not uniform:
        yield {block.name: _widest_of_equal_cost(block.widths, [block], table) for block in blocks}
        return
    feed_forward = [block for block in blocks if block.kind == "neurons"]
    common = set.intersection(*({*block.widths} for block in feed_forward))
    # The widest first: it is chosen where errors are equal.
    for width in reversed(_widest_of_equal_cost(sorted(common - {0}), feed_forward, table)):
        yield {block.name: (block.units if block.kind == "heads" else width,) for block in blocks}


def _widest_of_equal_cost(widths: Sequence[int], blocks: Sequence[BlockInfo], table: CostTable) -> tuple[int, ...]:
    """Return those of the ascending `widths` beyond which `blocks`, all of one width, would cost more."""
    costs = sum(table.block(block.name, widths) for block in blocks)
    return tuple(np.asarray(widths)[np.diff(costs, append=np.inf) > 0].tolist())


def _search(
    blocks: Sequence[BlockInfo],
    scores: Scores,
    curves: Curves,
    table: CostTable,
    budget: float,
    choices: WidthChoices,
) -> tuple[float, dict[str, Mapping[str, int] | None]] | None:
    """Return (error, widths by layer) of the best shape with widths of `choices` in `budget`, None if none fits."""
    layer_blocks = _blocks_by_layer(blocks)
    min_costs = {
        layer: 0.0 if _is_removable(scores, members) else _min_layer_cost(layer, members, table, choices)
        for layer, members in layer_blocks.items()
    }
    available = budget - table.base - sum(min_costs.values())
    if not available >= -ROUNDING * budget:  # nor if it is NaN
        return None
    bin_size = max(available, ROUNDING * budget) / BINS

    def list_options(layer: str, required: Collection[str] = ()) -> list[_Option]:
        kept = _layer_options(
            layer_blocks[layer], curves, table.layer[layer] - min_costs[layer], bin_size, choices, required
        )
        if required or not _is_removable(scores, layer_blocks[layer]):
            return kept
        if kept and kept[0].cost == 0 and any((kept[0].widths or {}).values()):
            return kept  # the removal of the layer would save nothing
        removed = _Option(None, 0, scores.layers[layer])
        return [removed, *(option for option in kept if option.error < removed.error)]

    options = {layer: list_options(layer) for layer in layer_blocks}
    required = required_attention_blocks(blocks)

    def keeps_required(option: _Option) -> bool:
        return option.widths is not None and any(option.widths[name] for name in required & option.widths.keys())

    best = _knapsack(list(options.values()))
    if best is not None and not any(keeps_required(option) for option in best[1]):
        # Each layer in its turn is made to keep one.
        forced = [_knapsack(list({**options, layer: list_options(layer, required)}.values())) for layer in options]
        best = min((result for result in forced if result is not None), key=lambda result: result[0], default=None)
    if best is None:
        return None
    error, picked = best
    return error, {layer: option.widths for layer, option in zip(options, picked, strict=True)}


def _layer_options(
    blocks: Sequence[BlockInfo],
    curves: Curves,
    base_cost: float,
    bin_size: float,
    choices: WidthChoices,
    required: Collection[str],
) -> list[_Option]:
    """Return the ways to keep a layer that no other way surpasses in both cost and error, cheapest first.

    Costs are in bins, those of the blocks plus `base_cost`. With `required` blocks, only ways that keep a unit of one
    of them are compared: one that is surpassed by others may be the only one that keeps such a unit.
    """
    cost, error, keeps_required = np.asarray(base_cost), np.zeros(()), np.zeros((), dtype=bool)
    for block in blocks:  # adds one axis, of the widths of the block
        widths, (costs, errors) = np.asarray(choices[block.name]), curves[block.name]
        cost = np.add.outer(cost, costs[widths])
        error = np.add.outer(error, errors[widths])
        keeps_required = np.logical_or.outer(keeps_required, (widths > 0) & (block.name in required))
    bins = np.ceil(cost / bin_size - ROUNDING).clip(0).ravel()
    order = np.lexsort((error.ravel(), bins))
    order = order[(bins[order] <= BINS) & (keeps_required.ravel()[order] | (not required))]
    lowest = np.minimum.accumulate(np.concatenate([[np.inf], error.ravel()[order]]))
    options = []
    for position in order[lowest[1:] < lowest[:-1]]:
        indices = np.unravel_index(position, cost.shape)
        widths_by_block = {
            block.name: choices[block.name][index] for block, index in zip(blocks, indices, strict=True)
        }
        options.append(_Option(widths_by_block, int(bins[position]), float(error.flat[position])))
    return options


def _knapsack(choices: Sequence[Sequence[_Option]]) -> tuple[float, list[_Option]] | None:
    """Return the smallest sum of errors, and its options, when one of each of `choices` is picked within `BINS`."""
    error = np.zeros(BINS + 1)
    picks: list[np.ndarray] = []
    for options in choices:
        lowest, index = np.full(BINS + 1, np.inf), np.zeros(BINS + 1, dtype=np.int64)
        for position, option in enumerate(options):
            candidate = error[: BINS + 1 - option.cost] + option.error
            is_lower = candidate < lowest[option.cost :]
            np.copyto(lowest[option.cost :], candidate, where=is_lower)
            np.copyto(index[option.cost :], position, where=is_lower)
        error, picks = lowest, [*picks, index]
    if not np.isfinite(error[BINS]):
        return None
    available, result = BINS, []
    for options, index in zip(reversed(choices), reversed(picks), strict=True):
        option = options[index[available]]
        result.append(option)
        available -= option.cost
    return float(error[BINS]), result[::-1]
