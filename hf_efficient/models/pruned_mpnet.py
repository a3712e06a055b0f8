"""The MPNet family: its attention with a part of the heads, and its model classes with layers of different widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import (
    MPNetConfig,
    MPNetForMaskedLM,
    MPNetForMultipleChoice,
    MPNetForQuestionAnswering,
    MPNetForSequenceClassification,
    MPNetForTokenClassification,
    MPNetModel,
)
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

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


class MPNetSubsetAttention(MPNetSelfAttention):
    """The attention of a layer that keeps the heads `heads`, which are indices in the unpruned network.

    All layers get the position bias of all heads, (batch, all heads, tokens, tokens); this one uses those of its own.
    """

    heads: tuple[int, ...]

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        position_bias: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Return what the stock attention returns for the kept heads."""
        if position_bias is not None:
            position_bias = position_bias[:, list(self.heads)]
        return super().forward(hidden_states, attention_mask, position_bias, *args, **kwargs)


class MPNetAttentionBlock(AttentionBlock):
    """The heads of an MPNet attention, to which a position bias of each head is added."""

    def narrow(self, keep: Sequence[int]) -> None:
        """Remove all heads except those at the positions `keep`, in place."""
        attention: Any = getattr(self.owner, self.compute)
        heads = getattr(attention, "heads", range(self.units))
        super().narrow(keep)
        if keep:
            # The class is replaced in place, as torch's parametrizations do: hooks and state of the module stay.
            attention.__class__, attention.heads = MPNetSubsetAttention, tuple(heads[position] for position in keep)


class PrunedMPNetConfig(PrunedConfig, MPNetConfig):
    """An `MPNetConfig` whose `structure` (see `Structure.to_dict`) holds the kept units of every layer."""

    model_type = "pruned_mpnet"

    structure: dict[str, Any] | None = None
    codebooks: dict[str, Any] | None = None
    int8: dict[str, Any] | None = None


class MPNetFamily(EncoderFamily):
    """MPNet: the layers of BERT, with one table of position biases for all of them."""

    model_type = "mpnet"
    config_class = MPNetConfig
    pruned_config_class = PrunedMPNetConfig
    pruned_classes: ClassVar = build_pruned_classes(
        PrunedMPNetConfig,
        MPNetModel,
        MPNetForMaskedLM,
        MPNetForSequenceClassification,
        MPNetForTokenClassification,
        MPNetForQuestionAnswering,
        MPNetForMultipleChoice,
    )
    positions_follow_padding = True

    def attention_block(self, name: str, layer: Any) -> AttentionBlock:
        attention = layer.attention
        return MPNetAttentionBlock(
            name=f"{name}.attention",
            layer=name,
            owner=attention,
            compute="attn",
            inputs=("q", "k", "v"),
            reader=attention.attn,
            read="o",
            unit_size=getattr(attention.attn, "attention_head_size", 1),
            norm=attention.LayerNorm,
        )


MPNET = MPNetFamily()
