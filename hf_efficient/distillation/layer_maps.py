"""Named maps from the layers of a student to the layers of its teacher."""

from __future__ import annotations

from collections.abc import Callable

from hf_efficient.errors import UserError

Pairs = list[tuple[int, int]]


def uniform(student: int, teacher: int) -> Pairs:
    """Return pairs (student layer, teacher layer), evenly spaced, of which the last are the last layers of both.

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
    """Return pairs with every k-th layer of the teacher, without the last layer of the student.

    Source: Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression", section 3.2 (PKD-Skip).
    """
    step = max(1, teacher // student)
    return [(index, (index + 1) * step - 1) for index in range(min(student, teacher) - 1)] or [(0, step - 1)]


# Functions of the numbers of layers of student and teacher; "auto" needs the models, see `layer_pairs.map_layers`.
LAYER_MAPS: dict[str, Callable[[int, int], Pairs] | None] = {
    "auto": None,
    "uniform": uniform,
    "last": last,
    "skip": skip,
}


def parse_layer_map(layer_map: str) -> dict[str, Pairs] | None:
    """Return the pairs of an explicit layer map by stack, with "" for every stack; None for a named map.

    Raises UserError if the text is neither a name nor a list of pairs.
    """
    if layer_map in LAYER_MAPS:
        return None
    pairs: dict[str, Pairs] = {}
    for part in layer_map.split(","):
        student, _, teacher = part.strip().partition(":")
        stack, _, number = student.rpartition(".")
        if not (number.isdigit() and teacher.isdigit()):
            raise UserError(
                f"layer_map={layer_map!r} is unknown: give one of {', '.join(LAYER_MAPS)}, or pairs student:teacher "
                "counted from 0, such as 0:1,1:3,2:5 (decoder.0:1 for one stack of layers)"
            )
        pairs.setdefault(stack, []).append((int(number), int(teacher)))
    return pairs
