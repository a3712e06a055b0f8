"""The ModernBERT family: where its blocks are, and its model classes whose layers have different widths."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForMultipleChoice,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
    PretrainedConfig,
    PreTrainedModel,
)

from .blocks import AttentionBlock, Block, FeedForwardBlock

# Transformers 4 copies from a local folder only the files that this one imports itself.
from .codebook import install_codebooks as install_codebooks
from .config_checks import check_structure as check_structure
from .encoder import EncoderFamily
from .family import PrunedConfig, build_pruned_classes
from .in_place_gelu import InPlaceGelu as InPlaceGelu
from .int8 import install_int8 as install_int8
from .int8_kernels import build_kernel as build_kernel
from .structure import Structure


class PrunedModernBertConfig(PrunedConfig, ModernBertConfig):
    """A `ModernBertConfig` whose `structure` (see `Structure.to_dict`) holds the kept units of every layer."""

    model_type = "pruned_modernbert"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class ModernBertFamily(EncoderFamily):
    """ModernBERT: LayerNorm before each block, gated neurons, and global or local attention by layer."""

    model_type = "modernbert"
    config_class = ModernBertConfig
    pruned_config_class = PrunedModernBertConfig
    pruned_classes: ClassVar = build_pruned_classes(
        PrunedModernBertConfig,
        ModernBertModel,
        ModernBertForMaskedLM,
        ModernBertForSequenceClassification,
        ModernBertForTokenClassification,
        ModernBertForQuestionAnswering,
        ModernBertForMultipleChoice,
    )
    fields_per_layer = ("layer_types",)
    runs_without_layers = False
    attention_scores_differ = "its queries and keys are rotated by their positions"

    def stacks(self, model: PreTrainedModel) -> Mapping[str, nn.ModuleList]:
        return {"encoder": model.base_model.layers}

    def layer_blocks(self, name: str, layer: Any) -> tuple[Block, ...]:
        return (
            AttentionBlock(
                name=f"{name}.attention",
                layer=name,
                owner=layer,
                compute="attn",
                inputs=("Wqkv",),
                reader=layer.attn,
                read="Wo",
                unit_size=getattr(layer.attn, "head_dim", 1),
                fused=3,
                norm=layer.mlp_norm,
                input_norm="attn_norm",
            ),
            FeedForwardBlock(
                name=f"{name}.feed_forward",
                layer=name,
                owner=layer,
                compute="mlp",
                inputs=("Wi",),
                reader=layer.mlp,
                read="Wo",
                fused=2,
                input_norm="mlp_norm",
            ),
        )

    def stock_config(self, config: Any, structure: Structure) -> PretrainedConfig | None:
        layers = structure.stacks["encoder"]
        # The first layer of a stock model has no LayerNorm before its attention; all others have one.
        return super().stock_config(config, structure) if not layers or layers[0].source == 0 else None

    def shape(self, model: PreTrainedModel, structure: Structure) -> None:
        for layer, kept in zip(self.stacks(model)["encoder"], structure.stacks["encoder"], strict=True):
            if not hasattr(layer, "attention_type"):
                raise ValueError("a pruned ModernBERT needs Transformers 5, which knows the attention of each layer")
            if kept.source != 0 and isinstance(layer.attn_norm, nn.Identity):
                layer.attn_norm = copy.deepcopy(layer.mlp_norm)
        super().shape(model, structure)


MODERNBERT = ModernBertFamily()
