"""Layers of T5, which mT5 shares: their blocks, attention that keeps some heads, and attention that keeps none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.mt5.modeling_mt5 import MT5Attention
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.utils.import_utils import is_tracing

from .structure import (
    AttentionBlock,
    BiasOnly,
    Block,
    EmptyBlock,
    Family,
    FeedForwardBlock,
    LayerStructure,
    Structure,
    stock_fields,
)

_TABLE = "relative_attention_bias"
_LONGEST = 512  # distances between tokens whose buckets are remembered


class CachedPositionBuckets(nn.Module):
    """Mixin in front of a T5 attention, which works out anew, for every token, in which bucket each distance falls."""

    _relative_position_bucket = staticmethod(T5Attention._relative_position_bucket)
    _buckets: torch.Tensor | None = None

    def compute_bias(
        self,
        query_length: int,
        key_length: int,
        device: torch.device | None = None,
        past_seen_tokens: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        """Return the position bias of all heads, (1, heads, query_length, key_length), as `T5Attention` does."""
        table: Any = getattr(self, _TABLE)
        device = device or table.weight.device
        counted = isinstance(past_seen_tokens, int) and not is_tracing(table.weight)
        if not counted or max(past_seen_tokens + query_length, key_length) > _LONGEST:
            return T5Attention.compute_bias(self, query_length, key_length, device, past_seen_tokens)
        if self._buckets is None or self._buckets.device != device:
            with torch.inference_mode(False):  # else training could not use them
                self._buckets = self._relative_position_bucket(
                    torch.arange(1 - _LONGEST, _LONGEST, device=device),
                    bidirectional=not self.is_decoder,
                    num_buckets=self.relative_attention_num_buckets,
                    max_distance=self.relative_attention_max_distance,
                )
        # Row i of the keys' distances is one long to the left of row i - 1.
        windows, last = self._buckets.unfold(0, key_length, 1), _LONGEST - past_seen_tokens
        return table(windows[last - query_length : last].flip(0)).permute(2, 0, 1).unsqueeze(0)


class HeadSubsetMixin(CachedPositionBuckets):
    """Mixin in front of a T5 attention whose neighbours keep other heads than it does.

    A T5 stack makes one position bias in its first layer and adds it in all: column j belongs to head j. Here it stays
    whole between the layers, and each takes the columns of its `heads`, indices in the unpruned network.

    | tensor | shape |
    | --- | --- |
    | hidden_states | (batch, tokens, d_model) |
    | position_bias | (1 or batch, all heads, tokens, keys), None in the first layer, which makes it |
    | returns | attention output, the whole position bias (None in cross attention), attention weights |
    """

    heads: tuple[int, ...]
    _columns: torch.Tensor | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return what attention does, with the position bias of all heads in place of its own."""
        whole = own = None  # cross attention has none but zeros, and makes as many as it has heads
        if key_value_states is None:
            whole = (
                position_bias if position_bias is not None else _position_bias(self, hidden_states, past_key_values)
            )
            own = self._own(whole)
        output, _, weights = super().forward(hidden_states, mask, key_value_states, own, past_key_values, **kwargs)
        return output, whole, weights

    def _own(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the columns of the heads that are kept, (1 or batch, heads, tokens, keys)."""
        if len(self.heads) == whole.shape[1]:
            return whole
        if is_tracing(whole):
            return torch.stack([whole[:, head] for head in self.heads], dim=1)
        if self._columns is None or self._columns.device != whole.device:
            with torch.inference_mode(False):
                self._columns = torch.tensor(self.heads, device=whole.device)
        return whole.index_select(1, self._columns)


class T5SubsetAttention(HeadSubsetMixin, T5Attention):
    """`T5Attention` among layers that keep other heads."""


class MT5SubsetAttention(HeadSubsetMixin, MT5Attention):
    """`MT5Attention` among layers that keep other heads."""


_SUBSET_ATTENTION: dict[type, type] = {
    T5Attention: T5SubsetAttention,
    MT5Attention: MT5SubsetAttention,
}


class EmptyAttention(CachedPositionBuckets, EmptyBlock):
    """Stands for a T5 attention that has lost all its heads: it adds nothing.

    In self attention it still counts the tokens in the cache, and makes the position bias where it is the first layer.
    """

    o: BiasOnly

    def __init__(self, attention: Any) -> None:
        super().__init__(returns_attention=True, reading=("o", attention.o))
        self.layer_idx = attention.layer_idx
        self.is_decoder = attention.is_decoder
        self.relative_attention_num_buckets = attention.relative_attention_num_buckets
        self.relative_attention_max_distance = attention.relative_attention_max_distance
        if attention.has_relative_attention_bias:
            self.add_module(_TABLE, attention.relative_attention_bias)

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Return zeros, the position bias of all heads (None in cross attention), and no attention weights."""
        if key_value_states is None:
            if position_bias is None:
                position_bias = _position_bias(self, hidden_states, past_key_values)
            if past_key_values is not None:
                # A cache whose keys have no element says that it has seen no token: one number stands for each. They
                # are two tensors, since OpenVINO refuses a graph that returns one of them twice.
                shape = (hidden_states.shape[0], 1, hidden_states.shape[1], 1)
                seen = hidden_states.new_zeros(shape), hidden_states.new_zeros(shape)
                getattr(past_key_values, "self_attention_cache", past_key_values).update(*seen, self.layer_idx)
        return self.o(hidden_states), position_bias if key_value_states is None else None, None


def _position_bias(attention: Any, hidden_states: torch.Tensor, past_key_values: Any) -> torch.Tensor:
    """Return the position bias of all heads, (1, heads, tokens, keys), before the cache takes the tokens in."""
    tokens, seen, keys = hidden_states.shape[1], 0, hidden_states.shape[1]
    if past_key_values is not None:
        seen = past_key_values.get_seq_length(attention.layer_idx)
        keys, _ = past_key_values.get_mask_sizes(tokens, attention.layer_idx)
    bias: torch.Tensor = attention.compute_bias(tokens, keys, device=hidden_states.device, past_seen_tokens=seen)
    return bias


class T5AttentionBlock(AttentionBlock):
    """Heads of a T5 attention, self or cross. Block, norm and residual are one module, the `owner`."""

    def narrow(self, keep: Sequence[int]) -> None:
        """Remove every head but those at the positions `keep`, in place; with the last one goes the norm."""
        attention: Any = getattr(self.owner, self.compute)
        if isinstance(attention, EmptyAttention):
            return
        heads = getattr(attention, "heads", range(self.units))
        super().narrow(keep)
        if keep:
            # As torch's own parametrizations do: the module stays, with all that it holds, and computes otherwise.
            attention.__class__ = _SUBSET_ATTENTION.get(type(attention), type(attention))
            attention.heads, attention.n_heads = tuple(heads[position] for position in keep), len(keep)
            attention._columns = None
        else:
            setattr(self.owner, self.compute, EmptyAttention(attention).train(attention.training))
            self.owner.layer_norm = nn.Identity()


class T5FeedForwardBlock(FeedForwardBlock):
    """Neurons of a T5 feed-forward block, plain or gated. Block, norm and residual are one module, the `owner`."""

    def narrow(self, keep: Sequence[int]) -> None:
        """Remove every neuron but those at the positions `keep`, in place; with the last one goes the norm."""
        super().narrow(keep)
        if not keep:
            self.owner.layer_norm = nn.Identity()


class T5LikeFamily(Family):
    """An encoder and, but for encoder-only classes, a decoder whose layers have cross attention too."""

    def stacks(self, model: PreTrainedModel) -> Mapping[str, nn.ModuleList]:
        """Return the layers of the encoder, and of the decoder if there is one."""
        base = model.base_model
        return {stack: getattr(base, stack).block for stack in ("encoder", "decoder") if hasattr(base, stack)}

    def layer_blocks(self, name: str, layer: Any) -> tuple[Block, ...]:
        """Return self attention, in the decoder cross attention, and the feed-forward block of the layer."""
        attention, *cross_attention, feed_forward = layer.layer
        found = [("attention", attention, "SelfAttention")]
        found += [("cross_attention", module, "EncDecAttention") for module in cross_attention]
        dense = feed_forward.DenseReluDense
        return (
            *(
                T5AttentionBlock(
                    name=f"{name}.{short}",
                    layer=name,
                    owner=module,
                    compute=compute,
                    inputs=("q", "k", "v"),
                    reader=getattr(module, compute),
                    read="o",
                    unit_size=getattr(getattr(module, compute), "key_value_proj_dim", 1),
                )
                for short, module, compute in found
            ),
            T5FeedForwardBlock(
                name=f"{name}.feed_forward",
                layer=name,
                owner=feed_forward,
                compute="DenseReluDense",
                inputs=("wi",) if hasattr(dense, "wi") else ("wi_0", "wi_1"),
                reader=dense,
                read="wo",
            ),
        )

    def full_structure(self, config: Any) -> Structure:
        """Return the structure of the stock network that `config` describes."""
        heads, neurons = tuple(range(config.num_heads)), {"feed_forward": config.d_ff}
        stacks = {
            "encoder": tuple(
                LayerStructure(index, {"attention": heads}, neurons) for index in range(config.num_layers)
            )
        }
        if config.is_encoder_decoder:
            stacks["decoder"] = tuple(
                LayerStructure(index, {"attention": heads, "cross_attention": heads}, neurons)
                for index in range(config.num_decoder_layers)
            )
        return Structure(stacks)

    def stock_config(self, config: Any, structure: Structure) -> PreTrainedConfig | None:
        """Return the stock config that can hold `structure`, or None when no stock class can.

        It can where all attention has the same number of heads, within a stack the same ones in self attention, which
        share the columns of one position table, and all feed-forward blocks one width.
        """
        layers = [layer for stack in structure.stacks.values() for layer in stack]
        counts = {len(heads) for layer in layers for heads in layer.heads.values()}
        widths = {width for layer in layers for width in layer.neurons.values()}
        shared = all(len({layer.heads["attention"] for layer in stack}) <= 1 for stack in structure.stacks.values())
        if not shared or len(counts) > 1 or len(widths) > 1 or 0 in counts | widths:
            return None
        fields = self._fields(config, structure)
        fields["num_heads"] = counts.pop() if counts else config.num_heads
        fields["d_ff"] = widths.pop() if widths else config.d_ff
        return self.config_class(**fields)

    def pruned_config(self, config: PreTrainedConfig, structure: Structure) -> PreTrainedConfig:
        """Return the config of the pruned class that holds `structure`."""
        return self.pruned_config_class(**self._fields(config, structure), structure=structure.to_dict())

    @staticmethod
    def _fields(config: PreTrainedConfig, structure: Structure) -> dict[str, Any]:
        """Return the fields of `config` with as many layers as `structure` has."""
        fields = stock_fields(config)
        depths = {stack: len(layers) for stack, layers in structure.stacks.items()}
        fields["num_layers"] = depths["encoder"]
        fields["num_decoder_layers"] = depths.get("decoder", fields["num_decoder_layers"])
        # Where it finds this name, `generate` makes a cache of so many layers, and of the encoder's number elsewhere.
        fields.pop("decoder_layers", None)
        if depths.get("decoder", 0) > depths["encoder"]:
            fields["decoder_layers"] = depths["decoder"]
        return fields

    def remaining_weights(
        self, model: PreTrainedModel, layers: Any, units: Mapping[str, Sequence[int]], config: Any
    ) -> dict[str, torch.Tensor]:
        """Return the weights that a model built from `config` takes when only a part of `model` stays.

        The table of position biases goes to the first layer that stays. A stock class, in which the layers of a stack
        have the same heads, takes the columns of those.
        """
        weights, whole = super().remaining_weights(model, layers, units, config), model.state_dict()
        prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
        for stack, before in self.structure(model.config).stacks.items():
            kept = next((name for name in layers if name.startswith(f"{stack}.")), None)
            if kept is not None:
                name = f"{prefix}{stack}.block.0.layer.0.SelfAttention.{_TABLE}.weight"
                weights[name] = whole[name]
                if not isinstance(config, self.pruned_config_class):
                    was = before[int(kept.rpartition(".")[2])].heads["attention"]
                    columns = [was[position] for position in units[f"{kept}.attention"]]
                    weights[name] = whole[name][:, columns]
        return weights
