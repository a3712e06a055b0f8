"""The ALBERT family: layers that share their weights in groups, and its model classes with groups of other widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertForMultipleChoice,
    AlbertForQuestionAnswering,
    AlbertForSequenceClassification,
    AlbertForTokenClassification,
    AlbertModel,
    PretrainedConfig,
    PreTrainedModel,
)

from .blocks import AttentionBlock, Block, EmptyBlock, FeedForwardBlock

# Transformers 4 copies from a local folder only the files that this one imports itself.
from .codebook import install_codebooks as install_codebooks
from .config_checks import MAX_LAYERS
from .encoder import EncoderFamily
from .family import PrunedConfig, build_pruned_classes
from .in_place_gelu import InPlaceGelu as InPlaceGelu
from .int8 import install_int8 as install_int8
from .int8_kernels import build_kernel as build_kernel
from .structure import Structure


class AlbertEmptyAttention(EmptyBlock):
    """Replaces an attention without heads: returns the normalized sum of its inputs and the bias of its output."""

    def __init__(self, dense: nn.Module, norm: nn.Module) -> None:
        super().__init__(returns_attention=True)
        self.dense, self.LayerNorm = dense, norm

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Return the hidden states and no attention weights."""
        return self.LayerNorm(hidden_states + self.dense(hidden_states)), None


class AlbertAttentionBlock(AttentionBlock):
    """The heads of an ALBERT attention, whose module holds the LayerNorm after it too."""

    def narrow(self, keep: Sequence[int]) -> None:
        """Remove all heads except those at the positions `keep`, in place."""
        had_heads = self.units > 0
        super().narrow(keep)
        if had_heads and not keep:
            setattr(self.owner, self.compute, AlbertEmptyAttention(self.output, self.norm or nn.Identity()))


class PrunedAlbertConfig(PrunedConfig, AlbertConfig):
    """An `AlbertConfig` whose `structure` (see `Structure.to_dict`) holds the kept units of every group of layers."""

    model_type = "pruned_albert"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class AlbertFamily(EncoderFamily):
    """ALBERT: its layers share weights in `num_hidden_groups` groups, most often one.

    A group is one layer of the structure: its heads and neurons are removed in all repetitions at once, and a group
    that is removed goes with its repetitions.
    """

    model_type = "albert"
    config_class = AlbertConfig
    pruned_config_class = PrunedAlbertConfig
    pruned_classes: ClassVar = build_pruned_classes(
        PrunedAlbertConfig,
        AlbertModel,
        AlbertForMaskedLM,
        AlbertForSequenceClassification,
        AlbertForTokenClassification,
        AlbertForQuestionAnswering,
        AlbertForMultipleChoice,
    )

    @property
    def size_limits(self) -> dict[str, int]:
        return {**super().size_limits, "num_hidden_groups": MAX_LAYERS}

    def repetitions(self, config: Any) -> int:
        return config.num_hidden_layers // max(config.num_hidden_groups, 1)

    def stacks(self, model: PreTrainedModel) -> Mapping[str, nn.ModuleList]:
        return {"encoder": model.base_model.encoder.albert_layer_groups}

    def layer_blocks(self, name: str, layer: Any) -> tuple[Block, ...]:
        shared = layer.albert_layers[0]
        feed_forward = FeedForwardBlock(
            name=f"{name}.feed_forward",
            layer=name,
            owner=shared,
            compute="ffn",
            inputs=(),
            reader=shared,
            read="ffn_output",
            norm=shared.full_layer_layer_norm,
        )
        return self.attention_block(name, shared), feed_forward

    def attention_block(self, name: str, layer: Any) -> AttentionBlock:
        return AlbertAttentionBlock(
            name=f"{name}.attention",
            layer=name,
            owner=layer,
            compute="attention",
            inputs=("query", "key", "value"),
            reader=layer.attention,
            read="dense",
            unit_size=getattr(layer.attention, "attention_head_size", 1),
            norm=layer.attention.LayerNorm,
        )

    def full_structure(self, config: Any) -> Structure:
        if config.inner_group_num != 1:
            raise ValueError(
                f"inner_group_num={config.inner_group_num}: only ALBERT models with one layer in a group are supported"
            )
        if config.num_hidden_layers != self.repetitions(config) * config.num_hidden_groups:
            raise ValueError(
                f"num_hidden_layers={config.num_hidden_layers} is not a multiple of num_hidden_groups="
                f"{config.num_hidden_groups}: groups that are repeated a different number of times are not supported"
            )
        groups = super().full_structure(config).stacks["encoder"][: config.num_hidden_groups]
        return Structure({"encoder": groups})

    def fields_with_layers(self, config: PretrainedConfig, structure: Structure) -> dict[str, Any]:
        groups = len(structure.stacks["encoder"])
        layers = groups * self.repetitions(config)
        return {
            **super().fields_with_layers(config, structure),
            "num_hidden_groups": groups,
            "num_hidden_layers": layers,
        }


ALBERT = AlbertFamily()
