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
from hf_efficient.quantization.int8 import EMBEDDING_LIMIT, linears_in_float, merged_linears
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


def outlier_mask(statistics: InputStatistics, channels: int, device: torch.device) -> torch.Tensor:
    """Return which input channels are outliers, (channels,)."""
    mask = torch.zeros(channels, dtype=torch.bool)
    mask[list(statistics.outliers)] = True
    return mask.to(device)


def round_inputs(states: torch.Tensor, statistics: InputStatistics, is_outlier: torch.Tensor) -> torch.Tensor:
    """Return `states` (..., channels) as an int8 Linear with fixed ranges reads them, see `Int8Linear`.

    `is_outlier` is the `outlier_mask` of the statistics.
    """
    values = states.detach().float()
    scale, zero_point = range_to_scale(statistics.low, statistics.high)
    integers = (values * (1 / scale)).round().add(zero_point).clamp(0, ACTIVATION_MAX)
    rounded = (integers - zero_point) * scale
    is_outside = (values < statistics.lowest) | (values > statistics.highest)
    is_outside = (is_outside & ~is_outlier).any(-1, keepdim=True)
    low, high = -zero_point * scale, (ACTIVATION_MAX - zero_point) * scale
    rounded = torch.where(is_outside, rounded + values - values.clamp(low, high), rounded).to(states.dtype)
    return straight_through(states, torch.where(is_outlier, states.detach(), rounded))


class FakeInt8Linear(nn.Linear):
    """A Linear that computes as the int8 model will; setting `__class__` turns a Linear into one and back.

    | attribute | meaning |
    | --- | --- |
    | scheme | the int8 scheme |
    | statistics | what its inputs are, for fixed ranges; None: not known yet, the inputs stay in float |
    | is_outlier | (in_features,) the input channels that stay in float, with their weights; None: none |
    """

    scheme: str
    statistics: InputStatistics | None
    is_outlier: torch.Tensor | None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return outputs (..., out_features) of inputs (..., in_features)."""
        weight = self.weight
        if self.scheme == "int8_static" and self.statistics is not None and self.is_outlier is not None:
            is_outlier = self.is_outlier.to(weight.device)  # it is no buffer, which would be saved
            states = round_inputs(states, self.statistics, is_outlier)
            rounded = round_rows(weight.masked_fill(is_outlier, 0), WEIGHT_LIMIT)
            return F.linear(states, torch.where(is_outlier, weight, rounded), self.bias)
        if self.scheme == "int8_dynamic":
            states = round_tokens(states)
        return F.linear(states, round_rows(weight, WEIGHT_LIMIT), self.bias)


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
    in_float = linears_in_float(model, config)
    for linear in (linear for name, linear in select_linears(model, config) if name not in in_float):
        linear.__class__ = FakeInt8Linear
        linear.scheme, linear.statistics, linear.is_outlier = str(config.scheme), None, None
    for _, embedding in select_embeddings(model, config):
        if not config.embeddings_are_codebooks:
            embedding.__class__ = FakeInt8Embedding


def set_input_statistics(
    model: PreTrainedModel, config: QuantizationConfig, statistics: Mapping[str, InputStatistics]
) -> None:
    """Set the ranges of inputs of a `model` with fake quantization; `statistics` are those of `calibrate`."""
    linears = dict(select_linears(model, config))
    for members in merged_linears(model, linears).values():
        known = statistics.get(members[0])
        for member in members:
            linear = linears[member]
            linear.statistics = known
            if known is not None:
                linear.is_outlier = outlier_mask(known, linear.in_features, linear.weight.device)


def disable_fake_quantization(model: PreTrainedModel) -> None:
    """Undo `enable_fake_quantization`: `model` computes in float again, with the weights that it has learned."""
    for module in model.modules():
        if isinstance(module, FakeInt8Linear):
            module.__class__ = nn.Linear  # type: ignore[assignment]
            del module.scheme, module.statistics, module.is_outlier
        elif isinstance(module, FakeInt8Embedding):
            module.__class__ = nn.Embedding  # type: ignore[assignment]
