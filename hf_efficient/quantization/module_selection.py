"""Which modules of a model are quantized."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.errors import UserError
from hf_efficient.models import find_family
from hf_efficient.quantization.config import QuantizationConfig, matches_any

logger = logging.get_logger(__name__)

MIN_EMBEDDING_ROWS = 16


def select_linears(model: PreTrainedModel, config: QuantizationConfig) -> Iterator[tuple[str, Any]]:
    """Yield the Linears of the layers that `config` quantizes, with their names in the base model."""
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.Linear) and re.search(r"\.\d+\.", name) and not _is_skipped(model, config, name):
            yield name, module


def select_embeddings(model: PreTrainedModel, config: QuantizationConfig) -> Iterator[tuple[str, Any]]:
    """Yield the embedding tables that `config` quantizes, with their names in the base model.

    Tables with tied weights stay in float, since the weight would no longer be shared. So do small ones that all
    tokens read, such as token types, and tables that are used otherwise than to look up ids: the `float_tables` of a
    family, and those with a forward pass of their own, such as BART's positions.
    """
    if not config.quantize_embeddings:
        return
    tied_keys: Mapping[str, str] = model.all_tied_weights_keys
    tied = {id(model.get_parameter(name)) for name in (*tied_keys, *tied_keys.values())}
    family = find_family(model.config)
    float_tables = () if family is None else family.float_tables
    for name, module in model.base_model.named_modules():
        is_table = isinstance(module, nn.Embedding) and module.num_embeddings >= MIN_EMBEDDING_ROWS
        is_table = is_table and type(module).forward is nn.Embedding.forward and not name.endswith(float_tables)
        if is_table and id(module.weight) not in tied and not _is_skipped(model, config, name):
            yield name, module


def check_selection(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Raise UserError if no module of `model` would be quantized; warn of patterns that match no module."""
    names = [name for name, _ in (*model.named_modules(), *model.base_model.named_modules())]
    for pattern in config.skip_patterns:
        if not matches_any(pattern, names):
            logger.warning(f"skip_modules={pattern!r} matches no module of {type(model).__name__}: nothing is skipped")
    if next(select_linears(model, config), None) is None and next(select_embeddings(model, config), None) is None:
        raise UserError(f"nothing to quantize in {type(model).__name__} with skip_modules={config.skip_modules!r}")


def _is_skipped(model: PreTrainedModel, config: QuantizationConfig, name: str) -> bool:
    """Whether a pattern matches the name of a module in the base model, or its full name in `model`."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    return config.skips(prefix + name) or config.skips(name)
