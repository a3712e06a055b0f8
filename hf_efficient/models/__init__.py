"""The model classes of compressed networks, by family.

Owns: the structure of a pruned network, the classes built from it, codebook and 8-bit weights, FAMILIES. Its modules,
except `surgery`, `inputs` and `batches`, are saved next to a model's weights: they import only torch, transformers and
each other.
Takes: a stock model and what to keep of it. Gives: a smaller model that loads with `from_pretrained`; importing this
room registers its classes with the Auto classes.
"""

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from hf_efficient.errors import UnsupportedModelError

from .blocks import Block
from .family import Family
from .pruned_albert import ALBERT
from .pruned_bart import BART, MARIAN
from .pruned_bert import BERT
from .pruned_deberta_v2 import DEBERTA_V2
from .pruned_distilbert import DISTILBERT
from .pruned_electra import ELECTRA
from .pruned_modernbert import MODERNBERT
from .pruned_mpnet import MPNET
from .pruned_roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA
from .pruned_t5 import MT5, T5
from .structure import LayerStructure, Structure

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
        MODERNBERT,
        MPNET,
        DEBERTA_V2,
        BART,
        MARIAN,
        ALBERT,
    )
}


def find_family(config: PreTrainedConfig) -> Family | None:
    """Return the family of a model with this config, pruned or not; None if there is none."""
    for family in FAMILIES.values():
        if config.model_type in (family.model_type, family.pruned_config_class.model_type):
            return family
    return None


def is_decoder_only(config: PreTrainedConfig) -> bool:
    """Whether Transformers has models of this type that generate text without an encoder, and none that fill masks."""
    model_type = config.model_type
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def family_of(model: PreTrainedModel) -> Family:
    """Return the family that `model` belongs to, pruned or not.

    Raises UnsupportedModelError if no family has its `model_type`.
    """
    model_type, family = model.config.model_type, find_family(model.config)
    if family is not None:
        return family
    error = f"model_type {model_type!r} cannot be pruned: supported are {', '.join(FAMILIES)}. "
    if is_decoder_only(model.config):
        raise UnsupportedModelError(
            f"{error}Models with a decoder only are compressed by other libraries, such as llm-compressor and Optimum"
        )
    raise UnsupportedModelError(
        f"{error}What works with other models: distillation from soft labels, students with some of the layers "
        "(student_layers), 8 bits with torchao, measurement; what does not: removal of heads and neurons, pruning by "
        "scores, distillation from hidden states, other 8 bits, codebooks and exports. To add a family, subclass "
        "hf_efficient.models.Family and add it to hf_efficient.models.FAMILIES, as hf_efficient/models/README.md "
        "describes"
    )


def class_for(model: PreTrainedModel, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class with the task head of `model` that is built from `config`, stock or pruned.

    Raises UnsupportedModelError if the family of `model` is not supported, or has no such task head.
    """
    family = family_of(model)
    try:
        return family.class_for(type(model), config)
    except TypeError as error:
        raise UnsupportedModelError(str(error)) from error


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether the weights of `model` are not stored as floats."""
    has_quantized_modules = any(getattr(model.config, field, None) for field in ("codebooks", "int8"))
    return has_quantized_modules or getattr(model, "hf_quantizer", None) is not None


for _family in FAMILIES.values():
    AutoConfig.register(_family.pruned_config_class.model_type, _family.pruned_config_class, exist_ok=True)
    for _pruned in _family.pruned_classes.values():
        getattr(transformers, _pruned._auto_class).register(_family.pruned_config_class, _pruned, exist_ok=True)

__all__ = [
    "FAMILIES",
    "Block",
    "Family",
    "LayerStructure",
    "Structure",
    "class_for",
    "family_of",
    "find_family",
    "is_quantized",
]
