"""Physical removal: from a model and what stays of it to a smaller model."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from . import Family, LayerStructure, Structure, family_of
from .structure import AttentionBlock


def pruned_structure(
    family: Family, model: PreTrainedModel, layers: Collection[str], units: Mapping[str, Sequence[int]]
) -> Structure:
    """Return the structure that `model` has once all but these layers and units is removed."""
    before = family.structure(model.config)
    stacks = {}
    for stack, modules in family.stacks(model).items():
        left = []
        for index, layer in enumerate(modules):
            name = f"{stack}.{index}"
            if name not in layers:
                continue
            was = before.stacks[stack][index]
            heads, neurons = {}, {}
            for block in family.layer_blocks(name, layer):
                short, keep = block.name.rpartition(".")[2], units[block.name]
                if isinstance(block, AttentionBlock):
                    heads[short] = tuple(was.heads[short][position] for position in keep)
                else:
                    neurons[short] = len(keep)
            left.append(LayerStructure(was.source, heads, neurons))
        stacks[stack] = tuple(left)
    return Structure(stacks)


def extract_submodel(
    model: PreTrainedModel, layers: Collection[str], units: Mapping[str, Sequence[int]]
) -> PreTrainedModel:
    """Return a smaller copy of `model`; `model` itself stays as it is.

    | argument | meaning |
    | --- | --- |
    | layers | names of the layers that stay |
    | units | for each block the positions of the units that stay |

    The result has a stock class where one can hold its shape, and a pruned class of the family otherwise.

    Raises TypeError: the family of `model` is unknown, or has no class for its task head.
    """
    family = family_of(model)
    structure = pruned_structure(family, model, layers, units)
    config = family.config_for(model.config, structure)

    dtype = next(model.parameters()).dtype
    with torch.random.fork_rng(devices=[]), model.device:
        student = family.class_for(type(model), config)._from_config(
            config, dtype=dtype, attn_implementation=model.config._attn_implementation
        )
    _untie(student, model)
    student.load_state_dict(family.remaining_weights(model, layers, units, config))
    if model.can_generate():
        student.generation_config = copy.deepcopy(model.generation_config)
    return student.to(model.device).train(model.training)


def _untie(student: PreTrainedModel, model: PreTrainedModel) -> None:
    """Give `student` weights of their own where its config ties them, but `model` was loaded with two that differ."""
    for name in student.all_tied_weights_keys.keys() - model.all_tied_weights_keys.keys():
        module, _, short = name.rpartition(".")
        own = torch.empty_like(student.get_parameter(name))
        student.get_submodule(module).register_parameter(short, nn.Parameter(own))
        del student.all_tied_weights_keys[name]
