"""A model under torch.compile, as a module to evaluate and to time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.measurement.compilation import compile_model
from hf_efficient.models.inputs import TOKEN_TYPES, accepts_token_type_ids, is_label

ITEMS = "num_items_in_batch"  # what `Trainer` gives to a loss


class CompiledModel(nn.Module):
    """A compiled model that gets the same inputs in each call, so that it is compiled once.

    Labels are left out, and token types are added where a batch has none. Everything but a forward pass, such as
    `generate`, is that of the model.
    """

    def __init__(self, model: PreTrainedModel, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.compiled_forward = model, forward

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, token_type_ids: torch.Tensor | None = None, **inputs: Any) -> Any:
        """Return the outputs of the model; if labels are given, with a loss of NaN, which `Trainer` needs."""
        labels = {name: inputs.pop(name) for name in list(inputs) if is_label(name)}
        inputs.pop(ITEMS, None)
        if token_type_ids is not None:
            inputs[TOKEN_TYPES] = token_type_ids
        if labels and self.model.config.is_encoder_decoder and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels["labels"])
        outputs = self.compiled_forward(**with_token_types(self.model, inputs))
        if labels:
            outputs["loss"] = torch.tensor(math.nan)
        return outputs


def compile_variant(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> CompiledModel | None:
    """Return `model` compiled by a first run on `inputs`; None where it cannot be compiled, see `compile_model`."""
    forward = compile_model(model, with_token_types(model, inputs))
    return None if forward is None else CompiledModel(model, forward)


def with_token_types(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `inputs` with token types of zero if `model` has such an input and they are missing."""
    if TOKEN_TYPES in inputs or not accepts_token_type_ids(model):
        return dict(inputs)
    return {**inputs, TOKEN_TYPES: torch.zeros_like(inputs["input_ids"])}
