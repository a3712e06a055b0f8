"""BART and Marian: model classes whose layers have different numbers of heads and neurons."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    BartModel,
    MarianConfig,
    MarianModel,
    MarianMTModel,
)

from .bart_family import BartLikeFamily

# Transformers 4 copies from a local folder only the files that this one imports itself.
from .blocks import Block as Block
from .codebook import install_codebooks as install_codebooks
from .config_checks import check_structure as check_structure
from .family import PrunedConfig, build_pruned_classes
from .in_place_gelu import InPlaceGelu as InPlaceGelu
from .int8 import install_int8 as install_int8
from .int8_kernels import build_kernel as build_kernel
from .structure import Structure as Structure


class PrunedBartConfig(PrunedConfig, BartConfig):
    """A `BartConfig` whose `structure` (see `Structure.to_dict`) holds the kept units of every layer."""

    model_type = "pruned_bart"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class BartFamily(BartLikeFamily):
    """BART."""

    model_type = "bart"
    config_class = BartConfig
    pruned_config_class = PrunedBartConfig
    pruned_classes: ClassVar = build_pruned_classes(
        PrunedBartConfig,
        BartModel,
        BartForConditionalGeneration,
        BartForSequenceClassification,
        BartForQuestionAnswering,
    )


BART = BartFamily()


class PrunedMarianConfig(PrunedConfig, MarianConfig):
    """A `MarianConfig` whose `structure` (see `Structure.to_dict`) holds the kept units of every layer."""

    model_type = "pruned_marian"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class MarianFamily(BartLikeFamily):
    """Marian: the layers of BART, with positions that are computed."""

    model_type = "marian"
    config_class = MarianConfig
    pruned_config_class = PrunedMarianConfig
    pruned_classes: ClassVar = build_pruned_classes(PrunedMarianConfig, MarianModel, MarianMTModel)


MARIAN = MarianFamily()
