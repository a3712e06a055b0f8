"""Checks of an exported model: its outputs against torch's, alone and in a batch, and its speed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.exporters.inputs import generates_text, sample_export_inputs
from hf_efficient.measurement.latency import time_interleaved

CHECKED_DECODE_STEPS = 6
CHECKED_TEXTS = 16
TIMED_LENGTH, TIMED_CALLS = 64, 20

Inputs = Mapping[str, torch.Tensor]


def max_relative_difference(model: PreTrainedModel, loaded: nn.Module) -> float:
    """Return the largest absolute difference of the outputs, relative to the largest of torch's outputs."""
    inputs = sample_export_inputs(model, 3, 11)
    with torch.no_grad():
        return _relative_difference(_output_tensors(model, inputs), _output_tensors(loaded, inputs))


def batch_difference(loaded: nn.Module, batch: Inputs) -> float:
    """Return the largest absolute difference of a text's outputs alone and in `batch`, relative to the largest output.

    `batch` holds padded texts (texts, tokens), of which the first `CHECKED_TEXTS` are compared.
    """
    batch = {name: value[:CHECKED_TEXTS] for name, value in batch.items()}
    together = _float_outputs(loaded(**batch))
    largest = max((float(value.abs().max()) for value in together.values()), default=0.0)
    differences = [0.0]
    for row, mask in enumerate(batch["attention_mask"]):
        kept = mask.reshape(-1, mask.shape[-1]).any(dim=0)
        text = {name: value[row : row + 1] for name, value in batch.items()}
        text = {
            name: value if name.startswith("decoder_") else value[..., kept].contiguous()
            for name, value in text.items()
        }
        for name, alone in _float_outputs(loaded(**text)).items():
            in_batch = together[name][row : row + 1]
            if alone.shape != in_batch.shape:  # an output for each token
                in_batch = in_batch[:, kept]
            differences.append(float((alone - in_batch).abs().max()))
    return max(differences) / largest if largest else math.nan


def padded_batch(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return random texts (texts, tokens) of different lengths; each ends with the same token."""
    batch = sample_export_inputs(model, CHECKED_TEXTS, 2 * CHECKED_TEXTS)
    ids, masks = batch["input_ids"], batch["attention_mask"]
    for row, length in enumerate(range(3, CHECKED_TEXTS + 3)):
        masks[row] = torch.arange(masks.shape[-1], device=masks.device) < length
        ids[row, ..., length - 1] = ids[row, ..., -1]
        ids[row, ..., length:] = model.config.pad_token_id or 0
    return batch


def relative_speed(model: PreTrainedModel, loaded: nn.Module) -> float:
    """Return how many times as fast as `model` in torch the exported model is, for one text of 64 tokens."""
    inputs = sample_export_inputs(model, 1, TIMED_LENGTH)
    calls = {"torch": partial(model, **inputs), "exported": partial(loaded, **inputs)}
    durations = time_interleaved(calls, TIMED_CALLS, turn=TIMED_CALLS // 2)
    return statistics.median(durations["torch"]) / statistics.median(durations["exported"])


def _relative_difference(expected: Inputs, exported: Inputs) -> float:
    pairs = [
        (exported[name].float().cpu(), value.float().cpu()) for name, value in expected.items() if name in exported
    ]
    largest = max((float(value.abs().max()) for _, value in pairs), default=0.0)
    if not largest:
        return math.nan
    return max(float((output - value).abs().max()) for output, value in pairs) / largest


def _float_outputs(outputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in outputs.items() if torch.is_tensor(value) and value.is_floating_point()}


def _output_tensors(model: nn.Module, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Return the outputs of `model`: of one that generates text, the logits of a prefill and several decode steps."""
    if not generates_text(model):
        return _float_outputs(model(**inputs))
    ids = inputs["decoder_input_ids"]
    encoder_inputs = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
    # Several steps, since a cache that the runtime overwrites is still right after one.
    steps = [model(**encoder_inputs, decoder_input_ids=ids[:, :-1], use_cache=True)]
    for _ in range(CHECKED_DECODE_STEPS):
        cache = steps[-1].past_key_values
        steps.append(model(**encoder_inputs, decoder_input_ids=ids[:, -1:], past_key_values=cache))
    return {f"logits {number}": outputs.logits for number, outputs in enumerate(steps)}
