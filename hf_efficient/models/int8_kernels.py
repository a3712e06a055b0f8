"""Products of 8-bit matrices on this machine's CPU: which kernel there is, and weights packed for it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

# Products of an activation of 8 bits without sign and a weight are added in pairs, in 16 bits on CPUs without VNNI:
# 2 * 255 * 64 still fits. Weights within this limit give the same sums on every CPU.
WEIGHT_LIMIT = 64
ACTIVATION_MAX = 255
_LOCK = threading.RLock()

# Up to so many multiply-adds the kernel for AVX-512 is faster than that for AMX, whose calls have a constant cost.
SMALL_PRODUCT = 20_000_000
# Weights are read from a kernel as products with this number, beside which the bias that is added is small.
_PROBE = 2.0**20

# Returns outputs (..., out_features) of inputs (..., in_features), both float32 and contiguous, given scale and zero
# point of the inputs.
Kernel = Callable[[torch.Tensor, float, int], torch.Tensor]
KernelBuilder = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], Kernel]


def fbgemm_kernel(weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> Kernel:
    """Return the kernel for AVX2 and AVX-512 with or without VNNI, which quantizes its inputs while it packs them."""
    quantized = torch._make_per_channel_quantized_tensor(
        weight, scale.double(), torch.zeros(len(scale), dtype=torch.long), 0
    )
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "x86"
    try:
        packed = torch.ops.quantized.linear_prepack(quantized, bias)
    finally:
        torch.backends.quantized.engine = engine
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def kernel(rows: torch.Tensor, input_scale: float, zero_point: int) -> torch.Tensor:
        outputs: torch.Tensor = multiply(rows, input_scale, zero_point, packed)
        return outputs

    return kernel


def onednn_kernel(weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> Kernel:
    """Return the kernel for CPUs with AMX."""
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    zero_points = torch.zeros(len(scale), dtype=torch.int32)
    multiply = torch.ops.onednn.qlinear_pointwise.default

    def kernel(rows: torch.Tensor, input_scale: float, zero_point: int) -> torch.Tensor:
        quantized = torch.quantize_per_tensor(rows, input_scale, zero_point, torch.quint8)
        # The integers without the copy that `int_repr` makes.
        integers = torch.empty(0, dtype=torch.uint8).set_(quantized.untyped_storage(), 0, rows.shape)  # type: ignore[call-overload]
        outputs: torch.Tensor = multiply(
            integers, input_scale, zero_point, packed, scale, zero_points, bias, 1.0, 0, torch.float32, "none", [], ""
        )
        return outputs

    return kernel


class AmxKernel:
    """The kernel for CPUs with AMX, and for small products that for AVX-512; both add up the same integers.

    The weight is packed at the first call, and once more at the first call for which the other kernel is faster.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight: torch.Tensor | None = weight
        self._scale, self._bias, self._in_features = scale, bias, weight.shape[1]
        self._small: Kernel | None = None
        self._large: Kernel | None = None

    def __call__(self, rows: torch.Tensor, input_scale: float, zero_point: int) -> torch.Tensor:
        """Return the outputs; see `Kernel`."""
        is_small = rows.numel() * len(self._scale) <= SMALL_PRODUCT
        kernel = self._small if is_small else self._large
        return (kernel or self._pack(is_small))(rows, input_scale, zero_point)

    def any_kernel(self) -> Kernel:
        """Return a kernel for which the weight is packed."""
        return self._small or self._large or self._pack(True)

    def _pack(self, is_small: bool) -> Kernel:
        with torch.inference_mode(False), _LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weight = self._weight
            if weight is None:
                products = channel_weights(self, torch.arange(self._in_features), self._in_features).T
                weight = (products / self._scale[:, None]).round().to(torch.int8)
            builder = fbgemm_kernel if is_small else onednn_kernel
            kernel = builder(weight.contiguous(), self._scale, self._bias)
            if is_small:
                self._small = kernel
            else:
                self._large = kernel
            self._weight = None
        return kernel


def channel_weights(kernel: Kernel, channels: torch.Tensor, in_features: int) -> torch.Tensor:
    """Return the weights (channels, out_features), scaled, of some of the inputs of a kernel."""
    probes = torch.zeros(len(channels) + 1, in_features)
    probes[torch.arange(len(channels)), channels] = _PROBE
    products = (kernel.any_kernel() if isinstance(kernel, AmxKernel) else kernel)(probes, _PROBE, 0)
    return (products[:-1] - products[-1]) / _PROBE  # without the bias, which is the output of zeros


# For smaller weights the product in float is faster: the quantization of the inputs, and the constant cost of a call,
# are more than what integers gain.
MIN_WEIGHT_ENTRIES: dict[KernelBuilder, int] = {fbgemm_kernel: 16 * 1024, AmxKernel: 144 * 1024}


def build_kernel(weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> Kernel | None:
    """Return the product with a weight on its device; None where no kernel is faster than the product in float.

    | argument | shape |
    | --- | --- |
    | weight | (out_features, in_features), int8, within `WEIGHT_LIMIT` |
    | scale | (out_features,), float32 |
    | bias | (out_features,), float32, or None |
    """
    if weight.device.type != "cpu":
        return None
    with _LOCK, warnings.catch_warnings():  # packing is deprecated in torch; `select_kernel` knows whether it works
        warnings.simplefilter("ignore")
        builder = select_kernel()
        if builder is None or weight.numel() < MIN_WEIGHT_ENTRIES.get(builder, 0):
            return None
        return builder(weight.contiguous(), scale.contiguous(), bias)


@cache
def select_kernel() -> KernelBuilder | None:
    """Return the builder of the fastest kernel that this CPU and this version of torch have, None if there is none."""
    for builder in _supported_builders():
        kernels = (fbgemm_kernel, onednn_kernel) if builder is AmxKernel else (builder,)
        if all(_computes_correctly(kernel) for kernel in kernels):
            return builder
    return None


def _supported_builders() -> list[KernelBuilder]:
    """Return the builders of the kernels that are faster than float on this CPU, the fastest first."""
    vector_instructions = torch.backends.cpu.get_cpu_capability()
    if "x86" not in torch.backends.quantized.supported_engines or not vector_instructions.startswith("AVX"):
        return []
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    has_amx = bool(capabilities.get("amx_int8")) and vector_instructions.startswith("AVX512")
    return [AmxKernel, fbgemm_kernel] if has_amx else [fbgemm_kernel]


def _computes_correctly(builder: KernelBuilder) -> bool:
    """Whether a kernel gives the product of integers, with the largest sums that occur."""
    rows = (torch.arange(7 * 64).view(7, 64) * 37 % (ACTIVATION_MAX + 1)).float()
    weight = (torch.arange(48 * 64).view(48, 64) * 29 % (2 * WEIGHT_LIMIT + 1) - WEIGHT_LIMIT).to(torch.int8)
    rows[0], weight[0] = ACTIVATION_MAX, WEIGHT_LIMIT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            outputs = builder(weight, torch.ones(48), torch.ones(48))(rows, 1.0, 0)
        except (RuntimeError, AttributeError, TypeError):  # another version of torch
            return False
    return torch.equal(outputs, rows @ weight.float().T + 1)
