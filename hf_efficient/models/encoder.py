"""Families with one stack of encoder layers, each with an attention block and a feed-forward block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .blocks import AttentionBlock, Block, FeedForwardBlock
from .config_checks import MAX_NEURONS
from .family import Family, stock_fields
from .structure import LayerStructure, Structure


class EncoderFamily(Family):
    """A family with one stack of encoder layers, whose modules have the names that they have in BERT.

    | attribute | meaning |
    | --- | --- |
    | width_field | field of the config with the number of neurons of a feed-forward block |
    | fields_per_layer | fields of the config that hold a list with a value for each layer |
    """

    width_field: ClassVar[str] = "intermediate_size"
    fields_per_layer: ClassVar[tuple[str, ...]] = ()

    @property
    def size_limits(self) -> dict[str, int]:
        """The largest values of those fields of a config that say how much there is to build."""
        return {**super().size_limits, self.width_field: MAX_NEURONS}

    def stacks(self, model: PreTrainedModel) -> Mapping[str, nn.ModuleList]:
        """Return the stack under the name "encoder"."""
        return {"encoder": model.base_model.encoder.layer}

    def layer_blocks(self, name: str, layer: Any) -> tuple[Block, ...]:
        """Return the blocks "attention" and "feed_forward" of the layer called `name`."""
        feed_forward = FeedForwardBlock(
            name=f"{name}.feed_forward",
            layer=name,
            owner=layer,
            compute="intermediate",
            inputs=("dense",),
            reader=layer.output,
            read="dense",
            norm=layer.output.LayerNorm,
        )
        return self.attention_block(name, layer), feed_forward

    def attention_block(self, name: str, layer: Any) -> AttentionBlock:
        """Return the block "attention" of the layer called `name`."""
        attention = layer.attention
        return AttentionBlock(
            name=f"{name}.attention",
            layer=name,
            owner=attention,
            compute="self",
            inputs=("query", "key", "value"),
            reader=attention.output,
            read="dense",
            unit_size=getattr(attention.self, "attention_head_size", 1),
            norm=attention.output.LayerNorm,
        )

    def full_structure(self, config: Any) -> Structure:
        """Return the structure with all heads and neurons in every layer."""
        heads = tuple(range(config.num_attention_heads))
        width = getattr(config, self.width_field)
        return Structure(
            {
                "encoder": tuple(
                    LayerStructure(index, {"attention": heads}, {"feed_forward": width})
                    for index in range(config.num_hidden_layers)
                )
            }
        )

    def stock_config(self, config: Any, structure: Structure) -> PretrainedConfig | None:
        """Return a stock config if all layers keep every head and the same number of neurons; otherwise None."""
        layers = structure.stacks["encoder"]
        heads = {layer.heads["attention"] for layer in layers}
        widths = {layer.neurons["feed_forward"] for layer in layers}
        if heads - {tuple(range(config.num_attention_heads))} or len(widths) > 1 or 0 in widths:
            return None
        fields = self.fields_with_layers(config, structure)
        fields[self.width_field] = widths.pop() if widths else getattr(config, self.width_field)
        return self.config_class(**fields)

    def fields_with_layers(self, config: PretrainedConfig, structure: Structure) -> dict[str, Any]:
        """Return the fields that the stock config takes, those of `config` with the layers of `structure`."""
        kept = [layer.source for layer in structure.stacks["encoder"]]
        depth = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        fields = {**stock_fields(config), depth: len(kept)}
        if self.fields_per_layer:
            index = {layer.source: number for number, layer in enumerate(self.structure(config).stacks["encoder"])}
            for name in self.fields_per_layer:
                fields[name] = [getattr(config, name)[index[source]] for source in kept]
        return fields
