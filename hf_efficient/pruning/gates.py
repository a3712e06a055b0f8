"""Gates that multiply heads, neurons and layers: at one they change nothing, and their gradients are scores."""

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
    """Multiply, within the context, the units of blocks, and what layers add to their input, by gates.

    | gates | shape | meaning |
    | --- | --- | --- |
    | units[block] | (units,) or (batch, units) | multiplies the output of each head or neuron; 0 equals removal |
    | layers[layer] | () or (batch,) | `x + gate * (layer(x) - x)`; 0 equals removal of the layer |

    With a leading dimension `batch`, every example has its own gates, and so its own gradients.
    """
    family = family_of(model)
    blocks, modules = family.blocks(model), family.layers(model)
    handles = []
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
        factors = gate.repeat_interleave(block.unit_size, dim=-1).to(args[0].dtype)
        if factors.dim() == 2:
            factors = _repeat_per_row(factors, args[0])[:, None]
        return (args[0] * factors, *args[1:])

    return multiply


def _layer_hook(gate: torch.Tensor) -> Callable[..., Any]:
    def interpolate(
        module: nn.Module, args: tuple[torch.Tensor, ...], kwargs: Mapping[str, torch.Tensor], output: Any
    ) -> Any:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        layer_output, *others = output if isinstance(output, tuple) else (output,)
        factor = gate.to(hidden_states.dtype)
        if factor.dim():
            factor = _repeat_per_row(factor, hidden_states)[:, None, None]
        gated = hidden_states + factor * (layer_output - hidden_states)
        return (gated, *others) if isinstance(output, tuple) else gated

    return interpolate


def _repeat_per_row(gates: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
    """Repeat the gates of each example for all its rows: a multiple choice head makes a row of every choice."""
    return gates.repeat_interleave(hidden_states.shape[0] // gates.shape[0], dim=0)
