"""Checks of a quantization before any work is done."""

from __future__ import annotations

from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.models import family_of, is_quantized
from hf_efficient.quantization.codebook import select_codebook_weights
from hf_efficient.quantization.config import SCHEMES, QuantizationConfig
from hf_efficient.quantization.module_selection import check_selection


def check_quantization(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Check what cannot work before any of the work is done; see `quantize`."""
    if config.scheme is None:
        raise UserError(f"scheme=None asks for nothing: give one of {', '.join(SCHEMES)}")
    if is_quantized(model):
        raise UserError("the model is quantized already: start from its float form")
    check_selection(model, config)
    if config.embeddings_are_codebooks:
        family = family_of(model)
        family.class_for(type(model), family.pruned_config(model.config, family.structure(model.config)))
        if not any(True for _ in select_codebook_weights(model, config)):
            raise UserError(
                f"no weight of {type(model).__name__} would be in a codebook with skip_modules={config.skip_modules!r}"
            )
