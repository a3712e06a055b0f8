"""The RoBERTa families, whose layers are those of BERT: RoBERTa, XLM-RoBERTa and CamemBERT."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import (
    CamembertConfig,
    CamembertForMaskedLM,
    CamembertForMultipleChoice,
    CamembertForQuestionAnswering,
    CamembertForSequenceClassification,
    CamembertForTokenClassification,
    CamembertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
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


class PrunedRobertaConfig(PrunedConfig, RobertaConfig):
    """A `RobertaConfig` whose `structure` (see `Structure.to_dict`) holds the kept units of every layer."""

    model_type = "pruned_roberta"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class PrunedRobertaModel(PrunedModel, RobertaModel):
    """`RobertaModel` with layers of different widths."""

    config_class = PrunedRobertaConfig
    _auto_class = "AutoModel"


class PrunedRobertaForMaskedLM(PrunedModel, RobertaForMaskedLM):
    """`RobertaForMaskedLM` with layers of different widths."""

    config_class = PrunedRobertaConfig
    _auto_class = "AutoModelForMaskedLM"


class PrunedRobertaForSequenceClassification(PrunedModel, RobertaForSequenceClassification):
    """`RobertaForSequenceClassification` with layers of different widths."""

    config_class = PrunedRobertaConfig
    _auto_class = "AutoModelForSequenceClassification"


class PrunedRobertaForTokenClassification(PrunedModel, RobertaForTokenClassification):
    """`RobertaForTokenClassification` with layers of different widths."""

    config_class = PrunedRobertaConfig
    _auto_class = "AutoModelForTokenClassification"


class PrunedRobertaForQuestionAnswering(PrunedModel, RobertaForQuestionAnswering):
    """`RobertaForQuestionAnswering` with layers of different widths."""

    config_class = PrunedRobertaConfig
    _auto_class = "AutoModelForQuestionAnswering"


class PrunedRobertaForMultipleChoice(PrunedModel, RobertaForMultipleChoice):
    """`RobertaForMultipleChoice` with layers of different widths."""

    config_class = PrunedRobertaConfig
    _auto_class = "AutoModelForMultipleChoice"


class RobertaFamily(EncoderFamily):
    """RoBERTa."""

    model_type = "roberta"
    config_class = RobertaConfig
    pruned_config_class = PrunedRobertaConfig
    positions_follow_padding = True
    pruned_classes: ClassVar = {
        RobertaModel: PrunedRobertaModel,
        RobertaForMaskedLM: PrunedRobertaForMaskedLM,
        RobertaForSequenceClassification: PrunedRobertaForSequenceClassification,
        RobertaForTokenClassification: PrunedRobertaForTokenClassification,
        RobertaForQuestionAnswering: PrunedRobertaForQuestionAnswering,
        RobertaForMultipleChoice: PrunedRobertaForMultipleChoice,
    }


ROBERTA = RobertaFamily()


class PrunedXLMRobertaConfig(PrunedConfig, XLMRobertaConfig):
    """An `XLMRobertaConfig` whose `structure` (see `Structure.to_dict`) holds the kept units of every layer."""

    model_type = "pruned_xlm-roberta"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class PrunedXLMRobertaModel(PrunedModel, XLMRobertaModel):
    """`XLMRobertaModel` with layers of different widths."""

    config_class = PrunedXLMRobertaConfig
    _auto_class = "AutoModel"


class PrunedXLMRobertaForMaskedLM(PrunedModel, XLMRobertaForMaskedLM):
    """`XLMRobertaForMaskedLM` with layers of different widths."""

    config_class = PrunedXLMRobertaConfig
    _auto_class = "AutoModelForMaskedLM"


class PrunedXLMRobertaForSequenceClassification(PrunedModel, XLMRobertaForSequenceClassification):
    """`XLMRobertaForSequenceClassification` with layers of different widths."""

    config_class = PrunedXLMRobertaConfig
    _auto_class = "AutoModelForSequenceClassification"


class PrunedXLMRobertaForTokenClassification(PrunedModel, XLMRobertaForTokenClassification):
    """`XLMRobertaForTokenClassification` with layers of different widths."""

    config_class = PrunedXLMRobertaConfig
    _auto_class = "AutoModelForTokenClassification"


class PrunedXLMRobertaForQuestionAnswering(PrunedModel, XLMRobertaForQuestionAnswering):
    """`XLMRobertaForQuestionAnswering` with layers of different widths."""

    config_class = PrunedXLMRobertaConfig
    _auto_class = "AutoModelForQuestionAnswering"


class PrunedXLMRobertaForMultipleChoice(PrunedModel, XLMRobertaForMultipleChoice):
    """`XLMRobertaForMultipleChoice` with layers of different widths."""

    config_class = PrunedXLMRobertaConfig
    _auto_class = "AutoModelForMultipleChoice"


class XLMRobertaFamily(EncoderFamily):
    """XLM-RoBERTa: RoBERTa for a hundred languages."""

    model_type = "xlm-roberta"
    config_class = XLMRobertaConfig
    pruned_config_class = PrunedXLMRobertaConfig
    positions_follow_padding = True
    pruned_classes: ClassVar = {
        XLMRobertaModel: PrunedXLMRobertaModel,
        XLMRobertaForMaskedLM: PrunedXLMRobertaForMaskedLM,
        XLMRobertaForSequenceClassification: PrunedXLMRobertaForSequenceClassification,
        XLMRobertaForTokenClassification: PrunedXLMRobertaForTokenClassification,
        XLMRobertaForQuestionAnswering: PrunedXLMRobertaForQuestionAnswering,
        XLMRobertaForMultipleChoice: PrunedXLMRobertaForMultipleChoice,
    }


XLM_ROBERTA = XLMRobertaFamily()


class PrunedCamembertConfig(PrunedConfig, CamembertConfig):
    """A `CamembertConfig` whose `structure` (see `Structure.to_dict`) holds the kept units of every layer."""

    model_type = "pruned_camembert"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class PrunedCamembertModel(PrunedModel, CamembertModel):
    """`CamembertModel` with layers of different widths."""

    config_class = PrunedCamembertConfig
    _auto_class = "AutoModel"


class PrunedCamembertForMaskedLM(PrunedModel, CamembertForMaskedLM):
    """`CamembertForMaskedLM` with layers of different widths."""

    config_class = PrunedCamembertConfig
    _auto_class = "AutoModelForMaskedLM"


class PrunedCamembertForSequenceClassification(PrunedModel, CamembertForSequenceClassification):
    """`CamembertForSequenceClassification` with layers of different widths."""

    config_class = PrunedCamembertConfig
    _auto_class = "AutoModelForSequenceClassification"


class PrunedCamembertForTokenClassification(PrunedModel, CamembertForTokenClassification):
    """`CamembertForTokenClassification` with layers of different widths."""

    config_class = PrunedCamembertConfig
    _auto_class = "AutoModelForTokenClassification"


class PrunedCamembertForQuestionAnswering(PrunedModel, CamembertForQuestionAnswering):
    """`CamembertForQuestionAnswering` with layers of different widths."""

    config_class = PrunedCamembertConfig
    _auto_class = "AutoModelForQuestionAnswering"


class PrunedCamembertForMultipleChoice(PrunedModel, CamembertForMultipleChoice):
    """`CamembertForMultipleChoice` with layers of different widths."""

    config_class = PrunedCamembertConfig
    _auto_class = "AutoModelForMultipleChoice"


class CamembertFamily(EncoderFamily):
    """CamemBERT: RoBERTa for French."""

    model_type = "camembert"
    config_class = CamembertConfig
    pruned_config_class = PrunedCamembertConfig
    positions_follow_padding = True
    pruned_classes: ClassVar = {
        CamembertModel: PrunedCamembertModel,
        CamembertForMaskedLM: PrunedCamembertForMaskedLM,
        CamembertForSequenceClassification: PrunedCamembertForSequenceClassification,
        CamembertForTokenClassification: PrunedCamembertForTokenClassification,
        CamembertForQuestionAnswering: PrunedCamembertForQuestionAnswering,
        CamembertForMultipleChoice: PrunedCamembertForMultipleChoice,
    }


CAMEMBERT = CamembertFamily()
