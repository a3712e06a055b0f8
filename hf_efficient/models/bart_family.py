"""BART, which shares its layers with Marian: where its blocks are, and the configs of a pruned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .blocks import AttentionBlock, BiasOnly, Block, EmptyBlock, FeedForwardBlock, count_cached_tokens
from .config_checks import MAX_HEADS, MAX_LAYERS, MAX_NEURONS
from .family import Family, stock_fields
from .structure import LayerStructure, Structure

STACKS = ("encoder", "decoder")


class EmptySelfAttention(EmptyBlock):
    """Replaces the self attention of a decoder when no head is kept: it still counts the tokens in the cache."""

    def __init__(self, layer_idx: int, output: BiasOnly) -> None:
        super().__init__(returns_attention=True, output=("out_proj", output))
        self.layer_idx = layer_idx

    def forward(
        self, hidden_states: torch.Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, None]:
        """Return the bias of the output, and no attention weights."""
        count_cached_tokens(hidden_states, past_key_values, self.layer_idx)
        return super().forward(hidden_states)


class DecoderAttentionBlock(AttentionBlock):
    """The heads of the self attention of a decoder."""

    def narrow(self, keep: Sequence[int]) -> None:
        """Remove all heads except those at the positions `keep`, in place."""
        attention: Any = getattr(self.owner, self.compute)
        super().narrow(keep)
        if not keep and not isinstance(attention, EmptyBlock):
            empty = EmptySelfAttention(attention.layer_idx, getattr(self.owner, self.compute).out_proj)
            setattr(self.owner, self.compute, empty.train(attention.training))


class BartLikeFamily(Family):
    """An encoder and a decoder whose layers also have cross attention; LayerNorm after each block."""

    @property
    def size_limits(self) -> dict[str, int]:
        """The largest values of those fields of a config that say how much there is to build."""
        limits = {"layers": MAX_LAYERS, "attention_heads": MAX_HEADS, "ffn_dim": MAX_NEURONS}
        return {f"{stack}_{field}": limit for stack in STACKS for field, limit in limits.items()}

    def stacks(self, model: PreTrainedModel) -> Mapping[str, nn.ModuleList]:
        """Return the layers of the encoder and of the decoder."""
        return {stack: getattr(model.base_model, stack).layers for stack in STACKS}

    def layer_blocks(self, name: str, layer: Any) -> tuple[Block, ...]:
        """Return the self attention, in the decoder the cross attention, and the feed-forward block of the layer."""
        is_decoder = hasattr(layer, "encoder_attn")
        attentions = [("attention", "self_attn", DecoderAttentionBlock if is_decoder else AttentionBlock)]
        if is_decoder:
            attentions.append(("cross_attention", "encoder_attn", AttentionBlock))
        return (
            *(
                block_class(
                    name=f"{name}.{short_name}",
                    layer=name,
                    owner=layer,
                    compute=compute,
                    inputs=("q_proj", "k_proj", "v_proj"),
                    reader=getattr(layer, compute),
                    read="out_proj",
                    unit_size=getattr(getattr(layer, compute), "head_dim", 1),
                    norm=getattr(layer, f"{compute}_layer_norm"),
                )
                for short_name, compute, block_class in attentions
            ),
            FeedForwardBlock(
                name=f"{name}.feed_forward",
                layer=name,
                owner=layer,
                compute="fc1",
                inputs=(),
                reader=layer,
                read="fc2",
                norm=layer.final_layer_norm,
            ),
        )

    def full_structure(self, config: Any) -> Structure:
        """Return the structure of the stock network that `config` describes."""
        blocks = {"encoder": ("attention",), "decoder": ("attention", "cross_attention")}
        stacks = {}
        for stack in STACKS:
            heads = tuple(range(getattr(config, f"{stack}_attention_heads")))
            neurons = {"feed_forward": getattr(config, f"{stack}_ffn_dim")}
            stacks[stack] = tuple(
                LayerStructure(index, dict.fromkeys(blocks[stack], heads), neurons)
                for index in range(getattr(config, f"{stack}_layers"))
            )
        return Structure(stacks)

    def stock_config(self, config: Any, structure: Structure) -> PretrainedConfig | None:
        """Return a stock config if all layers keep every head and each stack one width; otherwise None."""
        fields = self.fields_with_layers(config, structure)
        for stack, layers in structure.stacks.items():
            heads = {kept for layer in layers for kept in layer.heads.values()}
            widths = {layer.neurons["feed_forward"] for layer in layers}
            if heads - {tuple(range(fields[f"{stack}_attention_heads"]))} or len(widths) > 1 or 0 in widths:
                return None
            fields |= {f"{stack}_ffn_dim": width for width in widths}
        return self.config_class(**fields)

    def fields_with_layers(self, config: PretrainedConfig, structure: Structure) -> dict[str, Any]:
        """Return the fields that the stock config takes, those of `config` with as many layers as `structure` has."""
        depths = {f"{stack}_layers": len(layers) for stack, layers in structure.stacks.items()}
        return {**stock_fields(config), **depths}
