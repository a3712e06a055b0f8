"""An 8-bit model as it computes on a machine without kernels for integers, and how much that changes its outputs."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_efficient.models.batches import Batch
from hf_efficient.models.inputs import is_label
from hf_efficient.models.int8 import Int8Linear


def with_float_inputs(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return a copy of an 8-bit model whose Linears get inputs in float, as where no kernel is faster than float.

    None if none of its Linears has inputs in 8 bits.
    """
    if not any(isinstance(module, Int8Linear) and module.activations is not None for module in model.modules()):
        return None
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Int8Linear):
            module.activations = None
    return model


def max_difference_without_kernels(model: PreTrainedModel, batches: Iterable[Batch]) -> float | None:
    """Return the largest difference of an output of `model` to that with inputs in float, on `batches`.

    It is relative to the largest output. None if no inputs are in 8 bits.
    """
    other = with_float_inputs(model)
    if other is None:
        return None
    difference = largest = 0.0
    with torch.inference_mode():
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if not is_label(name)}
            output, expected = _first_output(model, inputs), _first_output(other, inputs)
            difference = max(difference, float((output - expected).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    return difference / largest if largest else None


def _first_output(model: PreTrainedModel, inputs: Batch) -> torch.Tensor:
    outputs: Any = model.eval()(**inputs)
    first: torch.Tensor = outputs[0]
    return first.float()
