"""The BERT family: its model classes whose layers have different numbers of heads and neurons."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

# Transformers 4 copies from a local folder only the files that this one imports itself.
from .blocks import Block as Block
from .codebook import install_codebooks as install_codebooks
from .config_checks import check_structure as check_structure
from .encoder import EncoderFamily
from .family import PrunedConfig, PrunedModel
from .in_place_gelu import InPlaceGelu as InPlaceGelu
from .int8 import install_int8 as install_int8
from .int8_kernels import build_kernel as build_kernel
from .structure import Structure as Structure


class PrunedBertConfig(PrunedConfig, BertConfig):
    """A `BertConfig` whose `structure` (see `Structure.to_dict`) holds the kept units of every layer."""

    model_type = "pruned_bert"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class PrunedBertModel(PrunedModel, BertModel):
    """`BertModel` with layers of different widths."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModel"


class PrunedBertForMaskedLM(PrunedModel, BertForMaskedLM):
    """`BertForMaskedLM` with layers of different widths."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForMaskedLM"


class PrunedBertForSequenceClassification(PrunedModel, BertForSequenceClassification):
    """`BertForSequenceClassification` with layers of different widths."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForSequenceClassification"


class PrunedBertForTokenClassification(PrunedModel, BertForTokenClassification):
    """`BertForTokenClassification` with layers of different widths."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForTokenClassification"


class PrunedBertForQuestionAnswering(PrunedModel, BertForQuestionAnswering):
    """`BertForQuestionAnswering` with layers of different widths."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForQuestionAnswering"


class PrunedBertForMultipleChoice(PrunedModel, BertForMultipleChoice):
    """`BertForMultipleChoice` with layers of different widths."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForMultipleChoice"


class BertFamily(EncoderFamily):
    """BERT."""

    model_type = "bert"
    config_class = BertConfig
    pruned_config_class = PrunedBertConfig
    pruned_classes: ClassVar = {
        BertModel: PrunedBertModel,
        BertForMaskedLM: PrunedBertForMaskedLM,
        BertForSequenceClassification: PrunedBertForSequenceClassification,
        BertForTokenClassification: PrunedBertForTokenClassification,
        BertForQuestionAnswering: PrunedBertForQuestionAnswering,
        BertForMultipleChoice: PrunedBertForMultipleChoice,
    }


BERT = BertFamily()
