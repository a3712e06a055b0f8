"""Checks of a quantization before it starts."""

from __future__ import annotations

from importlib.util import find_spec

from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.models import class_for, family_of, is_quantized
from hf_efficient.quantization.codebook import select_codebook_weights
from hf_efficient.quantization.config import SCHEMES, QuantizationConfig
from hf_efficient.quantization.module_selection import check_selection


def check_quantization(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Check that `quantize` can quantize `model` with `config`.

    Raises UserError if no scheme is set, the model is quantized already, no module of it would be quantized or torchao
    is requested and not installed; UnsupportedModelError if its architecture or task head is not supported.
    """
    if config.scheme is None:
        raise UserError(f"scheme=None quantizes nothing: give one of {', '.join(SCHEMES)}")
    if is_quantized(model):
        raise UserError("the model is quantized already: start from the float model")
    check_selection(model, config)
    if config.torchao and find_spec("torchao") is None:
        raise UserError("torchao=True needs torchao, which is not installed: pip install 'hf_efficient[torchao]'")
    if not config.torchao or config.embeddings_are_codebooks:
        _check_family(model)
    if config.embeddings_are_codebooks and next(select_codebook_weights(model, config), None) is None:
        raise UserError(
            f"no weight of {type(model).__name__} would become a codebook with skip_modules="
            f"{config.skip_modules!r}: skip less, or leave out embedding_bits"
        )


def _check_family(model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError if no class of this package can hold the quantized model; torchao needs none."""
    family = family_of(model)
    class_for(model, family.pruned_config(model.config, family.structure(model.config)))
