"""The DistilBERT family: where its blocks are, and its model classes whose layers have different widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
    PreTrainedModel,
)

from .blocks import AttentionBlock, Block, FeedForwardBlock

# Transformers 4 copies from a local folder only the files that this one imports itself.
from .codebook import install_codebooks as install_codebooks
from .config_checks import check_structure as check_structure
from .encoder import EncoderFamily
from .family import PrunedConfig, PrunedModel
from .in_place_gelu import InPlaceGelu as InPlaceGelu
from .int8 import install_int8 as install_int8
from .int8_kernels import build_kernel as build_kernel
from .structure import Structure as Structure


class PrunedDistilBertConfig(PrunedConfig, DistilBertConfig):
    """A `DistilBertConfig` whose `structure` (see `Structure.to_dict`) holds the kept units of every layer."""

    model_type = "pruned_distilbert"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class PrunedDistilBertModel(PrunedModel, DistilBertModel):
    """`DistilBertModel` with layers of different widths."""

    config_class = PrunedDistilBertConfig
    _auto_class = "AutoModel"


class PrunedDistilBertForMaskedLM(PrunedModel, DistilBertForMaskedLM):
    """`DistilBertForMaskedLM` with layers of different widths."""

    config_class = PrunedDistilBertConfig
    _auto_class = "AutoModelForMaskedLM"


class PrunedDistilBertForSequenceClassification(PrunedModel, DistilBertForSequenceClassification):
    """`DistilBertForSequenceClassification` with layers of different widths."""

    config_class = PrunedDistilBertConfig
    _auto_class = "AutoModelForSequenceClassification"


class PrunedDistilBertForTokenClassification(PrunedModel, DistilBertForTokenClassification):
    """`DistilBertForTokenClassification` with layers of different widths."""

    config_class = PrunedDistilBertConfig
    _auto_class = "AutoModelForTokenClassification"


class PrunedDistilBertForQuestionAnswering(PrunedModel, DistilBertForQuestionAnswering):
    """`DistilBertForQuestionAnswering` with layers of different widths."""

    config_class = PrunedDistilBertConfig
    _auto_class = "AutoModelForQuestionAnswering"


class PrunedDistilBertForMultipleChoice(PrunedModel, DistilBertForMultipleChoice):
    """`DistilBertForMultipleChoice` with layers of different widths."""

    config_class = PrunedDistilBertConfig
    _auto_class = "AutoModelForMultipleChoice"


class DistilBertFamily(EncoderFamily):
    """DistilBERT, in which one module computes the units of a block and reads them."""

    model_type = "distilbert"
    config_class = DistilBertConfig
    pruned_config_class = PrunedDistilBertConfig
    pruned_classes: ClassVar = {
        DistilBertModel: PrunedDistilBertModel,
        DistilBertForMaskedLM: PrunedDistilBertForMaskedLM,
        DistilBertForSequenceClassification: PrunedDistilBertForSequenceClassification,
        DistilBertForTokenClassification: PrunedDistilBertForTokenClassification,
        DistilBertForQuestionAnswering: PrunedDistilBertForQuestionAnswering,
        DistilBertForMultipleChoice: PrunedDistilBertForMultipleChoice,
    }
    width_field = "hidden_dim"

    def stacks(self, model: PreTrainedModel) -> Mapping[str, nn.ModuleList]:
        return {"encoder": model.base_model.transformer.layer}

    def layer_blocks(self, name: str, layer: Any) -> tuple[Block, ...]:
        return (
            AttentionBlock(
                name=f"{name}.attention",
                layer=name,
                owner=layer,
                compute="attention",
                inputs=("q_lin", "k_lin", "v_lin"),
                reader=layer.attention,
                read="out_lin",
                unit_size=getattr(layer.attention, "attention_head_size", 1),
                norm=layer.sa_layer_norm,
            ),
            FeedForwardBlock(
                name=f"{name}.feed_forward",
                layer=name,
                owner=layer,
                compute="ffn",
                inputs=("lin1",),
                reader=layer.ffn,
                read="lin2",
                norm=layer.output_layer_norm,
            ),
        )


DISTILBERT = DistilBertFamily()
