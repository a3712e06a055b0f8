"""The ELECTRA family: its classes when heads and neurons differ by layer."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import (
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForMultipleChoice,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    ElectraModel,
)

from .encoder import EncoderFamily
from .structure import PrunedConfig, PrunedModel


class PrunedElectraConfig(PrunedConfig, ElectraConfig):
    """A `ElectraConfig` whose `structure` (the JSON form of `Structure`) says what is left of every layer."""

    model_type = "pruned_electra"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None


class PrunedElectraModel(PrunedModel, ElectraModel):
    """`ElectraModel` with uneven layers."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModel"


class PrunedElectraForPreTraining(PrunedModel, ElectraForPreTraining):
    """`ElectraForPreTraining` with uneven layers."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModelForPreTraining"


class PrunedElectraForMaskedLM(PrunedModel, ElectraForMaskedLM):
    """`ElectraForMaskedLM` with uneven layers."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModelForMaskedLM"


class PrunedElectraForSequenceClassification(PrunedModel, ElectraForSequenceClassification):
    """`ElectraForSequenceClassification` with uneven layers."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModelForSequenceClassification"


class PrunedElectraForTokenClassification(PrunedModel, ElectraForTokenClassification):
    """`ElectraForTokenClassification` with uneven layers."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModelForTokenClassification"


class PrunedElectraForQuestionAnswering(PrunedModel, ElectraForQuestionAnswering):
    """`ElectraForQuestionAnswering` with uneven layers."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModelForQuestionAnswering"


class PrunedElectraForMultipleChoice(PrunedModel, ElectraForMultipleChoice):
    """`ElectraForMultipleChoice` with uneven layers."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModelForMultipleChoice"


class ElectraFamily(EncoderFamily):
    """ELECTRA: BERT's layers, over embeddings that may be narrower than they are."""

    model_type = "electra"
    config_class = ElectraConfig
    pruned_config_class = PrunedElectraConfig
    pruned_classes: ClassVar = {
        ElectraModel: PrunedElectraModel,
        ElectraForPreTraining: PrunedElectraForPreTraining,
        ElectraForMaskedLM: PrunedElectraForMaskedLM,
        ElectraForSequenceClassification: PrunedElectraForSequenceClassification,
        ElectraForTokenClassification: PrunedElectraForTokenClassification,
        ElectraForQuestionAnswering: PrunedElectraForQuestionAnswering,
        ElectraForMultipleChoice: PrunedElectraForMultipleChoice,
    }


ELECTRA = ElectraFamily()
