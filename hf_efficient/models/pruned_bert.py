"""The BERT family: where its blocks are, and its classes when heads and neurons differ by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
)

from .structure import AttentionBlock, Block, Family, FeedForwardBlock, LayerStructure, Structure

_KEYS_OF_THE_PRUNED = ("architectures", "auto_map", "model_type", "structure", "transformers_version")


class PrunedBertConfig(BertConfig):
    """A `BertConfig` whose `structure` (the JSON form of `Structure`) says what is left of every layer."""

    model_type = "pruned_bert"

    structure: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, with the map by which every Auto class finds the code beside the weights."""
        return {**super().to_dict(), "auto_map": dict(AUTO_MAP)}


class PrunedBertModel(BertModel):
    """`BertModel` with uneven layers."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModel"

    def __init__(self, config: PrunedBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        BERT.shape(self, BERT.structure(config))


class PrunedBertForMaskedLM(BertForMaskedLM):
    """`BertForMaskedLM` with uneven layers."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForMaskedLM"

    def __init__(self, config: PrunedBertConfig) -> None:
        super().__init__(config)
        BERT.shape(self, BERT.structure(config))


class PrunedBertForSequenceClassification(BertForSequenceClassification):
    """`BertForSequenceClassification` with uneven layers."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: PrunedBertConfig) -> None:
        super().__init__(config)
        BERT.shape(self, BERT.structure(config))


class PrunedBertForTokenClassification(BertForTokenClassification):
    """`BertForTokenClassification` with uneven layers."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForTokenClassification"

    def __init__(self, config: PrunedBertConfig) -> None:
        super().__init__(config)
        BERT.shape(self, BERT.structure(config))


class PrunedBertForQuestionAnswering(BertForQuestionAnswering):
    """`BertForQuestionAnswering` with uneven layers."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForQuestionAnswering"

    def __init__(self, config: PrunedBertConfig) -> None:
        super().__init__(config)
        BERT.shape(self, BERT.structure(config))


class PrunedBertForMultipleChoice(BertForMultipleChoice):
    """`BertForMultipleChoice` with uneven layers."""

    config_class = PrunedBertConfig
    _auto_class = "AutoModelForMultipleChoice"

    def __init__(self, config: PrunedBertConfig) -> None:
        super().__init__(config)
        BERT.shape(self, BERT.structure(config))


class BertFamily(Family):
    """BERT: one stack of encoder layers, each an attention block and a feed-forward block."""

    model_type = "bert"
    config_class = BertConfig
    pruned_config_class = PrunedBertConfig
    pruned_classes: ClassVar = {
        BertModel: PrunedBertModel,
        BertForMaskedLM: PrunedBertForMaskedLM,
        BertForSequenceClassification: PrunedBertForSequenceClassification,
        BertForTokenClassification: PrunedBertForTokenClassification,
        BertForQuestionAnswering: PrunedBertForQuestionAnswering,
        BertForMultipleChoice: PrunedBertForMultipleChoice,
    }

    def stacks(self, model: PreTrainedModel) -> Mapping[str, nn.ModuleList]:
        return {"encoder": model.base_model.encoder.layer}

    def layer_blocks(self, name: str, layer: Any) -> tuple[Block, ...]:
        attention = layer.attention
        return (
            AttentionBlock(
                name=f"{name}.attention",
                layer=name,
                owner=attention,
                compute="self",
                inputs=("query", "key", "value"),
                reader=attention.output,
                read="dense",
                unit_size=getattr(attention.self, "attention_head_size", 1),
            ),
            FeedForwardBlock(
                name=f"{name}.feed_forward",
                layer=name,
                owner=layer,
                compute="intermediate",
                inputs=("dense",),
                reader=layer.output,
                read="dense",
            ),
        )

    def full_structure(self, config: BertConfig) -> Structure:
        heads = tuple(range(config.num_attention_heads))
        return Structure(
            {
                "encoder": tuple(
                    LayerStructure(index, {"attention": heads}, {"feed_forward": config.intermediate_size})
                    for index in range(config.num_hidden_layers)
                )
            }
        )

    def stock_config(self, config: BertConfig, structure: Structure) -> BertConfig | None:
        layers = structure.stacks["encoder"]
        heads = {layer.heads["attention"] for layer in layers}
        widths = {layer.neurons["feed_forward"] for layer in layers}
        if heads - {tuple(range(config.num_attention_heads))} or len(widths) > 1 or 0 in widths:
            return None
        fields = {key: value for key, value in config.to_dict().items() if key not in _KEYS_OF_THE_PRUNED}
        fields["num_hidden_layers"] = len(layers)
        fields["intermediate_size"] = widths.pop() if widths else config.intermediate_size
        return BertConfig(**fields)

    def pruned_config(self, config: BertConfig, structure: Structure) -> PrunedBertConfig:
        fields = {key: value for key, value in config.to_dict().items() if key not in _KEYS_OF_THE_PRUNED}
        fields["num_hidden_layers"] = len(structure.stacks["encoder"])
        return PrunedBertConfig(**fields, structure=structure.to_dict())


BERT = BertFamily()

AUTO_MAP = {
    "AutoConfig": f"pruned_bert.{PrunedBertConfig.__name__}",
    **{cls._auto_class: f"pruned_bert.{cls.__name__}" for cls in BERT.pruned_classes.values()},
}
