"""Linears and embeddings with 8-bit weights: plain integers in the file, packed for the CPU where they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import GELUActivation

from .in_place_gelu import InPlaceGelu
from .int8_kernels import ACTIVATION_MAX, Kernel, build_kernel, channel_weights

# The largest integer of a token's values, of which the largest becomes 1 before they are rounded.
TOKEN_LIMIT = 127


class _Packed(NamedTuple):
    """What a forward pass needs: the kernel, and for fixed ranges how inputs are quantized and what they may be."""

    kernel: Kernel
    scale: float
    zero_point: int
    lowest: float
    highest: float


def range_to_scale(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point of integers from 0 to 255 for values from `low` to `high`, which include zero."""
    scale = max(high - low, 1e-12) / ACTIVATION_MAX
    return scale, round(-low / scale)


class Int8Linear(nn.Module):
    """A Linear whose weight is int8, with one scale an output.

    | buffer | shape | meaning |
    | --- | --- | --- |
    | weight | (out_features, in_features), int8 | zero in the columns of outlier channels |
    | weight_scale | (out_features,) | |
    | input_range | (2,) | static: smallest and largest value of the ordinary input channels |
    | input_limits | (2,) | static: rows with values beyond, in ordinary channels, are not cut off to the range |
    | outlier_index | (outliers,), int64 | input channels with values far larger than the others' |
    | outlier_weight | (outliers, out_features) | weights of these channels, in float |

    `activations` is "static" (inputs become integers in the fixed `input_range`), "dynamic" (in a range of each
    token) or None (they stay in float). An output depends on its own token only. In rows outside `input_limits`, what
    is beyond the range is multiplied in float. Where no kernel for integers is faster than float, as on a GPU, all
    inputs stay in float.

    The weight is packed at the first use, which frees the plain one; what reads, moves or copies the module unpacks
    it again.
    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 2; Dettmers et al. 2022, "LLM.int8()", section 3.2 (outlier channels).
    """

    weight: torch.Tensor | None
    weight_scale: torch.Tensor
    input_range: torch.Tensor
    input_limits: torch.Tensor
    outlier_index: torch.Tensor
    outlier_weight: torch.Tensor
    bias: nn.Parameter | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool, activations: str | None, outliers: int = 0
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.activations = in_features, out_features, activations
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out_features))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)
        if activations == "static":
            self.register_buffer("input_range", torch.tensor([-1.0, 1.0]))
            self.register_buffer("input_limits", torch.tensor([-1.0, 1.0]))
        self.outliers = outliers
        if outliers:
            self.register_buffer("outlier_index", torch.arange(outliers))
            self.register_buffer("outlier_weight", torch.zeros(outliers, out_features))
        self._packed: _Packed | None = None
        self._float_weight: torch.Tensor | None = None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the outputs (..., out_features) for `states` (..., in_features)."""
        if self._float_weight is not None and self._float_weight.dtype == states.dtype:
            return F.linear(states, self._float_weight, self.bias)
        if self._packed is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.outputs(states, slice(None))
        return self.compute(states)

    def outputs(self, states: torch.Tensor, features: slice, share: bool = False) -> torch.Tensor:
        """Return some of the outputs; with `share`, all of them are kept for the next calls with the same tensor."""
        if self._float_weight is not None:
            bias = None if self.bias is None else self.bias[features]
            return F.linear(states, self._float_weight[features].to(states.dtype), bias)
        if torch.is_grad_enabled() and (states.requires_grad or (self.bias is not None and self.bias.requires_grad)):
            outputs: torch.Tensor = _Product.apply(states, self.bias, self, features, share)  # type: ignore[no-untyped-call]
            return outputs
        compute = _compute_eagerly if torch.compiler.is_compiling() else Int8Linear.compute
        return compute(self, states, share)[..., features]

    def compute(self, states: torch.Tensor, share: bool = False) -> torch.Tensor:
        """Return all outputs (..., out_features), without gradients."""
        if share:
            version = None if states.is_inference() else states._version
            weight, known_version, shared = getattr(states, "_int8_outputs", (None, None, states))
            if weight is not None and weight is self._used_weight and known_version == version:
                return shared
        rows = states.reshape(-1, self.in_features)
        packed = self._packed or (self._pack() if self._float_weight is None else None)
        if packed is None or len(rows) == 0:
            outputs = F.linear(rows, self.float_weight().to(rows.dtype), self.bias)
        else:
            outputs = self._multiply(rows.float().contiguous(), packed).to(states.dtype)
        outputs = outputs.view(*states.shape[:-1], self.out_features)
        if share:
            states._int8_outputs = (self._used_weight, version, outputs)  # type: ignore[attr-defined]
        return outputs

    @property
    def _used_weight(self) -> Any:
        """What the last forward pass has computed with; None if the weight may have changed since."""
        return self._float_weight if self._packed is None else self._packed

    def _multiply(self, rows: torch.Tensor, packed: _Packed) -> torch.Tensor:
        if self.activations == "dynamic":
            lows, highs = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
            scale = torch.maximum(highs, lows.neg_()).clamp_(min=1e-30)
            outputs = packed.kernel(rows / scale, 1 / TOKEN_LIMIT, TOKEN_LIMIT)
            if self.bias is None:
                return outputs.mul_(scale)
            return torch.addcmul(self.bias, outputs, scale, out=outputs)
        outputs = packed.kernel(rows, packed.scale, packed.zero_point)
        if self.outliers:
            outputs.addmm_(rows.index_select(1, self.outlier_index), self.outlier_weight.float())
            lows, highs = (
                reduce(rows, 0).index_fill_(0, self.outlier_index, 0) for reduce in (torch.amin, torch.amax)
            )
            lowest, highest = lows.amin(), highs.amax()  # a copy of all rows would take longer
        else:
            lowest, highest = torch.aminmax(rows)
        if not (float(lowest) >= packed.lowest and float(highest) <= packed.highest):  # NaN is outside too
            self._add_excess(outputs, rows.index_fill(1, self.outlier_index, 0) if self.outliers else rows, packed)
        return outputs

    def _add_excess(self, outputs: torch.Tensor, rows: torch.Tensor, packed: _Packed) -> None:
        """Add to `outputs`, in place, what the kernel cut off from rows with values outside the limits."""
        is_inside = (rows.amin(-1) >= packed.lowest) & (rows.amax(-1) <= packed.highest)
        outside = (~is_inside).nonzero().flatten()
        low, high = -packed.zero_point * packed.scale, (ACTIVATION_MAX - packed.zero_point) * packed.scale
        excess = rows[outside]
        excess = excess - excess.clamp(low, high)
        channels = (excess != 0).any(0).nonzero().flatten()
        products = excess[:, channels] @ channel_weights(packed.kernel, channels, self.in_features)
        outputs.index_add_(0, outside, products)

    def float_weight(self) -> torch.Tensor:
        """Return the weight (out_features, in_features) as floats; kept if the module computes with it."""
        if self._float_weight is not None:
            return self._float_weight
        weight = self.plain_weight().float() * self.weight_scale.float()[:, None]
        if self.outliers:
            weight[:, self.outlier_index] = self.outlier_weight.float().T
        return weight.to(self.weight_scale.dtype)

    def plain_weight(self) -> torch.Tensor:
        """Return the weight as integers (out_features, in_features), packed or not."""
        weight: Any = self.weight
        packed: Any = self._packed
        if weight is None:
            products = channel_weights(packed.kernel, torch.arange(self.in_features), self.in_features).T
            weight = (products / self.weight_scale.float()[:, None]).round()
        # transformers casts it too where it keeps a module in float32.
        return weight.to(torch.int8, memory_format=torch.contiguous_format)

    def _pack(self) -> _Packed | None:
        """Pack the weight for this machine, in place; None, with the weight in float, where no kernel is faster."""
        weight, scale = self.plain_weight(), self.weight_scale.float()
        bias = None if self.bias is None or self.activations != "static" else self.bias.detach().float()
        with torch.inference_mode(False):  # an inference tensor cannot be used in training
            kernel = None if self.activations is None else build_kernel(weight, scale, bias)
            if kernel is None:
                self._float_weight = self.float_weight()
                return None
            if self.activations == "static":
                low, high = self.input_range.tolist()
                packed = _Packed(kernel, *range_to_scale(low, high), *self.input_limits.tolist())
            else:
                packed = _Packed(kernel, 1 / TOKEN_LIMIT, TOKEN_LIMIT, 0.0, 0.0)
        self._packed, self.weight = packed, None
        return packed

    def unpack(self) -> None:
        """Restore the plain weight, in place; the next forward pass packs it again."""
        self.weight, self._packed, self._float_weight = self.plain_weight(), None, None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        self.unpack()  # device or data type may change
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self.unpack()  # packed weights can be neither copied nor sent to another process
        return self.__dict__.copy()

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"activations={self.activations}, outliers={self.outliers}"
        )


# Kernels cannot be traced: under torch.compile they run between compiled parts.
_compute_eagerly = torch.compiler.disable(Int8Linear.compute)  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """Outputs of an `Int8Linear`; gradients pass as those of a Linear with its weight in float."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, bias: torch.Tensor | None, module: Int8Linear, features: slice, share: bool
    ) -> torch.Tensor:
        """Return some of the outputs."""
        ctx.module, ctx.features = module, features
        return module.compute(states, share)[..., features].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None, None]:
        """Return the gradients of states and bias."""
        gradient, bias = gradients[0], ctx.module.bias
        bias_gradient = None
        if bias is not None:
            bias_gradient = torch.zeros_like(bias)
            bias_gradient[ctx.features] = gradient.flatten(0, -2).sum(0)
        weight = ctx.module.float_weight()[ctx.features].to(gradient.dtype)
        return gradient @ weight, bias_gradient, None, None, None


