"""Multiplicative gates on heads, neurons and layers: all one, they change nothing; their gradients are the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.models import Block, family_of


@contextmanager
def apply_gates(
    model: PreTrainedModel, units: Mapping[str, torch.Tensor] = {}, layers: Mapping[str, torch.Tensor] = {}
) -> Iterator[None]:
    """Multiplies the units of blocks, and what layers add to their input, by gates, as long as the context lasts.

    | gates | shape | meaning |
    | --- | --- | --- |
    | units[block] | (units,) or (batch, units) | multiplies each head's, or neuron's, contribution; 0 equals removal |
    | layers[layer] | () or (batch,) | `x + gate * (layer(x) - x)`; 0 equals removal of the layer |

    A first dimension `batch` gives every example gates, and so gradients, of its own.
    """
    family = family_of(model)
    handles = []
    blocks, modules = family.blocks(model), family.layers(model)
    for name, gate in units.items():
        if blocks[name].units:
            handles.append(blocks[name].output.register_forward_pre_hook(_unit_hook(blocks[name], gate)))
    for name, gate in layers.items():
        handles.append(modules[name].register_forward_hook(_layer_hook(gate), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unit_hook(block: Block, gate: torch.Tensor) -> Callable[..., tuple[torch.Tensor, ...]]:
    def multiply(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        wide = gate.repeat_interleave(block.unit_size, dim=-1).to(args[0].dtype)
        return (args[0] * (_repeat_per_row(wide, args[0])[:, None] if wide.dim() == 2 else wide), *args[1:])

    return multiply


def _layer_hook(gate: torch.Tensor) -> Callable[..., Any]:
    def interpolate(
        module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: Mapping[str, torch.Tensor], output: Any
    ) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        after, *beside = output if isinstance(output, tuple) else (output,)
        wide = gate.to(before.dtype)
        mixed = before + (_repeat_per_row(wide, before)[:, None, None] if wide.dim() else wide) * (after - before)
        return (mixed, *beside) if isinstance(output, tuple) else mixed

    return interpolate


def _repeat_per_row(gates: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
    """Repeats the gates of each example for all its rows: a multiple choice head makes one of every choice."""
    return gates.repeat_interleave(hidden_states.shape[0] // gates.shape[0], dim=0)
