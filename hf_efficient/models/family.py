"""The base class of all families of architectures, and the mixins of their pruned configs and models."""

from __future__ import annotations

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .blocks import Block
from .codebook import install_codebooks
from .config_checks import (
    MAX_HEADS,
    MAX_LAYERS,
    check_codebooks,
    check_int8,
    check_layer_sources,
    check_sizes,
    check_structure,
)
from .int8 import install_int8
from .structure import Structure

# Fields that a pruned config has and the stock config of its family has not, or has with another value.
_FIELDS_OF_PRUNED_CONFIG = (
    "architectures",
    "auto_map",
    "codebooks",
    "int8",
    "layer_sources",
    "model_type",
    "structure",
    "transformers_version",
)
# The Auto class of a model class by how its name ends; of other task heads it is "AutoModel" and the task.
_AUTO_CLASSES = {
    "EncoderModel": "AutoModelForTextEncoding",
    "MTModel": "AutoModelForSeq2SeqLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "Model": "AutoModel",
}


class Family(ABC):
    """Where the blocks of an architecture are, and which classes hold a pruned model of it.

    To add one: a module in this folder with a subclass, its config and its model classes, and an entry in `FAMILIES`.
    """

    model_type: str
    config_class: type[PretrainedConfig]
    pruned_config_class: type[PretrainedConfig]
    pruned_classes: ClassVar[Mapping[type[PreTrainedModel], type[PreTrainedModel]]]
    # Whether positions are counted from the one after the padding id, so that a part of their table is unused.
    positions_follow_padding: ClassVar[bool] = False
    # Names of tables that are not quantized, since their weights are added to attention scores or read as they are.
    float_tables: ClassVar[tuple[str, ...]] = ("relative_attention_bias",)
    # Whether the classes of Transformers can be built and run with no layer at all.
    runs_without_layers: ClassVar[bool] = True
    # Why `attention_weight` is refused, where attention scores are not the products of queries and keys.
    attention_scores_differ: ClassVar[str | None] = None

    def __init__(self) -> None:
        self.pruned_config_class.family = self

    @abstractmethod
    def stacks(self, model: PreTrainedModel) -> Mapping[str, nn.ModuleList]:
        """Return the stacks of layers of `model`, by name."""

    @abstractmethod
    def layer_blocks(self, name: str, layer: Any) -> tuple[Block, ...]:
        """Return the blocks of the layer called `name` ("encoder.3")."""

    @abstractmethod
    def full_structure(self, config: PretrainedConfig) -> Structure:
        """Return the structure of the stock network that `config` describes."""

    @abstractmethod
    def stock_config(self, config: PretrainedConfig, structure: Structure) -> PretrainedConfig | None:
        """Return the stock config that can hold `structure`, or None if no stock class can."""

    @abstractmethod
    def fields_with_layers(self, config: PretrainedConfig, structure: Structure) -> dict[str, Any]:
        """Return the fields that the stock config takes, those of `config` with the layers of `structure`."""

    def pruned_config(self, config: PretrainedConfig, structure: Structure) -> PretrainedConfig:
        """Return the config of the pruned class that holds `structure`."""
        return self.pruned_config_class(**self.fields_with_layers(config, structure), structure=structure.to_dict())

    @property
    def size_limits(self) -> dict[str, int]:
        """The largest values of those fields of a config that say how much there is to build."""
        return {"num_hidden_layers": MAX_LAYERS, "num_attention_heads": MAX_HEADS}

    @property
    def auto_map(self) -> dict[str, str]:
        """The class that each Auto class loads from the code next to the weights, as `config.json` names it."""
        classes: dict[str, type] = {"AutoConfig": self.pruned_config_class}
        classes |= {str(pruned._auto_class): pruned for pruned in self.pruned_classes.values()}
        return {auto: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for auto, cls in classes.items()}

    def structure(self, config: PretrainedConfig) -> Structure:
        """Return the structure of the network, pruned or not, that `config` describes.

        Raises ValueError if there is no such network.
        """
        check_sizes(config, self.size_limits)
        full = self.full_structure(config)
        if isinstance(config, self.pruned_config_class):
            check_structure(config.structure, full)
            stacks = {stack: config.structure[stack] for stack in full.stacks if stack in config.structure}
            return Structure.from_dict(stacks)
        layer_sources = getattr(config, "layer_sources", {})
        check_layer_sources(layer_sources, full)
        return Structure(
            {
                stack: tuple(
                    replace(layer, source=source)
                    for layer, source in zip(layers, layer_sources.get(stack, range(len(layers))), strict=True)
                )
                for stack, layers in full.stacks.items()
            }
        )

    def repetitions(self, config: PretrainedConfig) -> int:
        """Return how many times a forward pass runs each layer."""
        return 1

    def layers(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """Return every layer of `model` by its name."""
        return {
            f"{stack}.{index}": layer
            for stack, layers in self.stacks(model).items()
            for index, layer in enumerate(layers)
        }

    def blocks(self, model: PreTrainedModel) -> dict[str, Block]:
        """Return every block of `model` by its name, in the order of the layers."""
        return {
            block.name: block for name, layer in self.layers(model).items() for block in self.layer_blocks(name, layer)
        }

    def config_for(self, config: PretrainedConfig, structure: Structure) -> PretrainedConfig:
        """Return the config that holds `structure`: a stock config where possible, a pruned config otherwise.

        A stock config gets one more field, `layer_sources`, if its layers are not the first ones of the unpruned
        network.
        """
        stock = self.stock_config(config, structure)
        if stock is None:
            return self.pruned_config(config, structure)
        layer_sources = {stack: [layer.source for layer in layers] for stack, layers in structure.stacks.items()}
        if any(sources != list(range(len(sources))) for sources in layer_sources.values()):
            stock.layer_sources = layer_sources
        return stock

    def class_for(self, model_class: type[PreTrainedModel], config: PretrainedConfig) -> type[PreTrainedModel]:
        """Return the class with the task head of `model_class` that is built from `config`.

        Raises TypeError if the family has no such task head.
        """
        stock = next((s for s, p in self.pruned_classes.items() if model_class in (s, p)), None)
        if stock is None:
            supported = ", ".join(cls.__name__ for cls in self.pruned_classes)
            raise TypeError(f"{model_class.__name__} cannot be pruned: use one of {supported}")
        return self.pruned_classes[stock] if isinstance(config, self.pruned_config_class) else stock

    def shape(self, model: PreTrainedModel, structure: Structure) -> None:
        """Narrow a newly built `model`, which has as many layers as `structure`, to its widths, in place.

        Raises ValueError if `structure` lacks a stack of `model`.
        """
        for stack, layers in self.stacks(model).items():
            if stack not in structure.stacks:
                raise ValueError(f"the config of the model is damaged: its structure has no {stack}")
            for index, (layer, kept) in enumerate(zip(layers, structure.stacks[stack], strict=True)):
                for block in self.layer_blocks(f"{stack}.{index}", layer):
                    short_name = block.name.rpartition(".")[2]
                    if short_name in kept.heads:
                        block.narrow(kept.heads[short_name])
                    else:
                        block.narrow(range(kept.neurons[short_name]))

    def remaining_weights(
        self,
        model: PreTrainedModel,
        layers: Collection[str],
        units: Mapping[str, Sequence[int]],
        config: PretrainedConfig,
    ) -> dict[str, torch.Tensor]:
        """Return the state dict of a model, built from `config`, that keeps a part of `model`.

        | argument | meaning |
        | --- | --- |
        | layers | names of the kept layers |
        | units | for each block the positions of the kept units |
        """
        narrowed = copy.deepcopy(model)
        for name, block in self.blocks(narrowed).items():
            if block.layer in layers:
                block.narrow(units[name])
        for stack, modules in self.stacks(narrowed).items():
            kept = [module for index, module in enumerate(modules) if f"{stack}.{index}" in layers]
            _replace(narrowed, modules, nn.ModuleList(kept))
        return narrowed.state_dict()


class PrunedConfig:
    """Mixin of the pruned config of a family, in front of its stock config. The subclass declares three JSON fields.

    | field | meaning |
    | --- | --- |
    | structure | `Structure.to_dict()` of the model |
    | codebooks | the modules whose weights are stored as codebooks, as `install_codebooks` takes them |
    | int8 | the modules with 8-bit weights, as `install_int8` takes them |
    """

    family: ClassVar[Family]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, with the map by which every Auto class finds the code next to the weights."""
        return {**super().to_dict(), "auto_map": self.family.auto_map}  # type: ignore[misc]


class PrunedModel(PreTrainedModel):
    """Mixin in front of a stock model class: builds it with structure, codebooks and 8-bit modules of its config.

    Raises ValueError if the config describes no such model.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        structure = config.family.structure(config)
        super().__init__(config, *args, **kwargs)
        config.family.shape(self, structure)
        if config.codebooks is not None:
            check_codebooks(self.base_model, config.codebooks)
            install_codebooks(self.base_model, config.codebooks)
        if config.int8 is not None:
            check_int8(self.base_model, config.int8)
            install_int8(self.base_model, config.int8)


def build_pruned_classes(
    config_class: type[PretrainedConfig], *stock_classes: type[PreTrainedModel]
) -> dict[type[PreTrainedModel], type[PreTrainedModel]]:
    """Return by stock class the class that holds a pruned model, built from `config_class`.

    The classes become attributes of the module of `config_class`, where the Auto classes find them.
    """
    module, classes = config_class.__module__, {}
    for stock in stock_classes:
        ending = next((ending for ending in _AUTO_CLASSES if stock.__name__.endswith(ending)), None)
        fields = {
            "__module__": module,
            "__doc__": f"`{stock.__name__}` with layers of different widths.",
            "config_class": config_class,
            "_auto_class": _AUTO_CLASSES[ending] if ending else f"AutoModelFor{stock.__name__.partition('For')[2]}",
        }
        pruned = classes[stock] = type(f"Pruned{stock.__name__}", (PrunedModel, stock), fields)
        setattr(sys.modules[module], pruned.__name__, pruned)
    return classes


def stock_fields(config: PretrainedConfig) -> dict[str, Any]:
    """Return the fields of `config` that the stock config of its family takes."""
    return {key: value for key, value in config.to_dict().items() if key not in _FIELDS_OF_PRUNED_CONFIG}


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in model.modules():
        for name, child in module.named_children():
            if child is old:
                setattr(module, name, new)
                return
