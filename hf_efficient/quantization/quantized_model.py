"""Building a model of a family whose modules hold quantized weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_efficient.models import class_for, family_of
from hf_efficient.models.sentence_modules import copy_sentence_modules


def build_quantized_model(
    model: PreTrainedModel, weights: Mapping[str, torch.Tensor], **fields: Any
) -> PreTrainedModel:
    """Return a model in eval mode of the pruned class of `model`, with these weights; `fields` are set in its config.

    Raises UnsupportedModelError if the family of `model` or its task head is not supported.
    """
    family = family_of(model)
    config = family.pruned_config(model.config, family.structure(model.config))
    config.codebooks = getattr(model.config, "codebooks", None)
    for name, value in fields.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]), model.device:
        quantized = class_for(model, config)._from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    quantized.load_state_dict(weights)
    if model.can_generate():
        quantized.generation_config = model.generation_config
    copy_sentence_modules(model, quantized)
    quantized.config._name_or_path = model.config._name_or_path
    return quantized.to(model.device).eval()
