"""What is left of a pruned network, as data, and the one code path that gives a network that shape."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .codebook import install_codebooks

_KEYS_OF_THE_PRUNED = (
    "architectures",
    "auto_map",
    "codebooks",
    "layer_sources",
    "model_type",
    "structure",
    "transformers_version",
)


@dataclass(frozen=True)
class LayerStructure:
    """What is left of one layer.

    `source` is the layer's index in the unpruned network, `heads` holds the kept head indices of each attention block
    and `neurons` the width of each feed-forward block, both by the block's name within the layer. Head indices count
    in the unpruned network; neurons have no identity, so their number is enough.
    """

    source: int
    heads: Mapping[str, tuple[int, ...]]
    neurons: Mapping[str, int]


@dataclass(frozen=True)
class Structure:
    """The shape of a network: for each stack of layers ("encoder", "decoder"), what is left of every layer."""

    stacks: Mapping[str, tuple[LayerStructure, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return the form that `config.json` holds."""
        return {
            stack: [
                {
                    "source": layer.source,
                    "heads": {name: list(heads) for name, heads in layer.heads.items()},
                    "neurons": dict(layer.neurons),
                }
                for layer in layers
            ]
            for stack, layers in self.stacks.items()
        }

    @classmethod
    def from_dict(cls, stacks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Structure:
        """Return the structure that `to_dict` wrote."""
        return cls(
            {
                stack: tuple(
                    LayerStructure(
                        source=layer["source"],
                        heads={name: tuple(heads) for name, heads in layer["heads"].items()},
                        neurons=dict(layer["neurons"]),
                    )
                    for layer in layers
                )
                for stack, layers in stacks.items()
            }
        )


class BiasOnly(nn.Module):
    """Stands for a Linear that has lost all its inputs: what is left of it is its bias, or zero where it has none.

    | tensor | shape |
    | --- | --- |
    | input | (..., any), of which only the leading dimensions are read |
    | output | (..., out_features) |
    """

    def __init__(
        self,
        out_features: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_features = 0
        self.out_features = out_features
        zeros = torch.zeros(out_features, device=device, dtype=dtype) if bias else None
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None if zeros is None else nn.Parameter(zeros))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the bias at every position of `hidden_states`."""
        if self.bias is None:
            return hidden_states.new_zeros(*hidden_states.shape[:-1], self.out_features)
        return self.bias.expand(*hidden_states.shape[:-1], -1)


class EmptyBlock(nn.Module):
    """Stands for the part of a block that computes its units when none is left; hands the hidden states through.

    Where the same part also reads the units, `reading` is the name of what is left of that Linear, and the module.
    """

    def __init__(self, returns_attention: bool, reading: tuple[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.returns_attention = returns_attention
        if reading is not None:
            self.add_module(*reading)

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, None]:
        """Return `hidden_states`, as attention does, with no attention weights beside them if that is expected."""
        for read in self.children():
            hidden_states = read(hidden_states)
        return (hidden_states, None) if self.returns_attention else hidden_states


def narrow_linear(linear: nn.Linear, keep: torch.Tensor, dim: int) -> nn.Linear:
    """Return a Linear with the rows (`dim=0`, its outputs) or columns (`dim=1`, its inputs) `keep` of `linear`."""
    weight = linear.weight.detach().index_select(dim, keep.to(linear.weight.device))
    narrowed = nn.Linear(
        weight.shape[1], weight.shape[0], bias=linear.bias is not None, device="meta", dtype=weight.dtype
    )
    narrowed.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        bias = linear.bias.detach()
        bias = bias.index_select(0, keep.to(bias.device)) if dim == 0 else bias
        narrowed.bias = nn.Parameter(bias, requires_grad=linear.bias.requires_grad)
    return narrowed.train(linear.training)


@dataclass(frozen=True)
class Block:
    """A view of one block whose units can be removed: the units are computed by `inputs` and read by `output`.

    | field | meaning |
    | --- | --- |
    | name | the key of the block in scores and selections, "encoder.3.attention" |
    | layer | the layer that it belongs to, "encoder.3" |
    | owner, compute | `getattr(owner, compute)` is the module that turns hidden states into the units |
    | inputs | names, in that module, of the Linears whose output rows belong to the units |
    | reader, read | `getattr(reader, read)` is the Linear whose input columns belong to the units |
    | unit_size | rows of an input Linear a unit owns: the head size, or 1 for a neuron |
    | norm | the module that is given the sum of what the block writes and its residual; None: `owner` returns it |
    """

    name: str
    layer: str
    owner: nn.Module
    compute: str
    inputs: tuple[str, ...]
    reader: nn.Module
    read: str
    unit_size: int = 1
    norm: nn.Module | None = None
    returns_attention: ClassVar[bool] = False

    @property
    def output(self) -> nn.Linear | BiasOnly:
        """The module that reads the units."""
        module: nn.Linear | BiasOnly = getattr(self.reader, self.read)
        return module

    @property
    def input_linears(self) -> tuple[nn.Linear, ...]:
        """The Linears that compute the units; none when no unit is left."""
        module = getattr(self.owner, self.compute)
        return () if isinstance(module, EmptyBlock) else tuple(getattr(module, name) for name in self.inputs)

    @property
    def units(self) -> int:
        """How many units the block has now."""
        return self.output.in_features // self.unit_size

    def rows(self, keep: Sequence[int]) -> torch.Tensor:
        """Return the rows of an input Linear that belong to the units `keep`, shape (len(keep) * unit_size,)."""
        units = torch.as_tensor(keep, dtype=torch.long)
        return (units[:, None] * self.unit_size + torch.arange(self.unit_size)).flatten()

    def narrow(self, keep: Sequence[int]) -> None:
        """Remove every unit but those at the positions `keep`, in place."""
        if len(keep) == self.units:
            return
        output: Any = self.output
        if keep:
            rows, module = self.rows(keep), getattr(self.owner, self.compute)
            for name in self.inputs:
                setattr(module, name, narrow_linear(getattr(module, name), rows, dim=0))
            setattr(self.reader, self.read, narrow_linear(output, rows, dim=1))
        else:
            rest = BiasOnly(output.out_features, bias=False)
            rest.bias = output.bias
            within = self.reader is getattr(self.owner, self.compute)
            setattr(self.reader, self.read, rest)
            setattr(
                self.owner, self.compute, EmptyBlock(self.returns_attention, (self.read, rest) if within else None)
            )


class AttentionBlock(Block):
    """Units are attention heads."""

    returns_attention = True


class FeedForwardBlock(Block):
    """Units are the neurons between the two Linears."""


class Family(ABC):
    """Where the blocks of an architecture are, and which classes hold it when it is pruned.

    To add one: a file in this folder with a subclass, its config and its model classes, and a line in `FAMILIES`.
    """

    model_type: str
    config_class: type[PreTrainedConfig]
    pruned_config_class: type[PreTrainedConfig]
    pruned_classes: ClassVar[Mapping[type[PreTrainedModel], type[PreTrainedModel]]]

    def __init__(self) -> None:
        self.pruned_config_class.family = self

    @abstractmethod
    def stacks(self, model: PreTrainedModel) -> Mapping[str, nn.ModuleList]:
        """Return the stacks of layers of `model`, by name."""

    @abstractmethod
    def layer_blocks(self, name: str, layer: Any) -> tuple[Block, ...]:
        """Return the blocks of the layer called `name` ("encoder.3")."""

    @abstractmethod
    def full_structure(self, config: PreTrainedConfig) -> Structure:
        """Return the structure of the stock network that `config` describes."""

    @abstractmethod
    def stock_config(self, config: PreTrainedConfig, structure: Structure) -> PreTrainedConfig | None:
        """Return the stock config that can hold `structure`, or None when no stock class can."""

    @abstractmethod
    def pruned_config(self, config: PreTrainedConfig, structure: Structure) -> PreTrainedConfig:
        """Return the config of the pruned class that holds `structure`."""

    @property
    def auto_map(self) -> dict[str, str]:
        """The class that each Auto class finds in the code beside the weights, as `config.json` names it."""
        classes: dict[str, type] = {"AutoConfig": self.pruned_config_class}
        classes |= {str(pruned._auto_class): pruned for pruned in self.pruned_classes.values()}
        return {auto: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for auto, cls in classes.items()}

    def structure(self, config: PreTrainedConfig) -> Structure:
        """Return the structure of the network, pruned or not, that `config` describes."""
        if isinstance(config, self.pruned_config_class):
            return Structure.from_dict(config.structure)
        whole, left = self.full_structure(config), getattr(config, "layer_sources", {})
        return Structure(
            {
                stack: tuple(
                    replace(layer, source=source)
                    for layer, source in zip(layers, left.get(stack, range(len(layers))), strict=True)
                )
                for stack, layers in whole.stacks.items()
            }
        )

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

    def config_for(self, config: PreTrainedConfig, structure: Structure) -> PreTrainedConfig:
        """Return the config that holds `structure`: a stock one where a stock class can, a pruned one otherwise.

        A stock one notes, beside the fields that it knows, as `layer_sources`, which layers are left.
        """
        stock = self.stock_config(config, structure)
        if stock is None:
            return self.pruned_config(config, structure)
        left = {stack: [layer.source for layer in layers] for stack, layers in structure.stacks.items()}
        if any(sources != list(range(len(sources))) for sources in left.values()):
            stock.layer_sources = left
        return stock

    def class_for(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> type[PreTrainedModel]:
        """Return the class with the task head of `model_class` that is built from `config`.

        Raises TypeError: the family has no such task head.
        """
        stock = next((s for s, p in self.pruned_classes.items() if model_class in (s, p)), None)
        if stock is None:
            known = ", ".join(cls.__name__ for cls in self.pruned_classes)
            raise TypeError(f"{model_class.__name__} cannot be pruned: use one of {known}")
        return self.pruned_classes[stock] if isinstance(config, self.pruned_config_class) else stock

    def shape(self, model: PreTrainedModel, structure: Structure) -> None:
        """Narrows a freshly built `model`, which has as many layers as `structure`, to its widths, in place."""
        for stack, layers in self.stacks(model).items():
            for index, (layer, left) in enumerate(zip(layers, structure.stacks[stack], strict=True)):
                for block in self.layer_blocks(f"{stack}.{index}", layer):
                    short = block.name.rpartition(".")[2]
                    block.narrow(left.heads[short] if short in left.heads else range(left.neurons[short]))

    def remaining_weights(
        self,
        model: PreTrainedModel,
        layers: Collection[str],
        units: Mapping[str, Sequence[int]],
        config: PreTrainedConfig,
    ) -> dict[str, torch.Tensor]:
        """Return the weights that a model built from `config` takes when only a part of `model` stays.

        | argument | meaning |
        | --- | --- |
        | layers | names of the layers that stay |
        | units | for each block the positions of the units that stay |
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
    """Mixin in front of a stock config, which declares two fields in JSON.

    | field | meaning |
    | --- | --- |
    | structure | the form of a `Structure` |
    | codebooks | of which modules the weights are indices into tables, as `install_codebooks` takes it |
    """

    family: ClassVar[Family]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, with the map by which every Auto class finds the code beside the weights."""
        return {**super().to_dict(), "auto_map": self.family.auto_map}  # type: ignore[misc]


class PrunedModel(PreTrainedModel):
    """Mixin in front of a stock class: builds it, and gives it the structure and codebooks that its config holds."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        config.family.shape(self, config.family.structure(config))
        install_codebooks(self.base_model, config.codebooks or {})


def stock_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the fields of `config` that the stock config of its family takes."""
    return {key: value for key, value in config.to_dict().items() if key not in _KEYS_OF_THE_PRUNED}


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in model.modules():
        for name, child in module.named_children():
            if child is old:
                setattr(module, name, new)
                return
