"""The pairs of layers of a student and its teacher that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from hf_efficient.distillation.layer_maps import LAYER_MAPS, Pairs, parse_layer_map, uniform
from hf_efficient.errors import UserError
from hf_efficient.models import family_of

LayerPair = tuple[str, str]  # names of a layer of the student and one of the teacher


def layer_sources(model: PreTrainedModel) -> dict[str, list[int]]:
    """Return, by stack, the index that each layer of `model` has in the unpruned network."""
    stacks = family_of(model).structure(model.config).stacks
    return {stack: [layer.source for layer in layers] for stack, layers in stacks.items()}


def map_layers(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    layer_map: str,
    original_sources: Mapping[str, Sequence[int]] | None = None,
) -> list[LayerPair]:
    """Return the names of the layers to compare, such as ("encoder.0", "encoder.1"), by stack.

    With "auto", a layer of a student that was pruned from the teacher is compared with the last layer of the teacher
    before the next kept one, so that the next layer gets the inputs that it was trained on. Other students are mapped
    as with "uniform".

    `original_sources` are the `layer_sources` of the student that explicit pairs refer to, before more of its layers
    were removed; None: those of `student`. Pairs of removed layers are left out.

    Raises UserError if the models have different stacks of layers, if the map names a layer that does not exist, or
    if all layers that it names are removed.
    """
    student_stacks, teacher_stacks = family_of(student).stacks(student), family_of(teacher).stacks(teacher)
    if student_stacks.keys() != teacher_stacks.keys():
        raise UserError(
            f"the student has the stacks {', '.join(student_stacks)} and the teacher {', '.join(teacher_stacks)}: "
            "their layers cannot be compared; use soft labels only, or a teacher of the same kind"
        )
    explicit = parse_layer_map(layer_map)
    if explicit is not None and explicit.keys() - {"", *student_stacks}:
        raise UserError(
            f"layer_map={layer_map!r} names a stack that does not exist: there are {', '.join(student_stacks)}"
        )
    names = []
    for stack in student_stacks:
        counts = len(student_stacks[stack]), len(teacher_stacks[stack])
        if explicit is not None:
            requested = [*explicit.get("", []), *explicit.get(stack, [])]
            sources = layer_sources(student)[stack]
            originals = sources if original_sources is None else original_sources[stack]
            pairs = _explicit_pairs(requested, layer_map, stack, counts[1], sources, originals)
        else:
            pairs_from_sources = _pairs_from_sources(student, teacher, stack) if layer_map == "auto" else None
            pairs = pairs_from_sources or (LAYER_MAPS[layer_map] or uniform)(*counts)
        names += [(f"{stack}.{student_layer}", f"{stack}.{teacher_layer}") for student_layer, teacher_layer in pairs]
    return names


def _explicit_pairs(
    requested: Pairs,
    layer_map: str,
    stack: str,
    teacher_layers: int,
    sources: Sequence[int],
    originals: Sequence[int],
) -> Pairs:
    """Return the `requested` pairs, which count the layers of sources `originals`, in terms of those of `sources`."""
    for pair in requested:
        if pair[0] >= len(originals) or pair[1] >= teacher_layers:
            raise UserError(
                f"layer_map={layer_map!r} pairs layers {pair[0]}:{pair[1]} of the {stack}, the student has "
                f"{len(originals)} layers and the teacher {teacher_layers}, counted from 0"
            )
    pairs = [
        (sources.index(originals[layer]), teacher_layer)
        for layer, teacher_layer in requested
        if originals[layer] in sources
    ]
    if requested and not pairs:
        raise UserError(
            f"layer_map={layer_map!r} names layers of the {stack} that are all pruned: name others, or auto, which "
            "maps the remaining layers"
        )
    return pairs


def is_pruned(model: PreTrainedModel) -> bool:
    """Whether the config of `model` tells that it was cut from a larger one."""
    return isinstance(model.config, family_of(model).pruned_config_class) or hasattr(model.config, "layer_sources")


def _pairs_from_sources(student: PreTrainedModel, teacher: PreTrainedModel, stack: str) -> Pairs | None:
    """Return the pairs of "auto"; None if the student is not known to be pruned from the teacher."""
    if family_of(student) is not family_of(teacher) or not is_pruned(student):
        return None
    student_sources, teacher_sources = layer_sources(student)[stack], layer_sources(teacher)[stack]
    if not set(student_sources) <= set(teacher_sources):
        return None
    bounds = [teacher_sources.index(source) for source in student_sources[1:]] + [len(teacher_sources)]
    return [(index, bound - 1) for index, bound in enumerate(bounds)]
