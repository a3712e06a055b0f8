"""Which modules of a model are quantized."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_efficient.quantization.config import QuantizationConfig


def chosen_linears(model: PreTrainedModel, config: QuantizationConfig) -> Iterator[tuple[str, Any]]:
    """Yields the Linears of the layers that `config` quantizes, with their names in the base model."""
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.Linear) and re.search(r"\.\d+\.", name) and not config.skips(name):
            yield name, module


def chosen_embeddings(model: PreTrainedModel, config: QuantizationConfig) -> Iterator[tuple[str, Any]]:
    """Yields the embedding tables that `config` quantizes, with their names in the base model.

    Tables that stand in two places, such as the output layer's, stay in float: one would be left dangling.
    """
    if not config.quantize_embeddings:
        return
    tied: Mapping[str, str] = model.all_tied_weights_keys
    shared = {id(model.get_parameter(name)) for name in (*tied, *tied.values())}
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.Embedding) and id(module.weight) not in shared and not config.skips(name):
            yield name, module


def check_chosen(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Raises ValueError: nothing of `model` would be quantized."""
    if next(chosen_linears(model, config), None) is None and next(chosen_embeddings(model, config), None) is None:
        raise ValueError(f"nothing to quantize in {type(model).__name__} with skip_modules={config.skip_modules!r}")
