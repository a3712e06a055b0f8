"""Values of pruning: scores, costs, and the selection of what a network keeps; removal of the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_efficient.models.surgery import extract_submodel

ROUNDING = 1e-9


@dataclass(frozen=True)
class Selection:
    """What a network keeps: the names of its layers, and for each block the positions of its units, ascending."""

    layers: tuple[str, ...]
    units: Mapping[str, tuple[int, ...]]


def remove_units(model: PreTrainedModel, selection: Selection) -> PreTrainedModel:
    """Return a smaller copy of `model` that keeps only `selection`; `model` itself is not changed.

    Raises TypeError if the family of `model` is not supported, or has no class for its task head.
    """
    return extract_submodel(model, selection.layers, selection.units)


@dataclass(frozen=True)
class BlockInfo:
    """What selecting needs to know about a block.

    | field | meaning |
    | --- | --- |
    | name, layer | names of the block and of its layer |
    | kind | "heads" or "neurons" |
    | units | how many it has |
    | step | units are removed in multiples of this |
    | shape_key | equal for blocks that have equal costs at equal widths |
    | min_units | how many are kept at least; if any, the layer is kept too |
    """

    name: str
    layer: str
    kind: str
    units: int
    step: int = 1
    shape_key: str = ""
    min_units: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of units that can be kept, ascending; all of them is always one."""
        return tuple(
            sorted({width for width in range(0, self.units, self.step) if width >= self.min_units} | {self.units})
        )


@dataclass(frozen=True)
class CostTable:
    """The cost of a network as a sum: a base, an overhead of every layer, and a cost of every block by its width.

    | field | meaning |
    | --- | --- |
    | base | cost without any layer |
    | layer | cost of a layer without any units, by the name of the layer |
    | widths, costs | supporting points of the cost of each block, ascending in width; linear in between |
    """

    base: float
    layer: Mapping[str, float]
    widths: Mapping[str, Sequence[int]]
    costs: Mapping[str, Sequence[float]]

    def block(self, name: str, width: int | Sequence[int]) -> np.ndarray:
        """Return the cost of the block at each width, in the shape of `width`."""
        return np.asarray(np.interp(width, self.widths[name], self.costs[name]))

    def total(self, selection: Selection) -> float:
        """Return the cost of a network that keeps `selection`."""
        cost = self.base + sum(self.layer[layer] for layer in selection.layers)
        for name, kept in selection.units.items():
            if name.rpartition(".")[0] in selection.layers:
                cost += float(self.block(name, len(kept)))
        return cost


@dataclass(frozen=True)
class Scores:
    """How much the loss increases when a unit, or a complete layer, is removed; only comparisons are meaningful.

    | field | shape |
    | --- | --- |
    | units | one tensor (units,) per block |
    | layers | one number per layer |
    | pairwise | (units, units) per block: removing several units costs the sum over their pairs |

    Without `pairwise`, removing several units of a block costs the sum of their scores.
    """

    units: Mapping[str, torch.Tensor]
    layers: Mapping[str, float] = field(default_factory=dict)
    pairwise: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Scores:
        """Return the scores with `function` applied to every tensor, such as an average over processes."""
        return Scores(
            units={name: function(scores) for name, scores in self.units.items()},
            layers={name: float(function(torch.tensor(score))) for name, score in self.layers.items()},
            pairwise={name: function(pairs) for name, pairs in self.pairwise.items()},
        )

    def removal_errors(self, block: str, widths: Sequence[int]) -> np.ndarray:
        """Return, for each width, the score of the removed units when `block` keeps its best `width` units."""
        scores = self.units[block]
        if block in self.pairwise:
            order = scores.argsort(stable=True)
            errors = _nested_sums(self.pairwise[block][order][:, order]).double().cpu().numpy()
        else:
            errors = np.concatenate([[0.0], np.cumsum(np.sort(scores.double().cpu().numpy()))])
        return np.asarray(errors[len(scores) - np.asarray(widths)])


def _nested_sums(pairs: torch.Tensor) -> torch.Tensor:
    """Return the sums of the leading squares of `pairs` (units, units), made non-decreasing, (units + 1,)."""
    squares = pairs.cumsum(0).cumsum(1).diagonal()
    return torch.nn.functional.pad(squares, (1, 0)).cummax(0).values


def top_units(scores: torch.Tensor, width: int) -> tuple[int, ...]:
    """Return the positions of the `width` largest of `scores` (units,), ascending."""
    order = torch.argsort(scores, descending=True, stable=True)
    return tuple(sorted(order[:width].tolist()))
