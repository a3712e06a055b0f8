"""Values of pruning: scores, costs and the selection of what is kept; and removing the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_efficient.models.surgery import extract_submodel


def remove_units(model: PreTrainedModel, selection: Selection) -> PreTrainedModel:
    """Return a smaller copy of `model` that keeps only `selection`; `model` itself stays as it is.

    Raises TypeError: the family of `model` is unknown, or has no class for its task head.
    """
    return extract_submodel(model, selection.layers, selection.units)


ROUNDING = 1e-9


@dataclass(frozen=True)
class Selection:
    """What stays of a network: the names of its layers, and for each block the positions of its units, ascending."""

    layers: tuple[str, ...]
    units: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class BlockInfo:
    """What choosing needs to know of a block.

    `kind` is "heads" or "neurons", `units` how many there are, `step` the granularity in which they are removed,
    `shape_key` is equal for blocks that cost the same at the same width, and at least `least` units stay, which also
    keeps the layer.
    """

    name: str
    layer: str
    kind: str
    units: int
    step: int = 1
    shape_key: str = ""
    least: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of units that may be kept, ascending, all among them."""
        return tuple(
            sorted({width for width in range(0, self.units, self.step) if width >= self.least} | {self.units})
        )


@dataclass(frozen=True)
class CostTable:
    """What a network costs, as a sum: `base`, an overhead for every layer, and for every block a cost by its width.

    | field | meaning |
    | --- | --- |
    | base | cost with no layer at all |
    | layer | cost of a layer that has no unit left, by the layer's name |
    | widths, costs | support points of each block's cost, ascending in width; linear in between |
    """

    base: float
    layer: Mapping[str, float]
    widths: Mapping[str, Sequence[int]]
    costs: Mapping[str, Sequence[float]]

    def block(self, name: str, width: int | Sequence[int]) -> np.ndarray:
        """Return the cost of the block at each width, shape of `width`."""
        return np.asarray(np.interp(width, self.widths[name], self.costs[name]))

    def total(self, selection: Selection) -> float:
        """Return the cost of the network that `selection` leaves."""
        cost = self.base + sum(self.layer[layer] for layer in selection.layers)
        for name, keep in selection.units.items():
            if name.rpartition(".")[0] in selection.layers:
                cost += float(self.block(name, len(keep)))
        return cost


@dataclass(frozen=True)
class Scores:
    """How much the loss rises when a unit, or a whole layer, goes; only comparisons between them count.

    | field | shape |
    | --- | --- |
    | units | one tensor (units,) a block |
    | layers | one number a layer |
    | together | (units, units) a block: the rise when some of its units go together is the sum over their pairs |

    Without `together` the units of a block count as if each went alone.
    """

    units: Mapping[str, torch.Tensor]
    layers: Mapping[str, float] = field(default_factory=dict)
    together: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Scores:
        """Return the scores that `function` makes of every tensor of these: their mean over processes."""
        return Scores(
            units={name: function(scores) for name, scores in self.units.items()},
            layers={name: float(function(torch.tensor(score))) for name, score in self.layers.items()},
            together={name: function(pairs) for name, pairs in self.together.items()},
        )

    def removal_errors(self, block: str, widths: Sequence[int]) -> np.ndarray:
        """Return, for each width, the score of what goes from `block` when its best `width` units stay."""
        scores = self.units[block]
        if block in self.together:
            order = scores.argsort(stable=True)
            rises = _nested_sums(self.together[block][order][:, order]).double().cpu().numpy()
        else:
            rises = np.concatenate([[0.0], np.cumsum(np.sort(scores.double().cpu().numpy()))])
        return np.asarray(rises[len(scores) - np.asarray(widths)])


def _nested_sums(pairs: torch.Tensor) -> torch.Tensor:
    """Return the sums of the leading squares of `pairs` (units, units), which never fall, (units + 1,)."""
    squares = pairs.cumsum(0).cumsum(1).diagonal()
    return torch.nn.functional.pad(squares, (1, 0)).cummax(0).values


def top_units(scores: torch.Tensor, width: int) -> tuple[int, ...]:
    """Return the positions of the `width` largest of `scores` (units,), ascending."""
    order = torch.argsort(scores, descending=True, stable=True)
    return tuple(sorted(order[:width].tolist()))
