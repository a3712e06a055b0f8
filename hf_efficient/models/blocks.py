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


class EmptyLinear(EmptyBlock):
    """Replaces a Linear that computes the units of a block when none is kept: returns no units."""

    def __init__(self) -> None:
        super().__init__(returns_attention=False)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return values (..., 0)."""
        return hidden_states[..., :0]


def count_cached_tokens(hidden_states: torch.Tensor, past_key_values: Any, layer_idx: int) -> None:
    """Add the tokens of `hidden_states` to the cache of a self attention without heads, where there is a cache.

    The cache takes its length from its keys, so one number per token is stored. Keys and values are two tensors, since
    OpenVINO refuses a graph that returns the same tensor twice.
    """
    if past_key_values is not None:
        shape = (hidden_states.shape[0], 1, hidden_states.shape[1], 1)
        placeholders = hidden_states.new_zeros(shape), hidden_states.new_zeros(shape)
        getattr(past_key_values, "self_attention_cache", past_key_values).update(*placeholders, layer_idx)


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
    | inputs | names, in that module, of the Linears whose output rows belong to the units; none if it is the Linear |
    | other_inputs | names of Linears with such rows that read other states than `inputs`, such as positions |
    | reader, read | `getattr(reader, read)` is the Linear whose input columns belong to the units |
    | unit_size | columns of the output Linear per unit: the head size, or 1 for a neuron |
    | fused | how many groups of rows an input Linear has for the units: 3 if one computes queries, keys and values |
    | norm | the LayerNorm that reads the sum of the block's output and its residual; None if `owner` returns the sum |
    | input_norm | name, in `owner`, of a LayerNorm that only this block reads; it goes with the last unit |
    """

    name: str
    layer: str
    owner: nn.Module
    compute: str
    inputs: tuple[str, ...]
    reader: nn.Module
    read: str
    unit_size: int = 1
    other_inputs: tuple[str, ...] = ()
    fused: int = 1
    norm: nn.Module | None = None
    input_norm: str | None = None
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
        if isinstance(module, EmptyBlock):
            return ()
        names = (*self.inputs, *self.other_inputs)
        return tuple(getattr(module, name) for name in names) if names else (module,)

    @property
    def units(self) -> int:
        """The current number of units."""
        return self.output.in_features // self.unit_size

    def columns(self, keep: Sequence[int]) -> torch.Tensor:
        """Return the columns of the output Linear that belong to the units `keep`, (len(keep) * unit_size,)."""
        units = torch.as_tensor(keep, dtype=torch.long)
        return (units[:, None] * self.unit_size + torch.arange(self.unit_size)).flatten()

    def rows(self, keep: Sequence[int]) -> torch.Tensor:
        """Return the rows of an input Linear that belong to the units `keep`, (fused * len(keep) * unit_size,)."""
        first_rows = torch.arange(self.fused) * self.units * self.unit_size
        return (first_rows[:, None] + self.columns(keep)).flatten()

    def narrow(self, keep: Sequence[int]) -> None:
        """Remove all units except those at the positions `keep`, in place."""
        if len(keep) == self.units:
            return
        output: Any = self.output
        if keep:
            rows, columns, module = self.rows(keep), self.columns(keep), getattr(self.owner, self.compute)
            for name in (*self.inputs, *self.other_inputs):
                setattr(module, name, narrow_linear(getattr(module, name), rows, dim=0))
            if not self.inputs:
                setattr(self.owner, self.compute, narrow_linear(module, rows, dim=0))
            setattr(self.reader, self.read, narrow_linear(output, columns, dim=1))
        else:
            if self.input_norm is not None:
                setattr(self.owner, self.input_norm, nn.Identity())
            bias_only = BiasOnly(output.out_features, bias=False)
            bias_only.bias = output.bias
            holds_output = self.reader is getattr(self.owner, self.compute)
            setattr(self.reader, self.read, bias_only)
            output_of_empty = (self.read, bias_only) if holds_output else None
            empty = EmptyBlock(self.returns_attention, output_of_empty) if self.inputs else EmptyLinear()
            setattr(self.owner, self.compute, empty)


class AttentionBlock(Block):
    """A block whose units are attention heads."""

    returns_attention = True

    def narrow(self, keep: Sequence[int]) -> None:
        """Remove all heads except those at the positions `keep`, in place."""
        super().narrow(keep)
        module = getattr(self.owner, self.compute)
        # Transformers 4 reads the number of heads from the module, not from the shape of its weights.
        sizes = dict.fromkeys(("num_attention_heads", "num_heads", "n_heads"), len(keep))
        sizes["all_head_size"] = len(keep) * self.unit_size
        for name, value in sizes.items():
            if hasattr(module, name):
                setattr(module, name, value)


class FeedForwardBlock(Block):
    """A block whose units are the neurons between its two Linears."""
