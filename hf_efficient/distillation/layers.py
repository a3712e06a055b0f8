"""Which layer of the student learns from which of the teacher, and students that begin as layers of their teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedConfig, PreTrainedModel

from hf_efficient.models import family_of, is_quantized
from hf_efficient.models.structure import stock_fields
from hf_efficient.models.surgery import keep_only

Pairs = list[tuple[int, int]]


def uniform(student: int, teacher: int) -> Pairs:
    """Returns pairs (student's layer, teacher's layer) at even distances, the last with the last.

    Source: Jiao et al. 2020, "TinyBERT", section 4.2 (uniform strategy).
    """
    return [(index, -(-(index + 1) * teacher // student) - 1) for index in range(student)]


def last(student: int, teacher: int) -> Pairs:
    """Returns pairs of the last layers of both.

    Source: Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression", section 3.2 (PKD-Last).
    """
    count = min(student, teacher)
    return [(student - count + index, teacher - count + index) for index in range(count)]


def skip(student: int, teacher: int) -> Pairs:
    """Returns pairs with every k-th layer of the teacher; the last of the student is left to the soft labels.

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
    """Returns the explicit pairs of a layer map by stack, "" for every stack; None for a named map.

    Raises ValueError: the text is neither a name nor pairs.
    """
    if layer_map in LAYER_MAPS:
        return None
    pairs: dict[str, Pairs] = {}
    for part in layer_map.split(","):
        ours, _, theirs = part.strip().partition(":")
        stack, _, number = ours.rpartition(".")
        if not (number.isdigit() and theirs.isdigit()):
            raise ValueError(
                f"layer_map={layer_map!r} is unknown: give one of {', '.join(LAYER_MAPS)}, or pairs student:teacher "
                "counted from 0, such as 0:1,1:3,2:5 (decoder.0:1 for one stack of layers)"
            )
        pairs.setdefault(stack, []).append((int(number), int(theirs)))
    return pairs


def layer_sources(model: PreTrainedModel) -> dict[str, list[int]]:
    """Returns, by stack, the index that each layer of `model` has in the network that it was cut from."""
    stacks = family_of(model).structure(model.config).stacks
    return {stack: [layer.source for layer in layers] for stack, layers in stacks.items()}


def map_layers(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    layer_map: str,
    counted_in: Mapping[str, Sequence[int]] | None = None,
) -> list[tuple[str, str]]:
    """Returns the names of the layers to compare, ("encoder.0", "encoder.1") and so on, by stack.

    With "auto", of a student that was cut from the teacher, a layer is compared with the last of the teacher's before
    the next one that was kept: the next layer goes on reading what it is used to. Otherwise it is "uniform".

    `counted_in` holds the `layer_sources` of the student that explicit pairs count in, before more of its layers went;
    None: those of `student`. Pairs of layers that are gone are left out.

    Raises ValueError: the models have other stacks of layers, the map names a layer that is not there, or none of
    those that it names is left.
    """
    ours, theirs = family_of(student).stacks(student), family_of(teacher).stacks(teacher)
    if ours.keys() != theirs.keys():
        raise ValueError(
            f"the student has the stacks {', '.join(ours)} and the teacher {', '.join(theirs)}: what is inside them "
            "does not compare; learn from soft labels alone, or take a teacher of the same kind"
        )
    explicit = parse_layer_map(layer_map)
    if explicit is not None and explicit.keys() - {"", *ours}:
        raise ValueError(f"layer_map={layer_map!r} names a stack that there is not: there are {', '.join(ours)}")
    named = []
    for stack in ours:
        counts = len(ours[stack]), len(theirs[stack])
        if explicit is not None:
            wanted = [*explicit.get("", []), *explicit.get(stack, [])]
            pairs = _explicit(wanted, layer_map, stack, counts, layer_sources(student)[stack], counted_in)
        else:
            known = _from_sources(student, teacher, stack) if layer_map == "auto" else None
            pairs = known or (LAYER_MAPS[layer_map] or uniform)(*counts)
        named += [(f"{stack}.{ours}", f"{stack}.{theirs}") for ours, theirs in pairs]
    return named


def _explicit(
    wanted: Pairs,
    layer_map: str,
    stack: str,
    counts: tuple[int, int],
    left: Sequence[int],
    counted_in: Mapping[str, Sequence[int]] | None,
) -> Pairs:
    """Returns the pairs `wanted` in the numbers of the layers that are left, whose sources are `left`."""
    before = left if counted_in is None else counted_in[stack]
    for pair in wanted:
        if pair[0] >= len(before) or pair[1] >= counts[1]:
            raise ValueError(
                f"layer_map={layer_map!r} pairs layers {pair[0]}:{pair[1]} of the {stack}, the student has "
                f"{len(before)} layers and the teacher {counts[1]}, counted from 0"
            )
    pairs = [(left.index(before[ours]), theirs) for ours, theirs in wanted if before[ours] in left]
    if wanted and not pairs:
        raise ValueError(
            f"layer_map={layer_map!r} names layers of the {stack} that are all pruned: name others, or auto, which "
            "follows the layers that are left"
        )
    return pairs


