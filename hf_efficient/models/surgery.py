"""Physical removal: a smaller copy of a model, with the layers and units that are kept."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from . import Family, LayerStructure, Structure, class_for, family_of
from .blocks import AttentionBlock
from .sentence_modules import copy_sentence_modules


def pruned_structure(
    family: Family, model: PreTrainedModel, layers: Collection[str], units: Mapping[str, Sequence[int]]
) -> Structure:
    """Return the structure of `model` when only these layers and units are kept; see `extract_submodel`."""
    structure = family.structure(model.config)
    stacks = {}
    for stack, modules in family.stacks(model).items():
        kept_layers = []
        for index, layer in enumerate(modules):
            name = f"{stack}.{index}"
            if name not in layers:
                continue
            current = structure.stacks[stack][index]
            heads, neurons = {}, {}
            for block in family.layer_blocks(name, layer):
                short_name, keep = block.name.rpartition(".")[2], units[block.name]
                if isinstance(block, AttentionBlock):
                    heads[short_name] = tuple(current.heads[short_name][position] for position in keep)
                else:
                    neurons[short_name] = len(keep)
            kept_layers.append(LayerStructure(current.source, heads, neurons))
        stacks[stack] = tuple(kept_layers)
    return Structure(stacks)


def extract_submodel(
    model: PreTrainedModel, layers: Collection[str], units: Mapping[str, Sequence[int]]
) -> PreTrainedModel:
    """Return a smaller copy of `model`; `model` itself is not changed.

    | argument | meaning |
    | --- | --- |
    | layers | names of the kept layers |
    | units | for each block the positions of the kept units |

    The result has a stock class where one can hold its shape, and a pruned class of the family otherwise.

    Raises UnsupportedModelError if the architecture of `model` or its task head is not supported.
    """
    family = family_of(model)
    structure = pruned_structure(family, model, layers, units)
    config = family.config_for(model.config, structure)

    dtype = next(model.parameters()).dtype
    with torch.random.fork_rng(devices=[]), model.device:
        student = class_for(model, config)._from_config(
            config, dtype=dtype, attn_implementation=model.config._attn_implementation
        )
    _untie(student, model)
    student.load_state_dict(family.remaining_weights(model, layers, units, config))
    if model.can_generate():
        student.generation_config = copy.deepcopy(model.generation_config)
    copy_sentence_modules(model, student)
    return student.to(model.device).train(model.training)


def _untie(student: PreTrainedModel, model: PreTrainedModel) -> None:
    """Give `student` separate weights where its config ties two weights that are not tied in `model`."""
    for name in student.all_tied_weights_keys.keys() - model.all_tied_weights_keys.keys():
        module, _, short_name = name.rpartition(".")
        separate = torch.empty_like(student.get_parameter(name))
        student.get_submodule(module).register_parameter(short_name, nn.Parameter(separate))
        del student.all_tied_weights_keys[name]
