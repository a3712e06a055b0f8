"""T5, which shares its layers with mT5: where its blocks are, and the configs of a pruned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .blocks import AttentionBlock, Block, FeedForwardBlock
from .config_checks import MAX_LAYERS, MAX_NEURONS
from .family import Family, stock_fields
from .structure import LayerStructure, Structure
from .t5_attention import BIAS_TABLE, SUBSET_ATTENTION, EmptyAttention


class T5AttentionBlock(AttentionBlock):
    """The heads of a T5 attention, self or cross. The `owner` is one module: attention, LayerNorm and residual."""

    def narrow(self, keep: Sequence[int]) -> None:
        """Remove all heads except those at the positions `keep`, in place."""
        attention: Any = getattr(self.owner, self.compute)
        if isinstance(attention, EmptyAttention):
            return
        heads = getattr(attention, "heads", range(self.units))
        super().narrow(keep)
        if keep:
            # The class is replaced in place, as torch's parametrizations do: hooks and state of the module stay.
            attention.__class__ = SUBSET_ATTENTION.get(type(attention), type(attention))
            attention.heads, attention.n_heads = tuple(heads[position] for position in keep), len(keep)
            attention._columns = None
        else:
            setattr(self.owner, self.compute, EmptyAttention(attention).train(attention.training))


class T5LikeFamily(Family):
    """An encoder and, except in encoder-only classes, a decoder whose layers also have cross attention."""

    @property
    def size_limits(self) -> dict[str, int]:
        """The largest values of those fields of a config that say how much there is to build."""
        return {**super().size_limits, "num_decoder_layers": MAX_LAYERS, "d_ff": MAX_NEURONS}

    def stacks(self, model: PreTrainedModel) -> Mapping[str, nn.ModuleList]:
        """Return the layers of the encoder, and of the decoder if there is one."""
        base = model.base_model
        return {stack: getattr(base, stack).block for stack in ("encoder", "decoder") if hasattr(base, stack)}

    def layer_blocks(self, name: str, layer: Any) -> tuple[Block, ...]:
        """Return the self attention, in the decoder the cross attention, and the feed-forward block of the layer."""
        attention, *cross_attention, feed_forward = layer.layer
        attentions = [("attention", attention, "SelfAttention")]
        attentions += [("cross_attention", module, "EncDecAttention") for module in cross_attention]
        dense = feed_forward.DenseReluDense
        return (
            *(
                T5AttentionBlock(
                    name=f"{name}.{short_name}",
                    layer=name,
                    owner=module,
                    compute=compute,
                    inputs=("q", "k", "v"),
                    reader=getattr(module, compute),
                    read="o",
                    unit_size=getattr(getattr(module, compute), "key_value_proj_dim", 1),
                    input_norm="layer_norm",
                )
                for short_name, module, compute in attentions
            ),
            FeedForwardBlock(
                name=f"{name}.feed_forward",
                layer=name,
                owner=feed_forward,
                compute="DenseReluDense",
                inputs=("wi",) if hasattr(dense, "wi") else ("wi_0", "wi_1"),
                reader=dense,
                read="wo",
                input_norm="layer_norm",
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

    def stock_config(self, config: Any, structure: Structure) -> PretrainedConfig | None:
        """Return the stock config that can hold `structure`, or None if no stock class can.

        A stock class needs the same number of heads in all attention blocks, one width in all feed-forward blocks,
        and within a stack the same heads in self attention, since all its layers share one table of position biases.
        """
        layers = [layer for stack in structure.stacks.values() for layer in stack]
        head_counts = {len(heads) for layer in layers for heads in layer.heads.values()}
        widths = {width for layer in layers for width in layer.neurons.values()}
        has_common_heads = all(
            len({layer.heads["attention"] for layer in stack}) <= 1 for stack in structure.stacks.values()
        )
        if not has_common_heads or len(head_counts) > 1 or len(widths) > 1 or 0 in head_counts | widths:
            return None
        fields = self.fields_with_layers(config, structure)
        fields["num_heads"] = head_counts.pop() if head_counts else config.num_heads
        fields["d_ff"] = widths.pop() if widths else config.d_ff
        return self.config_class(**fields)

    def fields_with_layers(self, config: PretrainedConfig, structure: Structure) -> dict[str, Any]:
        """Return the fields that the stock config takes, those of `config` with as many layers as `structure` has."""
        fields = stock_fields(config)
        depths = {stack: len(layers) for stack, layers in structure.stacks.items()}
        fields["num_layers"] = depths["encoder"]
        fields["num_decoder_layers"] = depths.get("decoder", fields["num_decoder_layers"])
        # `generate` creates a cache with `decoder_layers` layers if the config has that field, else with as many as
        # the encoder has.
        fields.pop("decoder_layers", None)
        if depths.get("decoder", 0) > depths["encoder"]:
            fields["decoder_layers"] = depths["decoder"]
        return fields

    def remaining_weights(
        self, model: PreTrainedModel, layers: Any, units: Mapping[str, Sequence[int]], config: Any
    ) -> dict[str, torch.Tensor]:
        """Return the state dict of a model, built from `config`, that keeps a part of `model`.

        The table of position biases moves to the first kept layer. In a stock class, whose layers have the same
        heads, it has the columns of those heads only.
        """
        weights, full = super().remaining_weights(model, layers, units, config), model.state_dict()
        prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
        for stack, structures in self.structure(model.config).stacks.items():
            first = next((name for name in layers if name.startswith(f"{stack}.")), None)
            if first is not None:
                name = f"{prefix}{stack}.block.0.layer.0.SelfAttention.{BIAS_TABLE}.weight"
                weights[name] = full[name]
                if not isinstance(config, self.pruned_config_class):
                    heads = structures[int(first.rpartition(".")[2])].heads["attention"]
                    columns = [heads[position] for position in units[f"{first}.attention"]]
                    weights[name] = full[name][:, columns]
        return weights