def _from_sources(student: PreTrainedModel, teacher: PreTrainedModel, stack: str) -> Pairs | None:
    """Returns the pairs of "auto"; None where it is not known that the student was cut from the teacher."""
    family = family_of(student)
    cut = isinstance(student.config, family.pruned_config_class) or hasattr(student.config, "layer_sources")
    if family is not family_of(teacher) or not cut:
        return None
    ours, theirs = layer_sources(student)[stack], layer_sources(teacher)[stack]
    if not set(ours) <= set(theirs):
        return None
    bounds = [theirs.index(source) for source in ours[1:]] + [len(theirs)]
    return [(index, bound - 1) for index, bound in enumerate(bounds)]


# ---- students ----


def layers_at_even_distances(count: int, layers: int) -> list[int]:
    """Returns which `count` of so many layers a student keeps: the first, and then at even distances.

    Raises ValueError: there are not as many.
    Source: Sanh et al. 2019, "DistilBERT", section 3 (one of every two layers).
    """
    if not 1 <= count <= layers:
        raise ValueError(f"a student of {count} layers cannot be taken from {layers}: give 1 to {layers}")
    return [index * layers // count for index in range(count)]


def student_of_layers(teacher: PreTrainedModel, kept: str | int | Sequence[int]) -> PreTrainedModel:
    """Returns a copy of `teacher` with some of its layers; `teacher` itself stays as it is.

    `kept` is the number of layers of every stack, at even distances, or says which ("0,2,5"), or both by stack
    ("encoder=4,decoder=1" keeps four and one).

    Raises ValueError: there are no such layers, or the teacher is quantized.
    """
    if is_quantized(teacher):
        raise ValueError("a student cannot begin as layers of a quantized model: take its float form")
    family = family_of(teacher)
    counts = {stack: len(layers) for stack, layers in family.stacks(teacher).items()}
    chosen = _parse_kept(kept, counts)
    names = [f"{stack}.{index}" for stack, indices in chosen.items() for index in indices]
    units = {name: tuple(range(block.units)) for name, block in family.blocks(teacher).items()}
    return keep_only(teacher, names, units)


def _parse_kept(kept: str | int | Sequence[int], counts: dict[str, int]) -> dict[str, list[int]]:
    text = kept if isinstance(kept, str) else str(kept) if isinstance(kept, int) else ",".join(map(str, kept))
    names_layers = not isinstance(kept, (str, int)) or "," in text
    wrong = ValueError(
        f"student_layers={text!r} keeps no layers: give a number such as 3, layers counted from 0 such as 0,2,5, or a "
        f"number for each stack such as encoder=4,decoder=1; there are "
        f"{', '.join(f'{count} in the {stack}' for stack, count in counts.items())}"
    )
    parts = [part.strip() for part in text.split(",")]
    if any("=" in part for part in parts):
        by_stack = {stack: number for stack, _, number in (part.partition("=") for part in parts)}
        if by_stack.keys() - counts.keys() or not all(number.isdigit() for number in by_stack.values()):
            raise wrong
        numbers = {stack: int(by_stack.get(stack, count)) for stack, count in counts.items()}
    elif not all(part.isdigit() for part in parts):
        raise wrong
    elif names_layers:
        indices = sorted({int(part) for part in parts})
        if any(indices[-1] >= count for count in counts.values()):
            raise wrong
        return dict.fromkeys(counts, indices)
    else:
        numbers = dict.fromkeys(counts, int(parts[0]))
    return {stack: layers_at_even_distances(number, counts[stack]) for stack, number in numbers.items()}


def student_of_config(teacher: PreTrainedModel, changes: str) -> PreTrainedModel:
    """Returns a freshly initialised model like `teacher`, but for `changes` of its config, "hidden_size=128,...".

    Vocabulary, labels and task head stay those of the teacher, so that they compare.

    Raises ValueError: the config has no such field, or the changes do not fit each other.
    """
    family = family_of(teacher)
    config: PreTrainedConfig = family.config_class(**stock_fields(teacher.config))
    for part in changes.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if not isinstance(getattr(config, name, None), (int, float)) or not value.replace(".", "", 1).isdigit():
            raise ValueError(
                f"student_config={part.strip()!r} changes nothing of a {type(config).__name__}: give numeric fields "
                "that it has, such as hidden_size=128,num_hidden_layers=4,num_attention_heads=4,intermediate_size=512"
            )
        setattr(config, name, type(getattr(config, name))(float(value)))
    size, heads = getattr(config, "hidden_size", 0), getattr(config, "num_attention_heads", 1)
    if not heads or (size % heads and not teacher.config.is_encoder_decoder):
        raise ValueError(f"student_config: hidden_size={size} is no multiple of num_attention_heads={heads}")
    return family.class_for(type(teacher), config)._from_config(
        config, attn_implementation=teacher.config._attn_implementation
    )
