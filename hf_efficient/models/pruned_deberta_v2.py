"""The DeBERTa-v2 family, also v3: where its blocks are, and its model classes whose layers have different widths."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import (
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2ForMultipleChoice,
    DebertaV2ForQuestionAnswering,
    DebertaV2ForSequenceClassification,
    DebertaV2ForTokenClassification,
    DebertaV2Model,
    PretrainedConfig,
    PreTrainedModel,
)

from .blocks import AttentionBlock

# Transformers 4 copies from a local folder only the files that this one imports itself.
from .codebook import install_codebooks as install_codebooks
from .config_checks import check_structure as check_structure
from .encoder import EncoderFamily
from .family import PrunedConfig, build_pruned_classes
from .in_place_gelu import InPlaceGelu as InPlaceGelu
from .int8 import install_int8 as install_int8
from .int8_kernels import build_kernel as build_kernel
from .structure import Structure as Structure

POSITION_PROJECTIONS = ("pos_key_proj", "pos_query_proj")


class PrunedDebertaV2Config(PrunedConfig, DebertaV2Config):
    """A `DebertaV2Config` whose `structure` (see `Structure.to_dict`) holds the kept units of every layer."""

    model_type = "pruned_deberta-v2"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class DebertaV2Family(EncoderFamily):
    """DeBERTa-v2 and v3: attention to content and to relative positions, which have projections or share those."""

    model_type = "deberta-v2"
    config_class = DebertaV2Config
    pruned_config_class = PrunedDebertaV2Config
    pruned_classes: ClassVar = build_pruned_classes(
        PrunedDebertaV2Config,
        DebertaV2Model,
        DebertaV2ForMaskedLM,
        DebertaV2ForSequenceClassification,
        DebertaV2ForTokenClassification,
        DebertaV2ForQuestionAnswering,
        DebertaV2ForMultipleChoice,
    )
    float_tables = ("rel_embeddings",)
    runs_without_layers = False
    attention_scores_differ = "its attention scores also have terms for relative positions"

    def class_for(self, model_class: type[PreTrainedModel], config: PretrainedConfig) -> type[PreTrainedModel]:
        if getattr(config, "conv_kernel_size", 0):
            raise TypeError(
                "DeBERTa-v2 models with a convolution after the first layer (conv_kernel_size in config.json, as in "
                "xlarge) are not supported: use one without, such as DeBERTa-v3"
            )
        return super().class_for(model_class, config)

    def attention_block(self, name: str, layer: Any) -> AttentionBlock:
        attention = layer.attention
        positions = [projection for projection in POSITION_PROJECTIONS if hasattr(attention.self, projection)]
        return AttentionBlock(
            name=f"{name}.attention",
            layer=name,
            owner=attention,
            compute="self",
            inputs=("query_proj", "key_proj", "value_proj"),
            other_inputs=tuple(positions),
            reader=attention.output,
            read="dense",
            unit_size=getattr(attention.self, "attention_head_size", 1),
            norm=attention.output.LayerNorm,
        )


DEBERTA_V2 = DebertaV2Family()
