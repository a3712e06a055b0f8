"""Fake quantization: in training the forward pass rounds as the int8 model will, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_efficient.models.int8 import TOKEN_LIMIT, range_to_scale
from hf_efficient.models.int8_kernels import ACTIVATION_MAX, WEIGHT_LIMIT
from hf_efficient.quantization.calibration import InputStatistics
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.int8 import EMBEDDING_LIMIT, merged_linears
from hf_efficient.quantization.module_selection import check_selection, select_embeddings, select_linears
from hf_efficient.quantization.rounding import quantize_rows


class _StraightThrough(torch.autograd.Function):
    """Returns rounded values, with the straight-through gradient: that of the values."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        """Return `rounded`."""
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient unchanged."""
        return gradients[0], None


def straight_through(values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """Return `rounded` with the gradient of `values`, both (...).

    Source: Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons", section 4.
    """
    output: torch.Tensor = _StraightThrough.apply(values, rounded)  # type: ignore[no-untyped-call]
    return output


def round_rows(values: torch.Tensor, limit: int) -> torch.Tensor:
    """Return each row of `values` (rows, columns) as int8 stores it, with the straight-through gradient."""
    integers, scale = quantize_rows(values, limit)
    return straight_through(values, (integers * scale).to(values.dtype))


def round_tokens(states: torch.Tensor) -> torch.Tensor:
    """Return `states` (..., channels) as an int8 Linear with a range for each token reads them, see `Int8Linear`."""
    values = states.detach().float()
    largest = values.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    rounded = (values / largest * TOKEN_LIMIT).round() / TOKEN_LIMIT * largest
    return straight_through(states, rounded.to(states.dtype))


def round_inputs(states: torch.Tensor, statistics: InputStatistics) -> torch.Tensor:
    """Return `states` (..., channels) as an int8 Linear with fixed ranges reads them, see `Int8Linear`."""
    values, outliers = states.detach().float(), list(statistics.outliers)
    scale, zero_point = range_to_scale(statistics.low, statistics.high)
    integers = (values * (1 / scale)).round().add(zero_point).clamp(0, ACTIVATION_MAX)
    rounded = (integers - zero_point) * scale
    is_outside = (values < statistics.lowest) | (values > statistics.highest)
    is_outside[..., outliers] = False
    is_outside = is_outside.any(-1, keepdim=True)
    low, high = -zero_point * scale, (ACTIVATION_MAX - zero_point) * scale
    rounded = torch.where(is_outside, rounded + values - values.clamp(low, high), rounded).to(states.dtype)
    rounded[..., outliers] = states.detach()[..., outliers]
    return straight_through(states, rounded)


class FakeInt8Linear(nn.Linear):
    """A Linear that computes as the int8 model will; setting `__class__` turns a Linear into one and back.

    | attribute | meaning |
    | --- | --- |
    | scheme | the int8 scheme |
    | statistics | what its inputs are, for fixed ranges; None: not known yet, the inputs stay in float |
    """

    scheme: str
    statistics: InputStatistics | None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return outputs (..., out_features) of inputs (..., in_features)."""
        weight, outliers = self.weight, []
        if self.scheme == "int8_dynamic":
            states = round_tokens(states)
        elif self.scheme == "int8_static" and self.statistics is not None:
            states = round_inputs(states, self.statistics)
            outliers = list(self.statistics.outliers)
        is_ordinary = torch.ones(self.in_features, dtype=weight.dtype, device=weight.device)
        is_ordinary[outliers] = 0
        rounded = round_rows(weight * is_ordinary, WEIGHT_LIMIT) + weight * (1 - is_ordinary)
        return F.linear(states, rounded, self.bias)


class FakeInt8Embedding(nn.Embedding):
    """An Embedding whose rows are rounded as those of the int8 model will be."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return embeddings (..., embedding_dim) of token ids (...)."""
        rows = super().forward(ids)
        return round_rows(rows.flatten(0, -2), EMBEDDING_LIMIT).view_as(rows)


def enable_fake_quantization(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Make `model` compute, in place, as `quantize` with this config will; its parameters do not change.

    Fixed ranges are set afterwards, by `set_input_statistics`. Raises UserError if no module would be quantized.
    """
    check_selection(model, config)
    for _, linear in select_linears(model, config):
        linear.__class__ = FakeInt8Linear
        linear.scheme, linear.statistics = str(config.scheme), None
    for _, embedding in select_embeddings(model, config):
        if not config.embeddings_are_codebooks:
            embedding.__class__ = FakeInt8Embedding


def set_input_statistics(
    model: PreTrainedModel, config: QuantizationConfig, statistics: Mapping[str, InputStatistics]
) -> None:
    """Set the ranges of inputs of a `model` with fake quantization; `statistics` are those of `calibrate`."""
    linears = dict(select_linears(model, config))
    for members in merged_linears(model, linears).values():
        for member in members:
            linears[member].statistics = statistics.get(members[0])


def disable_fake_quantization(model: PreTrainedModel) -> None:
    """Undo `enable_fake_quantization`: `model` computes in float again, with the weights that it has learned."""
    for module in model.modules():
        if isinstance(module, FakeInt8Linear):
            module.__class__ = nn.Linear  # type: ignore[assignment]
            del module.scheme, module.statistics
        elif isinstance(module, FakeInt8Embedding):
            module.__class__ = nn.Embedding  # type: ignore[assignment]
