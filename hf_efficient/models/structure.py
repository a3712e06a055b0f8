"""The shape of a pruned network as data: the heads, neurons and layers that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerStructure:
    """The heads and neurons that one layer keeps.

    | field | meaning |
    | --- | --- |
    | source | index of the layer in the unpruned network |
    | heads | for each attention block the indices of the kept heads, counted in the unpruned network |
    | neurons | for each feed-forward block the number of kept neurons |

    Blocks have the names that they have within their layer, such as "attention".
    """

    source: int
    heads: Mapping[str, tuple[int, ...]]
    neurons: Mapping[str, int]


@dataclass(frozen=True)
class Structure:
    """The shape of a network: for each stack of layers ("encoder", "decoder") what every kept layer keeps."""

    stacks: Mapping[str, tuple[LayerStructure, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return the structure as JSON values, as `config.json` holds it."""
        return {
            stack: [
                {
                    "source": layer.source,
                    "heads": {name: list(heads) for name, heads in layer.heads.items()},
                    "neurons": dict(layer.neurons),
                }
                for layer in layers
            ]
            for stack, layers in self.stacks.items()
        }

    @classmethod
    def from_dict(cls, stacks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Structure:
        """Return the structure of which `stacks` is the `to_dict`."""
        return cls(
            {
                stack: tuple(
                    LayerStructure(
                        source=layer["source"],
                        heads={name: tuple(heads) for name, heads in layer["heads"].items()},
                        neurons=dict(layer["neurons"]),
                    )
                    for layer in layers
                )
                for stack, layers in stacks.items()
            }
        )
