"""Quantization-aware training: the forward pass rounds as the 8-bit model will, gradients pass as if it did not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.int8 import needs_reduced_range
from hf_efficient.quantization.module_selection import check_selection, select_embeddings, select_linears
from hf_efficient.quantization.torchao_import import suppress_torchao_warnings

# Integers that values are rounded to, and where sums of their products would overflow.
ALL, FEWER = (-128, 127), (-64, 63)


class _RoundStraightThrough(torch.autograd.Function):
    """Nearest integers of a range, with the straight-through gradient: that of the identity."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, lowest: int, highest: int) -> torch.Tensor:
        """Return the integers, in the type of `values`."""
        return values.round().clamp(lowest, highest)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient as it came."""
        return gradients[0], None, None


def quantize_rows(
    values: torch.Tensor, lowest: int = ALL[0], highest: int = ALL[1]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `values` (rows, size) as integers of that range, still in float32, and the scale (rows, 1) of each row.

    The scale is that of the 8-bit model: symmetric, from the largest magnitude of the row. Integers pass gradients
    on as if nothing was rounded; scales have none.
    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 3; Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons".
    """
    with suppress_torchao_warnings():
        from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine

    values = values.float()
    scale, _ = choose_qparams_affine(
        values.detach(),
        MappingType.SYMMETRIC,
        (1, values.shape[-1]),
        torch.int8,
        quant_min=lowest,
        quant_max=highest,
        eps=torch.finfo(torch.float32).eps,
        scale_dtype=torch.float32,
        zero_point_dtype=torch.int32,
        keepdim=True,
    )
    rounded: torch.Tensor = _RoundStraightThrough.apply(values * (1.0 / scale), lowest, highest)  # type: ignore[no-untyped-call]
    return rounded, scale


class FakeInt8Linear(nn.Linear):
    """A Linear that computes as its 8-bit form will; a Linear becomes one by its class, and stops likewise.

    Integers are multiplied, in float, and scaled afterwards in the order of torchao: another order would round
    otherwise here and there, and one step of rounding is no small difference.
    """

    activations: tuple[int, int] | None
    weights: tuple[int, int]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) of (..., in_features)."""
        rows = states.flatten(0, -2)
        weights, scales = quantize_rows(self.weight, *self.weights)
        if self.activations is None:
            found = F.linear(rows, weights.to(rows.dtype))
        else:
            rounded, of_rows = quantize_rows(rows, *self.activations)
            found = (F.linear(rounded, weights) * of_rows).to(states.dtype)
        found = found * scales.flatten().to(found.dtype)
        if self.bias is not None:
            found = found + self.bias
        return found.view(*states.shape[:-1], -1).to(states.dtype)


class FakeInt8Embedding(nn.Embedding):
    """An Embedding whose rows are rounded as they will be in 8 bits."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (..., embedding_dim) of (...)."""
        rows = super().forward(ids)
        rounded, scales = quantize_rows(rows.flatten(0, -2))
        return (rounded * scales).view_as(rows).to(rows.dtype)


def enable_fake_quantization(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Lets `model` compute, in place, as `quantize` with this config will make it; parameters stay what they are.

    Raises ValueError: nothing of `model` would be quantized.
    """
    check_selection(model, config)
    span = FEWER if config.scheme == "int8_dynamic" and needs_reduced_range(model.device) else ALL
    for _, linear in select_linears(model, config):
        linear.__class__ = FakeInt8Linear
        linear.activations = span if config.scheme == "int8_dynamic" else None
        linear.weights = span
    for _, embedding in select_embeddings(model, config):
        if not config.embeddings_are_codebooks:
            embedding.__class__ = FakeInt8Embedding


def disable_fake_quantization(model: PreTrainedModel) -> None:
    """Undoes `prepare`: `model` computes in float again, with the weights that it has learned."""
    for module in model.modules():
        if isinstance(module, FakeInt8Linear):
            module.__class__ = nn.Linear  # type: ignore[assignment]
            del module.activations, module.weights
        elif isinstance(module, FakeInt8Embedding):
            module.__class__ = nn.Embedding  # type: ignore[assignment]
