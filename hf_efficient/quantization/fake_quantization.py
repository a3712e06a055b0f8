"""Fake quantization: in training the forward pass rounds as the int8 model will, with straight-through gradients."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.int8 import needs_reduced_range
from hf_efficient.quantization.module_selection import check_selection, select_embeddings, select_linears
from hf_efficient.quantization.torchao_import import suppress_torchao_warnings

# Smallest and largest integer; the reduced range is for processors on which sums of products would overflow.
FULL_RANGE, REDUCED_RANGE = (-128, 127), (-64, 63)


class _RoundStraightThrough(torch.autograd.Function):
    """Rounding to the integers of a range, with the straight-through gradient: that of the identity."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, lowest: int, highest: int) -> torch.Tensor:
        """Return the nearest integers in the range, in the dtype of `values`."""
        return values.round().clamp(lowest, highest)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient unchanged."""
        return gradients[0], None, None


def quantize_rows(
    values: torch.Tensor, lowest: int = FULL_RANGE[0], highest: int = FULL_RANGE[1]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize each row of `values` (rows, size) symmetrically, with the scale that the int8 model uses.

    Return the integers (rows, size) in float32, with straight-through gradients, and the scales (rows, 1), without
    gradients. A scale is computed from the largest magnitude of its row.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 3; Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons".
    """
    choose_qparams, mapping = _torchao_qparams()
    values = values.float()
    scale, _ = choose_qparams(
        values.detach(),
        mapping.SYMMETRIC,
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


@cache
def _torchao_qparams() -> tuple[Any, Any]:
    """Return `choose_qparams_affine` and `MappingType` of torchao, imported once: every forward pass needs them."""
    with suppress_torchao_warnings():
        from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine

    return choose_qparams_affine, MappingType


class FakeInt8Linear(nn.Linear):
    """A Linear that computes as the int8 model will; setting `__class__` turns a Linear into one and back.

    Integers are multiplied in float and scaled afterwards in the order of torchao, since another order would round
    some values to a neighbouring integer.

    | attribute | meaning |
    | --- | --- |
    | activations | range of the integers of activations; None: activations stay in float |
    | weights | range of the integers of weights |
    """

    activations: tuple[int, int] | None
    weights: tuple[int, int]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return outputs (..., out_features) of inputs (..., in_features)."""
        rows = states.flatten(0, -2)
        weights, scales = quantize_rows(self.weight, *self.weights)
        if self.activations is None:
            outputs = F.linear(rows, weights.to(rows.dtype))
        else:
            integers, row_scales = quantize_rows(rows, *self.activations)
            outputs = (F.linear(integers, weights) * row_scales).to(states.dtype)
        outputs = outputs * scales.flatten().to(outputs.dtype)
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.view(*states.shape[:-1], -1).to(states.dtype)


class FakeInt8Embedding(nn.Embedding):
    """An Embedding whose rows are rounded as those of the int8 model will be."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return embeddings (..., embedding_dim) of token ids (...)."""
        rows = super().forward(ids)
        integers, scales = quantize_rows(rows.flatten(0, -2))
        return (integers * scales).view_as(rows).to(rows.dtype)


def enable_fake_quantization(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Make `model` compute, in place, as `quantize` with this config will; its parameters do not change.

    Raises UserError if no module of `model` would be quantized.
    """
    check_selection(model, config)
    reduces_range = config.scheme == "int8_dynamic" and needs_reduced_range(model.device)
    integer_range = REDUCED_RANGE if reduces_range else FULL_RANGE
    for _, linear in select_linears(model, config):
        linear.__class__ = FakeInt8Linear
        linear.activations = integer_range if config.scheme == "int8_dynamic" else None
        linear.weights = integer_range
    for _, embedding in select_embeddings(model, config):
        if not config.embeddings_are_codebooks:
            embedding.__class__ = FakeInt8Embedding


def disable_fake_quantization(model: PreTrainedModel) -> None:
    """Undo `enable_fake_quantization`: `model` computes in float again, with the weights that it has learned."""
    for module in model.modules():
        if isinstance(module, FakeInt8Linear):
            module.__class__ = nn.Linear  # type: ignore[assignment]
            del module.activations, module.weights
        elif isinstance(module, FakeInt8Embedding):
            module.__class__ = nn.Embedding  # type: ignore[assignment]