class Int8Slice(nn.Module):
    """Some of the outputs of an `Int8Linear` beside it, such as the queries of one product for attention.

    The product is computed once for the modules that get the same tensor.
    """

    def __init__(self, source: Int8Linear, start: int, stop: int) -> None:
        super().__init__()
        self.features = slice(start, stop)
        self.in_features, self.out_features = source.in_features, stop - start
        self._source = (source,)  # in a tuple it is no submodule of this one too

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the outputs (..., out_features) for `states` (..., in_features)."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._source[0].outputs(states, self.features, share=True)
        return self._source[0].compute(states, share=True)[..., self.features]


class Int8Embedding(nn.Module):
    """An Embedding whose rows are int8, with a scale each.

    | buffer | shape |
    | --- | --- |
    | weight | (num_embeddings, embedding_dim), int8 |
    | weight_scale | (num_embeddings, 1) |
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.register_buffer("weight", torch.zeros(num_embeddings, embedding_dim, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(num_embeddings, 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (..., embedding_dim) of `ids` (...)."""
        scale = F.embedding(ids, self.weight_scale)
        return F.embedding(ids, self.weight).to(scale.dtype).mul_(scale)


def install_int8(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Replace modules of the base model `model` by empty 8-bit ones, in place.

    | key of `settings` | meaning |
    | --- | --- |
    | activations | see `Int8Linear` |
    | linears | by name of the 8-bit Linear: its `outliers`, and the `members`, Linears beside it that it replaces |
    | embeddings | names of embedding tables |
    """
    for name in settings["embeddings"]:
        embedding: Any = model.get_submodule(name)
        int8 = Int8Embedding(embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx)
        model.set_submodule(name, int8.to(embedding.weight.device))
    for name, linear in settings["linears"].items():
        parent, _, short_name = name.rpartition(".")
        members: Sequence[str] = linear.get("members", (short_name,))
        replaced: list[Any] = [model.get_submodule(f"{parent}.{member}") for member in members]
        merged = Int8Linear(
            replaced[0].in_features,
            sum(module.out_features for module in replaced),
            replaced[0].bias is not None,
            linear.get("activations", settings["activations"]),
            linear.get("outliers", 0),
        ).to(replaced[0].weight.device)
        start = 0
        if len(members) > 1:
            for member, module in zip(members, replaced, strict=True):
                model.set_submodule(f"{parent}.{member}", Int8Slice(merged, start, start + module.out_features))
                start += module.out_features
        model.set_submodule(name, merged)
        for activation, module in list(model.get_submodule(parent).named_children()):
            if isinstance(module, GELUActivation) and len(members) == 1:  # slices share their outputs
                model.set_submodule(f"{parent}.{activation}", InPlaceGelu())
