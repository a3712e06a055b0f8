"""The attention of a pruned T5 or mT5: layers that keep different heads, and layers without heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.mt5.modeling_mt5 import MT5Attention
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.utils.import_utils import is_tracing

from .blocks import BiasOnly, EmptyBlock, count_cached_tokens

BIAS_TABLE = "relative_attention_bias"
MAX_CACHED_LENGTH = 512


class CachedPositionBuckets(nn.Module):
    """Mixin in front of a T5 attention: computes the buckets of relative positions once instead of at every call."""

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
        table: Any = getattr(self, BIAS_TABLE)
        device = table.weight.device if device is None else device
        has_fixed_length = isinstance(past_seen_tokens, int) and not is_tracing(table.weight)
        if not has_fixed_length or max(past_seen_tokens + query_length, key_length) > MAX_CACHED_LENGTH:
            return T5Attention.compute_bias(self, query_length, key_length, device, past_seen_tokens)
        if self._buckets is None or self._buckets.device != device:
            with torch.inference_mode(False):  # an inference tensor cannot be used in training
                self._buckets = self._relative_position_bucket(
                    torch.arange(1 - MAX_CACHED_LENGTH, MAX_CACHED_LENGTH, device=device),
                    bidirectional=not self.is_decoder,
                    num_buckets=self.relative_attention_num_buckets,
                    max_distance=self.relative_attention_max_distance,
                )
        # The distances of query i to the keys are those of query i - 1, shifted by one.
        windows, last = self._buckets.unfold(0, key_length, 1), MAX_CACHED_LENGTH - past_seen_tokens
        return table(windows[last - query_length : last].flip(0)).permute(2, 0, 1).unsqueeze(0)


class HeadSubsetMixin(CachedPositionBuckets):
    """Mixin in front of a T5 attention in a stack whose layers keep different heads.

    A T5 stack computes one position bias in its first layer and adds it in all layers: column j belongs to head j.
    Here the layers pass on the bias of all heads of the unpruned network, and each layer selects the columns of its
    own `heads`, which are indices in the unpruned network.

    | tensor | shape |
    | --- | --- |
    | hidden_states | (batch, tokens, d_model) |
    | position_bias | (1 or batch, all heads, tokens, keys); None in the first layer, which computes it |
    | returns | attention output, position bias of all heads (None in cross attention), attention weights |
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
        """Return what the stock attention returns, but with the position bias of all heads."""
        full_bias = own_bias = None  # in cross attention, whose stock code uses zeros for its own number of heads
        if key_value_states is None:
            full_bias = position_bias
            if full_bias is None:
                full_bias = _position_bias(self, hidden_states, past_key_values)
            own_bias = self._select_heads(full_bias)
        output, _, weights = super().forward(
            hidden_states, mask, key_value_states, own_bias, past_key_values, **kwargs
        )
        return output, full_bias, weights

    def _select_heads(self, full_bias: torch.Tensor) -> torch.Tensor:
        """Return the columns of the kept heads, (1 or batch, heads, tokens, keys)."""
        if len(self.heads) == full_bias.shape[1]:
            return full_bias
        if is_tracing(full_bias):
            return torch.stack([full_bias[:, head] for head in self.heads], dim=1)
        if self._columns is None or self._columns.device != full_bias.device:
            with torch.inference_mode(False):
                self._columns = torch.tensor(self.heads, device=full_bias.device)
        return full_bias.index_select(1, self._columns)


class T5SubsetAttention(HeadSubsetMixin, T5Attention):
    """`T5Attention` in a stack whose layers keep different heads."""


class MT5SubsetAttention(HeadSubsetMixin, MT5Attention):
    """`MT5Attention` in a stack whose layers keep different heads."""


SUBSET_ATTENTION: dict[type, type] = {
    T5Attention: T5SubsetAttention,
    MT5Attention: MT5SubsetAttention,
}


class EmptyAttention(CachedPositionBuckets, EmptyBlock):
    """Replaces a T5 attention without heads: its output is zero.

    In self attention it still counts the tokens in the cache, and computes the position bias if it is in the first
    layer.
    """

    o: BiasOnly

    def __init__(self, attention: Any) -> None:
        super().__init__(returns_attention=True, output=("o", attention.o))
        self.layer_idx = attention.layer_idx
        self.is_decoder = attention.is_decoder
        self.relative_attention_num_buckets = attention.relative_attention_num_buckets
        self.relative_attention_max_distance = attention.relative_attention_max_distance
        if attention.has_relative_attention_bias:
            self.add_module(BIAS_TABLE, attention.relative_attention_bias)

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
            count_cached_tokens(hidden_states, past_key_values, self.layer_idx)
        return self.o(hidden_states), position_bias if key_value_states is None else None, None


def _position_bias(attention: Any, hidden_states: torch.Tensor, past_key_values: Any) -> torch.Tensor:
    """Return the position bias of all heads, (1, heads, tokens, keys), before the tokens are added to the cache."""
    tokens, past_tokens, keys = hidden_states.shape[1], 0, hidden_states.shape[1]
    if past_key_values is not None:
        past_tokens = past_key_values.get_seq_length(attention.layer_idx)
        keys, _ = past_key_values.get_mask_sizes(tokens, attention.layer_idx)
    bias: torch.Tensor = attention.compute_bias(
        tokens, keys, device=hidden_states.device, past_seen_tokens=past_tokens
    )
    return bias
