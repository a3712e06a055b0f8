"""Costs of a model that do not depend on the machine: parameters, floating point operations, bytes on disk."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

WEIGHT_PATTERNS = ("*.safetensors", "*.onnx", "*.onnx_data", "*.onnx.data", "openvino_*.bin", "openvino_*.xml")
CHUNK_BYTES = 1 << 20


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights; shared ones count once, quantized ones as in the float model."""
    return sum(weight.numel() for weight in _weights(model))


def _weights(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the parameters, 8-bit weights, and weights that modules compute from a compressed representation."""
    yield from model.parameters()
    yield from _int8_buffers(model)
    for module in model.modules():
        if isinstance(getattr(type(module), "weight", None), property):
            weight: Any = module.weight
            yield weight


def _int8_buffers(model: nn.Module) -> list[torch.Tensor]:
    """Return the buffers of 8-bit integers as they are saved: weights that are packed for a processor are unpacked."""
    state = model.state_dict(keep_vars=True)
    return [value for value in state.values() if value.dtype == torch.int8 and not isinstance(value, nn.Parameter)]


def is_int8(model: nn.Module) -> bool:
    """Whether the model has weights of 8-bit integers, as parameters of torchao or as buffers."""
    return any(hasattr(weight, "tensor_data_names") for weight in model.parameters()) or bool(_int8_buffers(model))


def count_nonzero_parameters(model: nn.Module) -> int:
    """Return the number of weights that are not zero; quantized ones are dequantized first."""
    total = 0
    for parameter in _weights(model):
        values = parameter.dequantize() if hasattr(parameter, "tensor_data_names") else parameter
        total += int(torch.count_nonzero(values.detach()))
    return total


def count_flops(model: Any, inputs: Mapping[str, torch.Tensor]) -> int | None:
    """Return the floating point operations of one forward pass; a multiplication and an addition count as two.

    Works on the meta device too. None for quantized models, whose integer operations torch does not count.
    """
    if is_int8(model):
        return None
    config = getattr(model, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    was_training = model.training
    model.eval()
    try:
        if attention is not None:
            model.set_attn_implementation("eager")  # torch does not count the fused attention kernels of the CPU
        # With gradients enabled: torch's module tracker fails on views of parameters without them.
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            model(**inputs)
    finally:
        if attention is not None:
            model.set_attn_implementation(attention)
        model.train(was_training)
    return int(counter.get_total_flops())


def folder_bytes(folder: str | Path) -> int:
    """Return the bytes of the weight files (safetensors, ONNX, OpenVINO) in `folder`, without its subfolders."""
    return sum(path.stat().st_size for path in _weight_files(folder))


def saved_bytes(model: nn.Module) -> int:
    """Return the bytes of the weight files that `save_pretrained` writes, in the data type of the model."""
    with _saved_model(model) as folder:
        return folder_bytes(folder)


def compressed_bytes(model: nn.Module) -> int:
    """Return the bytes of the weight files that `save_pretrained` writes, each compressed by deflate (zlib, level 6).

    The same weights always give the same number. Zeros take almost no space when compressed, other weights hardly
    shrink. Takes about a second for 20 MB.
    """
    with _saved_model(model) as folder:
        return sum(_compressed_file_bytes(path) for path in _weight_files(folder))


def _compressed_file_bytes(path: Path) -> int:
    codec, total = zlib.compressobj(level=6), 0
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            total += len(codec.compress(_sorted_header(file)))
        while chunk := file.read(CHUNK_BYTES):
            total += len(codec.compress(chunk))
    return total + len(codec.flush())


def _sorted_header(file: BinaryIO) -> bytes:
    """Return the header of a safetensors file with its metadata sorted, because their order differs at every save."""
    size = file.read(8)
    header = json.loads(file.read(int.from_bytes(size, "little")))
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return size + text.ljust(int.from_bytes(size, "little"))


def _weight_files(folder: str | Path) -> list[Path]:
    return [path for pattern in WEIGHT_PATTERNS for path in Path(folder).glob(pattern)]


@contextmanager
def _saved_model(model: nn.Module) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        # Not in the original format: transformers cannot convert 8-bit weights back after loading them.
        model.save_pretrained(folder, save_original_format=False)  # type: ignore[operator]
        yield folder
