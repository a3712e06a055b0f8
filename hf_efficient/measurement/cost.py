"""What a model costs whatever the machine: parameters, floating point operations, bytes on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

WEIGHT_PATTERNS = ("*.safetensors", "*.onnx", "*.onnx_data", "*.onnx.data", "openvino_*.bin")


def count_parameters(model: nn.Module) -> int:
    """Returns the number of weights, shared ones counted once, whatever their type."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_nonzero_parameters(model: nn.Module) -> int:
    """Returns how many weights differ from zero; quantized ones are looked at as the numbers that they stand for."""
    total = 0
    for parameter in model.parameters():
        values = parameter.dequantize() if hasattr(parameter, "tensor_data_names") else parameter
        total += int(torch.count_nonzero(values.detach()))
    return total


def count_flops(model: Any, inputs: Mapping[str, torch.Tensor]) -> int | None:
    """Returns the floating point operations of one forward pass; multiplication and addition are counted apart.

    Works on the meta device too, where nothing is computed. None for quantized models, whose integer operations torch
    does not count.
    """
    if any(hasattr(parameter, "tensor_data_names") for parameter in model.parameters()):
        return None
    config = getattr(model, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    was_training = model.training
    model.eval()
    try:
        if attention is not None:
            model.set_attn_implementation("eager")  # fused attention kernels of the CPU are not in torch's formulas
        # With gradients on: the counter's module tracker stumbles over views of parameters that have none.
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            model(**inputs)
    finally:
        if attention is not None:
            model.set_attn_implementation(attention)
        model.train(was_training)
    return int(counter.get_total_flops())


def folder_bytes(folder: str | Path) -> int:
    """Returns the bytes of the weight files (safetensors, ONNX, OpenVINO) in `folder`, not of those in subfolders."""
    return sum(path.stat().st_size for pattern in WEIGHT_PATTERNS for path in Path(folder).glob(pattern))


def saved_bytes(model: nn.Module) -> int:
    """Returns the bytes of the weight files that `save_pretrained` writes, in the dtype that the model runs in."""
    with tempfile.TemporaryDirectory() as folder:
        # Not in the original format: transformers cannot undo the conversion of 8-bit weights that it has loaded.
        model.save_pretrained(folder, save_original_format=False)  # type: ignore[operator]
        return folder_bytes(folder)
