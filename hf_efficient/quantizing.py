"""Quantization of a model as a whole: 8 bits, codebooks, or one for the layers and the other for the embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from transformers import PreTrainedModel

from hf_efficient.models import family_of, is_quantized
from hf_efficient.pruning.batches import task_or_sampled_loss
from hf_efficient.pruning.connections import squared_gradients
from hf_efficient.quantization.chosen import check_chosen
from hf_efficient.quantization.codebook import against_uniform, chosen_for_codebooks, quantize_codebook
from hf_efficient.quantization.config import SCHEMES, QuantizationConfig
from hf_efficient.quantization.int8 import quantize_int8


def quantize(
    model: PreTrainedModel,
    config: QuantizationConfig | None = None,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
) -> PreTrainedModel:
    """Returns a quantized copy of `model` that `save_pretrained` writes and `from_pretrained` loads as it is.

    The Linears of the layers are quantized, and the embedding tables unless told otherwise; pooler and task head stay
    in float, for they are small and what they lose shows at once.

    `calibration` holds batches, (batch, tokens), by which a codebook weighs entries: by their squared gradients, the
    diagonal of the Fisher information. 8-bit schemes find their ranges without.

    Raises ValueError: the model is quantized already, or nothing of it would be. Raises TypeError: codebooks for an
    architecture whose family is unknown.
    """
    config = config or QuantizationConfig()
    check_quantization(model, config)
    if calibration is not None and config.scheme != "codebook":
        raise ValueError(f"scheme={config.scheme!r} needs no calibration data: leave `calibration` out")
    if config.embeddings_are_codebooks:
        importance = None
        if calibration is not None:
            importance = squared_gradients(model, calibration, task_or_sampled_loss())
        model = quantize_codebook(model, config, importance)
    return quantize_int8(model, config) if config.is_int8 else model


def check_quantization(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Refuses what cannot work before any of the work is done; see `quantize`."""
    if config.scheme is None:
        raise ValueError(f"scheme=None asks for nothing: give one of {', '.join(SCHEMES)}")
    if is_quantized(model):
        raise ValueError("the model is quantized already: start from its float form")
    check_chosen(model, config)
    if config.embeddings_are_codebooks:
        family = family_of(model)
        family.class_for(type(model), family.pruned_config(model.config, family.structure(model.config)))
        if not any(True for _ in chosen_for_codebooks(model, config)):
            raise ValueError(
                f"no weight of {type(model).__name__} would be in a codebook with skip_modules={config.skip_modules!r}"
            )


def describe(model: PreTrainedModel, quantized: PreTrainedModel, config: QuantizationConfig) -> str:
    """Returns, for a report, what was done to `model`, and what codebooks cost and lose."""
    found = against_uniform(model, quantized)
    if found is None:
        return config.describe()
    return (
        f"{config.describe()}; codebooks hold {found['bits_per_weight']:.2f} bits a weight, with a squared error of "
        f"{found['error']:.2%} (rounded evenly in as much room: {found['uniform_error']:.2%})"
    )
