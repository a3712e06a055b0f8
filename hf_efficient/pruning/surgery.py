"""Physical removal: from a model and a selection of what stays to a smaller model."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.models import Family, LayerStructure, Structure, family_of
from hf_efficient.models.structure import AttentionBlock
from hf_efficient.pruning.budget import Selection


def structure_after(family: Family, model: PreTrainedModel, selection: Selection) -> Structure:
    """Returns the structure that `model` has once all but `selection` is removed."""
    before = family.structure(model.config)
    stacks = {}
    for stack, layers in family.stacks(model).items():
        left = []
        for index, layer in enumerate(layers):
            name = f"{stack}.{index}"
            if name not in selection.layers:
                continue
            was = before.stacks[stack][index]
            heads, neurons = {}, {}
            for block in family.layer_blocks(name, layer):
                short, keep = block.name.rpartition(".")[2], selection.units[block.name]
                if isinstance(block, AttentionBlock):
                    heads[short] = tuple(was.heads[short][position] for position in keep)
                else:
                    neurons[short] = len(keep)
            left.append(LayerStructure(was.source, heads, neurons))
        stacks[stack] = tuple(left)
    return Structure(stacks)


def cut(model: PreTrainedModel, selection: Selection) -> PreTrainedModel:
    """Returns a smaller copy of `model` that keeps only `selection`; `model` itself stays as it is.

    The result has a stock class where one can hold its shape, and a pruned class of the family otherwise.

    Raises TypeError: the family of `model` is unknown, or has no class for its task head.
    """
    family = family_of(model)
    structure = structure_after(family, model, selection)
    config = family.config_for(model.config, structure)

    dtype = next(model.parameters()).dtype
    with torch.random.fork_rng(devices=[]), model.device:
        student = family.class_for(type(model), config)._from_config(
            config, dtype=dtype, attn_implementation=model.config._attn_implementation
        )
    _untie(student, model)
    student.load_state_dict(family.left_weights(model, selection.layers, selection.units, config))
    if model.can_generate():
        student.generation_config = copy.deepcopy(model.generation_config)
    return student.to(model.device).train(model.training)


def _untie(student: PreTrainedModel, model: PreTrainedModel) -> None:
    """Gives `student` weights of their own where its config ties them, but `model` was loaded with two that differ."""
    for name in student.all_tied_weights_keys.keys() - model.all_tied_weights_keys.keys():
        module, _, short = name.rpartition(".")
        own = torch.empty_like(student.get_parameter(name))
        student.get_submodule(module).register_parameter(short, nn.Parameter(own))
        del student.all_tied_weights_keys[name]
