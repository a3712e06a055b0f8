"""8-bit Linears, with the float Linears that they stand for, for tests."""

import torch
from torch.nn import functional as F

from hf_efficient.models.int8 import Int8Linear
from hf_efficient.models.int8_kernels import WEIGHT_LIMIT
from hf_efficient.quantization.rounding import quantize_rows

ACTIVATIONS = ("static", "dynamic", None)


def int8_linear(activations="static", inputs=160, outputs=192, bias=True, outliers=(), low=-4.0, high=4.0, seed=0):
    """Return an `Int8Linear` with random weights; inputs are between `low` and `high`."""
    generator = torch.Generator().manual_seed(seed)
    linear = Int8Linear(inputs, outputs, bias, activations, len(outliers))
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    ordinary = weight.clone()
    ordinary[:, list(outliers)] = 0
    integers, scale = quantize_rows(ordinary, WEIGHT_LIMIT)
    tensors = {"weight": integers.to(torch.int8), "weight_scale": scale.flatten()}
    if bias:
        tensors["bias"] = torch.randn(outputs, generator=generator)
    if activations == "static":
        tensors |= {"input_range": torch.tensor([low, high]), "input_limits": 1.25 * torch.tensor([low, high])}
    if outliers:
        tensors |= {
            "outlier_index": torch.tensor(outliers),
            "outlier_weight": weight[:, list(outliers)].T.contiguous(),
        }
    linear.load_state_dict(tensors)
    return linear.eval()


def states_of(*shape, seed=0):
    """Return inputs of which few are larger than 4."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).clamp(-4, 4)


def float_outputs(linear, states):
    """Return the outputs for inputs in float."""
    bias = None if linear.bias is None else linear.bias.detach().float()
    return F.linear(states.float(), linear.float_weight().float(), bias)


def error(outputs, expected):
    """Return the relative error of outputs."""
    return float((outputs.detach().float() - expected).norm() / expected.norm())


def has_kernel(linear):
    """Whether the last forward pass used a product of integers."""
    return linear._packed is not None
