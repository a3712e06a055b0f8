"""The BERT family: its classes when heads and neurons differ by layer."""

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

from .encoder import EncoderFamily
from .structure import PrunedConfig, PrunedModel


class PrunedBertConfig(PrunedConfig, BertConfig):
    """A `BertConfig` whose `structure` (the JSON form of `Structure`) says what is left of every layer."""

    model_type = "pruned_bert"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None


class PrunedBertModel(PrunedModel, BertModel):
    """`BertModel` with uneven layers."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModel"


class PrunedBertForMaskedLM(PrunedModel, BertForMaskedLM):
    """`BertForMaskedLM` with uneven layers."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForMaskedLM"


class PrunedBertForSequenceClassification(PrunedModel, BertForSequenceClassification):
    """`BertForSequenceClassification` with uneven layers."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForSequenceClassification"


class PrunedBertForTokenClassification(PrunedModel, BertForTokenClassification):
    """`BertForTokenClassification` with uneven layers."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForTokenClassification"


class PrunedBertForQuestionAnswering(PrunedModel, BertForQuestionAnswering):
    """`BertForQuestionAnswering` with uneven layers."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForQuestionAnswering"


class PrunedBertForMultipleChoice(PrunedModel, BertForMultipleChoice):
    """`BertForMultipleChoice` with uneven layers."""

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
