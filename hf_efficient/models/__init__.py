"""The families of networks that can be pruned, and their registration with the Auto classes."""

import transformers
from transformers import AutoConfig, PreTrainedModel

from hf_efficient.errors import UnsupportedModelError

from .pruned_bert import BERT
from .pruned_distilbert import DISTILBERT
from .pruned_electra import ELECTRA
from .pruned_roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA
from .pruned_t5 import MT5, T5
from .structure import Block, Family, LayerStructure, Structure

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        BERT,
        ROBERTA,
        XLM_ROBERTA,
        CAMEMBERT,
        DISTILBERT,
        ELECTRA,
        T5,
        MT5,
    )
}


def family_of(model: PreTrainedModel) -> Family:
    """Return the family that `model` belongs to, pruned or not.

    Raises TypeError: no family knows its `model_type`.
    """
    model_type = model.config.model_type
    for family in FAMILIES.values():
        if model_type in (family.model_type, family.pruned_config_class.model_type):
            return family
    raise UnsupportedModelError(
        f"model_type {model_type!r} cannot be pruned: known are {', '.join(FAMILIES)}. To add a family, subclass "
        "hf_efficient.models.Family (where the blocks of a layer are, and one class per task head) and enter it in "
        "hf_efficient.models.FAMILIES"
    )


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether the weights of `model` are no longer floats."""
    return getattr(model, "hf_quantizer", None) is not None or bool(getattr(model.config, "codebooks", None))


for _family in FAMILIES.values():
    AutoConfig.register(_family.pruned_config_class.model_type, _family.pruned_config_class, exist_ok=True)
    for _pruned in _family.pruned_classes.values():
        getattr(transformers, _pruned._auto_class).register(_family.pruned_config_class, _pruned, exist_ok=True)

__all__ = ["FAMILIES", "Block", "Family", "LayerStructure", "Structure", "family_of", "is_quantized"]
