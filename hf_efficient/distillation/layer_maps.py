"""Which layer of the teacher each layer of the student learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.models import family_of

Pairs = list[tuple[int, int]]


def uniform(student: int, teacher: int) -> Pairs:
    """Return pairs (student's layer, teacher's layer) at even distances, the last with the last.

    Source: Jiao et al. 2020, "TinyBERT", section 4.2 (uniform strategy).
    """
    return [(index, -(-(index + 1) * teacher // student) - 1) for index in range(student)]


def last(student: int, teacher: int) -> Pairs:
    """Return pairs of the last layers of both.

    Source: Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression", section 3.2 (PKD-Last).
    """
    count = min(student, teacher)
    return [(student - count + index, teacher - count + index) for index in range(count)]


def skip(student: int, teacher: int) -> Pairs:
    """Return pairs with every k-th layer of the teacher; the last of the student is left to the soft labels.

    Source: Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression", section 3.2 (PKD-Skip).
    """
    every = max(1, teacher // student)
    return [(index, (index + 1) * every - 1) for index in range(min(student, teacher) - 1)] or [(0, every - 1)]


LAYER_MAPS: dict[str, Callable[[int, int], Pairs] | None] = {
    "auto": None,
    "uniform": uniform,
    "last": last,
    "skip": skip,
}


def parse_layer_map(layer_map: str) -> dict[str, Pairs] | None:
    """Return the explicit pairs of a layer map by stack, "" for every stack; None for a named map.

    Raises ValueError: the text is neither a name nor pairs.
    """
    if layer_map in LAYER_MAPS:
        return None
    pairs: dict[str, Pairs] = {}
    for part in layer_map.split(","):
        ours, _, theirs = part.strip().partition(":")
        stack, _, number = ours.rpartition(".")
        if not (number.isdigit() and theirs.isdigit()):
            raise UserError(
                f"layer_map={layer_map!r} is unknown: give one of {', '.join(LAYER_MAPS)}, or pairs student:teacher "
                "counted from 0, such as 0:1,1:3,2:5 (decoder.0:1 for one stack of layers)"
            )
        pairs.setdefault(stack, []).append((int(number), int(theirs)))
    return pairs


def layer_sources(model: PreTrainedModel) -> dict[str, list[int]]:
    """Return, by stack, the index that each layer of `model` has in the network that it was cut from."""
    stacks = family_of(model).structure(model.config).stacks
    return {stack: [layer.source for layer in layers] for stack, layers in stacks.items()}


def map_layers(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    layer_map: str,
    counted_in: Mapping[str, Sequence[int]] | None = None,
) -> list[tuple[str, str]]:
    """Return the names of the layers to compare, ("encoder.0", "encoder.1") and so on, by stack.

    With "auto", of a student that was cut from the teacher, a layer is compared with the last of the teacher's before
    the next one that was kept: the next layer goes on reading what it is used to. Otherwise it is "uniform".

    `counted_in` holds the `layer_sources` of the student that explicit pairs count in, before more of its layers went;
    None: those of `student`. Pairs of layers that are gone are left out.

    Raises ValueError: the models have other stacks of layers, the map names a layer that is not there, or none of
    those that it names is left.
    """
    ours, theirs = family_of(student).stacks(student), family_of(teacher).stacks(teacher)
    if ours.keys() != theirs.keys():
        raise UserError(
            f"the student has the stacks {', '.join(ours)} and the teacher {', '.join(theirs)}: what is inside them "
            "does not compare; learn from soft labels alone, or take a teacher of the same kind"
        )
    explicit = parse_layer_map(layer_map)
    if explicit is not None and explicit.keys() - {"", *ours}:
        raise UserError(f"layer_map={layer_map!r} names a stack that there is not: there are {', '.join(ours)}")
    named = []
    for stack in ours:
        counts = len(ours[stack]), len(theirs[stack])
        if explicit is not None:
            wanted = [*explicit.get("", []), *explicit.get(stack, [])]
            pairs = _explicit_pairs(wanted, layer_map, stack, counts, layer_sources(student)[stack], counted_in)
        else:
            known = _pairs_from_sources(student, teacher, stack) if layer_map == "auto" else None
            pairs = known or (LAYER_MAPS[layer_map] or uniform)(*counts)
        named += [(f"{stack}.{ours}", f"{stack}.{theirs}") for ours, theirs in pairs]
    return named


def _explicit_pairs(
    wanted: Pairs,
    layer_map: str,
    stack: str,
    counts: tuple[int, int],
    left: Sequence[int],
    counted_in: Mapping[str, Sequence[int]] | None,
) -> Pairs:
    """Return the pairs `wanted` in the numbers of the layers that are left, whose sources are `left`."""
    before = left if counted_in is None else counted_in[stack]
    for pair in wanted:
        if pair[0] >= len(before) or pair[1] >= counts[1]:
            raise UserError(
                f"layer_map={layer_map!r} pairs layers {pair[0]}:{pair[1]} of the {stack}, the student has "
                f"{len(before)} layers and the teacher {counts[1]}, counted from 0"
            )
    pairs = [(left.index(before[ours]), theirs) for ours, theirs in wanted if before[ours] in left]
    if wanted and not pairs:
        raise UserError(
            f"layer_map={layer_map!r} names layers of the {stack} that are all pruned: name others, or auto, which "
            "follows the layers that are left"
        )
    return pairs


def _pairs_from_sources(student: PreTrainedModel, teacher: PreTrainedModel, stack: str) -> Pairs | None:
    """Return the pairs of "auto"; None where it is not known that the student was cut from the teacher."""
    family = family_of(student)
    cut = isinstance(student.config, family.pruned_config_class) or hasattr(student.config, "layer_sources")
    if family is not family_of(teacher) or not cut:
        return None
    ours, theirs = layer_sources(student)[stack], layer_sources(teacher)[stack]
    if not set(ours) <= set(theirs):
        return None
    bounds = [theirs.index(source) for source in ours[1:]] + [len(theirs)]
    return [(index, bound - 1) for index, bound in enumerate(bounds)]
