"""The T5 families: T5 (also Flan-T5) and mT5, with model classes whose layers have different widths."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import (
    MT5Config,
    MT5EncoderModel,
    MT5ForConditionalGeneration,
    MT5ForQuestionAnswering,
    MT5ForSequenceClassification,
    MT5ForTokenClassification,
    MT5Model,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5ForQuestionAnswering,
    T5ForSequenceClassification,
    T5ForTokenClassification,
    T5Model,
)

# Transformers 4 copies from a local folder only the files that this one imports itself.
from .blocks import Block as Block
from .codebook import install_codebooks as install_codebooks
from .config_checks import check_structure as check_structure
from .family import PrunedConfig, PrunedModel
from .in_place_gelu import InPlaceGelu as InPlaceGelu
from .int8 import install_int8 as install_int8
from .int8_kernels import build_kernel as build_kernel
from .structure import Structure as Structure
from .t5_attention import SUBSET_ATTENTION as SUBSET_ATTENTION
from .t5_family import T5LikeFamily


class PrunedT5Config(PrunedConfig, T5Config):
    """A `T5Config` whose `structure` (see `Structure.to_dict`) holds the kept units of every layer."""

    model_type = "pruned_t5"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class PrunedT5Model(PrunedModel, T5Model):
    """`T5Model` with layers of different widths."""

    config_class = PrunedT5Config
    _auto_class = "AutoModel"


class PrunedT5ForConditionalGeneration(PrunedModel, T5ForConditionalGeneration):
    """`T5ForConditionalGeneration` with layers of different widths."""

    config_class = PrunedT5Config
    _auto_class = "AutoModelForSeq2SeqLM"


class PrunedT5EncoderModel(PrunedModel, T5EncoderModel):
    """`T5EncoderModel` with layers of different widths."""

    config_class = PrunedT5Config
    _auto_class = "AutoModelForTextEncoding"


class PrunedT5ForSequenceClassification(PrunedModel, T5ForSequenceClassification):
    """`T5ForSequenceClassification` with layers of different widths."""

    config_class = PrunedT5Config
    _auto_class = "AutoModelForSequenceClassification"


class PrunedT5ForTokenClassification(PrunedModel, T5ForTokenClassification):
    """`T5ForTokenClassification` with layers of different widths."""

    config_class = PrunedT5Config
    _auto_class = "AutoModelForTokenClassification"


class PrunedT5ForQuestionAnswering(PrunedModel, T5ForQuestionAnswering):
    """`T5ForQuestionAnswering` with layers of different widths."""

    config_class = PrunedT5Config
    _auto_class = "AutoModelForQuestionAnswering"


class T5Family(T5LikeFamily):
    """T5 and models with the same config, such as Flan-T5."""

    model_type = "t5"
    config_class = T5Config
    pruned_config_class = PrunedT5Config
    pruned_classes: ClassVar = {
        T5Model: PrunedT5Model,
        T5ForConditionalGeneration: PrunedT5ForConditionalGeneration,
        T5EncoderModel: PrunedT5EncoderModel,
        T5ForSequenceClassification: PrunedT5ForSequenceClassification,
        T5ForTokenClassification: PrunedT5ForTokenClassification,
        T5ForQuestionAnswering: PrunedT5ForQuestionAnswering,
    }


T5 = T5Family()


class PrunedMT5Config(PrunedConfig, MT5Config):
    """An `MT5Config` whose `structure` (see `Structure.to_dict`) holds the kept units of every layer."""

    model_type = "pruned_mt5"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class PrunedMT5Model(PrunedModel, MT5Model):
    """`MT5Model` with layers of different widths."""

    config_class = PrunedMT5Config
    _auto_class = "AutoModel"


class PrunedMT5ForConditionalGeneration(PrunedModel, MT5ForConditionalGeneration):
    """`MT5ForConditionalGeneration` with layers of different widths."""

    config_class = PrunedMT5Config
    _auto_class = "AutoModelForSeq2SeqLM"


class PrunedMT5EncoderModel(PrunedModel, MT5EncoderModel):
    """`MT5EncoderModel` with layers of different widths."""

    config_class = PrunedMT5Config
    _auto_class = "AutoModelForTextEncoding"


class PrunedMT5ForSequenceClassification(PrunedModel, MT5ForSequenceClassification):
    """`MT5ForSequenceClassification` with layers of different widths."""

    config_class = PrunedMT5Config
    _auto_class = "AutoModelForSequenceClassification"


class PrunedMT5ForTokenClassification(PrunedModel, MT5ForTokenClassification):
    """`MT5ForTokenClassification` with layers of different widths."""

    config_class = PrunedMT5Config
    _auto_class = "AutoModelForTokenClassification"


class PrunedMT5ForQuestionAnswering(PrunedModel, MT5ForQuestionAnswering):
    """`MT5ForQuestionAnswering` with layers of different widths."""

    config_class = PrunedMT5Config
    _auto_class = "AutoModelForQuestionAnswering"


class MT5Family(T5LikeFamily):
    """mT5."""

    model_type = "mt5"
    config_class = MT5Config
    pruned_config_class = PrunedMT5Config
    pruned_classes: ClassVar = {
        MT5Model: PrunedMT5Model,
        MT5ForConditionalGeneration: PrunedMT5ForConditionalGeneration,
        MT5EncoderModel: PrunedMT5EncoderModel,
        MT5ForSequenceClassification: PrunedMT5ForSequenceClassification,
        MT5ForTokenClassification: PrunedMT5ForTokenClassification,
        MT5ForQuestionAnswering: PrunedMT5ForQuestionAnswering,
    }


MT5 = MT5Family()
