"""Blocks whose units (attention heads, neurons) can be removed, and the modules that replace an empty block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn


class BiasOnly(nn.Module):
    """Replaces a Linear that has no inputs any more: returns its bias, or zeros if it has none.

    | tensor | shape |
    | --- | --- |
    | input | (..., any), of which only the leading dimensions matter |
    | output | (..., out_features) |
    """

    def __init__(
        self,
        out_features: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_features = 0
        self.out_features = out_features
        zeros = torch.zeros(out_features, device=device, dtype=dtype) if bias else None
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None if zeros is None else nn.Parameter(zeros))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the bias at every position of `hidden_states`."""
        if self.bias is None:
            return hidden_states.new_zeros(*hidden_states.shape[:-1], self.out_features)
        return self.bias.expand(*hidden_states.shape[:-1], -1)


class EmptyBlock(nn.Module):
    """Replaces the module that computes the units of a block when none is kept: returns the hidden states unchanged.

    Where that module also holds the Linear that reads the units, `output` is the name and the replacement of that
    Linear.
    """

    def __init__(self, returns_attention: bool, output: tuple[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.returns_attention = returns_attention
        if output is not None:
            self.add_module(*output)

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, None]:
        """Return `hidden_states`; with None for the attention weights if attention is replaced."""
        for output in self.children():
            hidden_states = output(hidden_states)
        return (hidden_states, None) if self.returns_attention else hidden_states


def narrow_linear(linear: nn.Linear, keep: torch.Tensor, dim: int) -> nn.Linear:
    """Return a Linear with the rows (`dim=0`, its outputs) or columns (`dim=1`, its inputs) `keep` of `linear`."""
    weight = linear.weight.detach().index_select(dim, keep.to(linear.weight.device))
    narrowed = nn.Linear(
        weight.shape[1], weight.shape[0], bias=linear.bias is not None, device="meta", dtype=weight.dtype
    )
    narrowed.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        bias = linear.bias.detach()
        bias = bias.index_select(0, keep.to(bias.device)) if dim == 0 else bias
        narrowed.bias = nn.Parameter(bias, requires_grad=linear.bias.requires_grad)
    return narrowed.train(linear.training)


@dataclass(frozen=True)
class Block:
    """A view of one block whose units can be removed: the units are computed by `inputs` and read by `output`.

    | field | meaning |
    | --- | --- |
    | name | the key of the block in scores and selections, such as "encoder.3.attention" |
    | layer | the layer that it belongs to, such as "encoder.3" |
    | owner, compute | `getattr(owner, compute)` is the module that computes the units from the hidden states |
    | inputs | names, in that module, of the Linears whose output rows belong to the units |
    | reader, read | `getattr(reader, read)` is the Linear whose input columns belong to the units |
    | unit_size | rows of an input Linear per unit: the head size, or 1 for a neuron |
    | norm | the LayerNorm applied to the sum of the block's output and its residual; None if `owner` returns the sum |
    """

    name: str
    layer: str
    owner: nn.Module
    compute: str
    inputs: tuple[str, ...]
    reader: nn.Module
    read: str
    unit_size: int = 1
    norm: nn.Module | None = None
    returns_attention: ClassVar[bool] = False

    @property
    def output(self) -> nn.Linear | BiasOnly:
        """The module that reads the units."""
        module: nn.Linear | BiasOnly = getattr(self.reader, self.read)
        return module

    @property
    def input_linears(self) -> tuple[nn.Linear, ...]:
        """The Linears that compute the units; empty if no unit is kept."""
        module = getattr(self.owner, self.compute)
        return () if isinstance(module, EmptyBlock) else tuple(getattr(module, name) for name in self.inputs)

    @property
    def units(self) -> int:
        """The current number of units."""
        return self.output.in_features // self.unit_size

    def rows(self, keep: Sequence[int]) -> torch.Tensor:
        """Return the rows of an input Linear that belong to the units `keep`, shape (len(keep) * unit_size,)."""
        units = torch.as_tensor(keep, dtype=torch.long)
        return (units[:, None] * self.unit_size + torch.arange(self.unit_size)).flatten()

    def narrow(self, keep: Sequence[int]) -> None:
        """Remove all units except those at the positions `keep`, in place."""
        if len(keep) == self.units:
            return
        output: Any = self.output
        if keep:
            rows, module = self.rows(keep), getattr(self.owner, self.compute)
            for name in self.inputs:
                setattr(module, name, narrow_linear(getattr(module, name), rows, dim=0))
            setattr(self.reader, self.read, narrow_linear(output, rows, dim=1))
        else:
            bias_only = BiasOnly(output.out_features, bias=False)
            bias_only.bias = output.bias
            holds_output = self.reader is getattr(self.owner, self.compute)
            setattr(self.reader, self.read, bias_only)
            empty = EmptyBlock(self.returns_attention, (self.read, bias_only) if holds_output else None)
            setattr(self.owner, self.compute, empty)


class AttentionBlock(Block):
    """A block whose units are attention heads."""

    returns_attention = True

    def narrow(self, keep: Sequence[int]) -> None:
        """Remove all heads except those at the positions `keep`, in place."""
        super().narrow(keep)
        module = getattr(self.owner, self.compute)
        # Transformers 4 reads the number of heads from the module, not from the shape of its weights.
        sizes = {"num_attention_heads": len(keep), "n_heads": len(keep), "all_head_size": len(keep) * self.unit_size}
        for name, value in sizes.items():
            if hasattr(module, name):
                setattr(module, name, value)


class FeedForwardBlock(Block):
    """A block whose units are the neurons between its two Linears."""
