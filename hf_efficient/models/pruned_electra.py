"""The ELECTRA family: its model classes whose layers have different numbers of heads and neurons."""

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


class PrunedElectraConfig(PrunedConfig, ElectraConfig):
    """An `ElectraConfig` whose `structure` (see `Structure.to_dict`) holds the kept units of every layer."""

    model_type = "pruned_electra"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class PrunedElectraModel(PrunedModel, ElectraModel):
    """`ElectraModel` with layers of different widths."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModel"


class PrunedElectraForPreTraining(PrunedModel, ElectraForPreTraining):
    """`ElectraForPreTraining` with layers of different widths."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModelForPreTraining"


class PrunedElectraForMaskedLM(PrunedModel, ElectraForMaskedLM):
    """`ElectraForMaskedLM` with layers of different widths."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModelForMaskedLM"


class PrunedElectraForSequenceClassification(PrunedModel, ElectraForSequenceClassification):
    """`ElectraForSequenceClassification` with layers of different widths."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModelForSequenceClassification"


class PrunedElectraForTokenClassification(PrunedModel, ElectraForTokenClassification):
    """`ElectraForTokenClassification` with layers of different widths."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModelForTokenClassification"


class PrunedElectraForQuestionAnswering(PrunedModel, ElectraForQuestionAnswering):
    """`ElectraForQuestionAnswering` with layers of different widths."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModelForQuestionAnswering"


class PrunedElectraForMultipleChoice(PrunedModel, ElectraForMultipleChoice):
    """`ElectraForMultipleChoice` with layers of different widths."""

    config_class = PrunedElectraConfig
    _auto_class = "AutoModelForMultipleChoice"


class ElectraFamily(EncoderFamily):
    """ELECTRA: the layers of BERT, with embeddings that may be narrower."""

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
