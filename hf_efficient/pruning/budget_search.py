"""What units cost, and which to keep: a choice under a budget is arithmetic on tensors and a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hf_efficient.errors import UserError
from hf_efficient.pruning.selection import ROUNDING, BlockInfo, CostTable, Scores, Selection, top_units

BINS = 4000


def measure_costs(blocks: Sequence[BlockInfo], cost_of: Callable[[Selection], float], points: int = 9) -> CostTable:
    """Return the cost table of a network, found by asking `cost_of` for the cost of narrower copies of it.

    Blocks with the same `shape_key` are asked for together, all at one width, and share what the width costs; so do
    layers that are made of the same kinds of blocks share what they cost without any unit.
    """
    layers = tuple(dict.fromkeys(block.layer for block in blocks))
    nothing = {block.name: () for block in blocks}
    base = cost_of(Selection((), nothing))
    empty = cost_of(Selection(layers, nothing))
    overheads: dict[str, float] = {}
    kinds = {layer: tuple(block.shape_key for block in blocks if block.layer == layer) for layer in layers}
    for kind in dict.fromkeys(kinds.values()):
        alike = tuple(layer for layer in layers if kinds[layer] == kind)
        alone = empty if alike == layers else cost_of(Selection(alike, nothing))
        overheads |= dict.fromkeys(alike, max(0.0, (alone - base) / len(alike)))

    widths: dict[str, Sequence[int]] = {}
    costs: dict[str, Sequence[float]] = {}
    for key in dict.fromkeys(block.shape_key for block in blocks):
        group = [block for block in blocks if block.shape_key == key]
        count = max(block.units for block in group)
        support = sorted({round(width) for width in np.linspace(0, count, min(points, count + 1))} | {min(1, count)})
        rises = [0.0]
        for width in support[1:]:
            kept = {block.name: tuple(range(min(width, block.units))) for block in group}
            members = sum(min(width, block.units) / width for block in group)
            rises.append((cost_of(Selection(layers, {**nothing, **kept})) - empty) / members)
        for block in group:
            widths[block.name], costs[block.name] = support, np.maximum.accumulate(rises).tolist()
    return CostTable(base, overheads, widths, costs)


@dataclass(frozen=True)
class _Option:
    """One way to leave a layer: the width of each of its blocks, or None for the layer gone; cost in bins."""

    widths: Mapping[str, int] | None
    cost: int
    error: float


WidthChoices = Mapping[str, Sequence[int]]


def select_within_budget(
    blocks: Sequence[BlockInfo], scores: Scores, table: CostTable, budget: float, uniform: bool = False
) -> Selection:
    """Return the selection with the smallest sum of removed scores among those whose cost is at most `budget`.

    Exact over the table, up to a rounding of each layer's cost by 1/4000 of what may be spent, by dynamic programming
    over the layers (the structured search of ZipLM, Kurtic et al. 2023, section 3.2). A layer with a score may go
    as a whole. At least one attention head of the network stays, in a network with cross attention one of those: a
    decoder that does not look at its encoder writes anything. With `uniform`, only shapes that a stock class holds
    are considered: all heads, and one width of the feed-forward blocks for all layers.

    Raises ValueError: no selection fits the budget; the message names the smallest cost there is.
    """
    rises = {block.name: scores.removal_errors(block.name, range(block.units + 1)) for block in blocks}
    found = [_search(blocks, scores, rises, table, budget, menu) for menu in _width_choices(blocks, uniform)]
    possible = [result for result in found if result is not None]
    if not possible:
        raise UserError(
            f"no shape of this network costs {budget:.4g} or less; the smallest costs "
            f"{min_cost(blocks, scores, table, uniform):.4g}"
        )
    widths = min(possible, key=lambda result: result[0])[1]
    return Selection(
        layers=tuple(layer for layer, left in widths.items() if left is not None),
        units={
            block.name: top_units(scores.units[block.name], (widths[block.layer] or {}).get(block.name, 0))
            for block in blocks
        },
    )


def min_cost(blocks: Sequence[BlockInfo], scores: Scores, table: CostTable, uniform: bool = False) -> float:
    """Return the cost of the cheapest shape that `choose` considers."""
    members, totals, candidates = _by_layer(blocks), [], required_attention_blocks(blocks)
    for menu in _width_choices(blocks, uniform):
        left = {
            layer: 0.0 if _is_removable(scores, own) else _min_layer_cost(layer, own, table, menu)
            for layer, own in members.items()
        }
        attending = [
            _min_layer_cost(layer, own, table, menu, block.name) - left[layer]
            for layer, own in members.items()
            for block in own
            if block.name in candidates
        ]
        totals.append(sum(left.values()) + min(attending, default=0.0))
    return table.base + min(totals)


def _is_removable(scores: Scores, blocks: Sequence[BlockInfo]) -> bool:
    """Whether the layer of these blocks may go as a whole."""
    return blocks[0].layer in scores.layers and not any(block.least for block in blocks)


def required_attention_blocks(blocks: Iterable[BlockInfo]) -> set[str]:
    """Return the names of the blocks of which one must keep a head: cross attention where there is any, else all."""
    heads = {block.name for block in blocks if block.kind == "heads" and block.units}
    return cross_attention_blocks(heads) or heads


def cross_attention_blocks(names: Iterable[str]) -> set[str]:
    """Return those of the names of blocks that are of cross attention, by which a decoder looks at its encoder."""
    return {name for name in names if name.endswith(".cross_attention")}


def _min_layer_cost(
    layer: str, blocks: Sequence[BlockInfo], table: CostTable, menu: WidthChoices, attending: str | None = None
) -> float:
    """Return the cost of a layer that stays with as little as it may, but with a unit of the block `attending`."""
    widths = {block.name: max(menu[block.name][0], int(block.name == attending)) for block in blocks}
    return table.layer[layer] + sum(float(table.block(name, width)) for name, width in widths.items())


def select_uniformly(blocks: Sequence[BlockInfo], scores: Scores, table: CostTable, budget: float) -> Selection:
    """Return the selection that keeps the same fraction of every block, the largest whose cost is at most `budget`.

    Raises ValueError: no fraction fits the budget.
    """
    fractions = sorted(
        {width / block.units for block in blocks for width in block.widths if block.units}, reverse=True
    )
    for fraction in fractions:
        selection = keep_uniform_fraction(blocks, scores, fraction)
        if table.total(selection) <= budget:
            return selection
    smallest = table.total(keep_uniform_fraction(blocks, scores, 0))
    raise UserError(f"no shape with even layers costs {budget:.4g} or less; the smallest costs {smallest:.4g}")


def keep_uniform_fraction(blocks: Sequence[BlockInfo], scores: Scores, fraction: float) -> Selection:
    """Return the selection that keeps `fraction` of every block, up to the next width, and at least one unit."""
    units = {}
    for block in blocks:
        wanted = min(block.units, max(1, math.ceil(fraction * block.units - ROUNDING)))
        units[block.name] = top_units(scores.units[block.name], min(w for w in block.widths if w >= wanted))
    return Selection(tuple(_by_layer(blocks)), units)


def _by_layer(blocks: Sequence[BlockInfo]) -> dict[str, list[BlockInfo]]:
    layers: dict[str, list[BlockInfo]] = {}
    for block in blocks:
        layers.setdefault(block.layer, []).append(block)
    return layers


def _width_choices(blocks: Sequence[BlockInfo], uniform: bool) -> Iterable[WidthChoices]:
    """Yield, for each search to make, the widths that each block may take in it, ascending."""
    if not uniform:
        yield {block.name: block.widths for block in blocks}
        return
    common = set.intersection(*({*block.widths} for block in blocks if block.kind == "neurons"))
    for width in sorted(common - {0}):
        yield {block.name: (block.units if block.kind == "heads" else width,) for block in blocks}


def _search(
    blocks: Sequence[BlockInfo],
    scores: Scores,
    rises: Mapping[str, np.ndarray],
    table: CostTable,
    budget: float,
    menu: WidthChoices,
) -> tuple[float, dict[str, Mapping[str, int] | None]] | None:
    """Return (error, widths by layer) of the best shape on `menu` within `budget`, or None when none fits.

    `rises` are the errors of each block by its width, (units + 1,).
    """
    members = _by_layer(blocks)
    unavoidable = {
        layer: 0.0 if _is_removable(scores, members[layer]) else _min_layer_cost(layer, members[layer], table, menu)
        for layer in members
    }
    room = budget - table.base - sum(unavoidable.values())
    if room < -ROUNDING * budget:
        return None
    bin_size = max(room, ROUNDING * budget) / BINS

    def ways(layer: str, attending: Collection[str] = ()) -> list[_Option]:
        found = _layer_options(members[layer], rises, table, bin_size, unavoidable[layer], menu, attending)
        if attending or not _is_removable(scores, members[layer]):
            return found
        gone = _Option(None, 0, scores.layers[layer])
        return [gone, *(option for option in found if option.error < gone.error)]

    options = {layer: ways(layer) for layer in members}
    attending = required_attention_blocks(blocks)

    def attends(option: _Option) -> bool:
        return option.widths is not None and any(option.widths[name] for name in attending & option.widths.keys())

    found = _knapsack(list(options.values()))
    if found is not None and not any(attends(option) for option in found[1]):
        forced = [_knapsack(list({**options, must: ways(must, attending)}.values())) for must in options]
        found = min((f for f in forced if f is not None), key=lambda f: f[0], default=None)
    if found is None:
        return None

    error, taken = found
    return error, {layer: option.widths for layer, option in zip(options, taken, strict=True)}


def _layer_options(
    blocks: Sequence[BlockInfo],
    rises: Mapping[str, np.ndarray],
    table: CostTable,
    bin_size: float,
    unavoidable: float,
    menu: WidthChoices,
    attending: Collection[str],
) -> list[_Option]:
    """Return the ways to keep a layer that no other way beats in both cost and error, cheapest first.

    Costs are in bins, without what is `unavoidable`. Where blocks are `attending`, only ways that leave one of them a
    head compete: one that the rest beats may be the only one to attend.
    """
    cost, error = np.asarray(table.layer[blocks[0].layer] - unavoidable), np.zeros(())
    attends = np.zeros((), dtype=bool)
    for block in blocks:  # one axis more for the widths of every block
        widths = np.asarray(menu[block.name])
        cost = np.add.outer(cost, table.block(block.name, menu[block.name]))
        error = np.add.outer(error, rises[block.name][widths])
        attends = np.logical_or.outer(attends, (widths > 0) & (block.name in attending))
    bins = np.ceil(cost / bin_size - ROUNDING).clip(0).ravel()
    order = np.lexsort((error.ravel(), bins))
    order = order[(bins[order] <= BINS) & (attends.ravel()[order] | (not attending))]
    least = np.minimum.accumulate(np.concatenate([[np.inf], error.ravel()[order]]))
    options = []
    for way in order[least[1:] < least[:-1]]:
        picked = np.unravel_index(way, cost.shape)
        left = {block.name: menu[block.name][index] for block, index in zip(blocks, picked, strict=True)}
        options.append(_Option(left, int(bins[way]), float(error.flat[way])))
    return options


def _knapsack(choices: Sequence[Sequence[_Option]]) -> tuple[float, list[_Option]] | None:
    """Return the smallest sum of errors, and the options, that take one of each of `choices` within `BINS`."""
    error = np.zeros(BINS + 1)
    taken: list[np.ndarray] = []
    for options in choices:
        best, index = np.full(BINS + 1, np.inf), np.zeros(BINS + 1, dtype=np.int64)
        for position, option in enumerate(options):
            candidate = error[: BINS + 1 - option.cost] + option.error
            better = candidate < best[option.cost :]
            best[option.cost :][better] = candidate[better]
            index[option.cost :][better] = position
        error, taken = best, [*taken, index]
    if not np.isfinite(error[BINS]):
        return None
    room, result = BINS, []
    for options, index in zip(reversed(choices), reversed(taken), strict=True):
        option = options[index[room]]
        result.append(option)
        room -= option.cost
    return float(error[BINS]), result[::-1]
