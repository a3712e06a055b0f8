"""Students made from a teacher: a copy of some of its layers, or a new model with a changed config."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedConfig, PreTrainedModel

from hf_efficient.distillation.unknown_families import extract_layers, find_layers
from hf_efficient.errors import UserError
from hf_efficient.models import class_for, family_of, find_family, is_decoder_only, is_quantized
from hf_efficient.models.family import stock_fields
from hf_efficient.models.sentence_files import fit_sentence_modules
from hf_efficient.models.surgery import extract_submodel


def evenly_spaced_layers(count: int, layers: int) -> list[int]:
    """Return the indices of `count` evenly spaced layers, from the first on, out of so many `layers`.

    Raises UserError if there are fewer layers than `count`.
    Source: Sanh et al. 2019, "DistilBERT", section 3 (one of every two layers).
    """
    if not 1 <= count <= layers:
        raise UserError(f"a student of {count} layers cannot be taken from {layers}: give 1 to {layers}")
    return [index * layers // count for index in range(count)]


def student_from_layers(teacher: PreTrainedModel, kept: str | int | Sequence[int]) -> PreTrainedModel:
    """Return a copy of `teacher` with some of its layers; `teacher` itself is not changed.

    | kept | layers of the student |
    | --- | --- |
    | 3 or "3" | so many evenly spaced layers of every stack |
    | [0, 2, 5] or "0,2,5" | these layers of every stack |
    | "encoder=4,decoder=1" | so many evenly spaced layers of each stack |

    Raises UserError if there are no such layers, or if the teacher is quantized; UnsupportedModelError if its family
    is unknown and its layers cannot be found.
    """
    if is_quantized(teacher):
        raise UserError("a student cannot be made of layers of a quantized model: give the model before quantization")
    if find_family(teacher.config) is None and not is_decoder_only(teacher.config):
        layers = find_layers(teacher)[1]
        return extract_layers(teacher, _parse_layer_selection(kept, {"encoder": len(layers)})["encoder"])
    family = family_of(teacher)
    counts = {stack: len(layers) for stack, layers in family.stacks(teacher).items()}
    selection = _parse_layer_selection(kept, counts)
    names = [f"{stack}.{index}" for stack, indices in selection.items() for index in indices]
    units = {name: tuple(range(block.units)) for name, block in family.blocks(teacher).items()}
    return extract_submodel(teacher, names, units)


def _parse_layer_selection(kept: str | int | Sequence[int], counts: dict[str, int]) -> dict[str, list[int]]:
    """Return the indices of the kept layers by stack; `counts` are the numbers of layers by stack."""
    text = kept if isinstance(kept, str) else str(kept) if isinstance(kept, int) else ",".join(map(str, kept))
    lists_layers = not isinstance(kept, (str, int)) or "," in text
    error = UserError(
        f"student_layers={text!r} keeps no layers: give a number such as 3, layers counted from 0 such as 0,2,5, or a "
        f"number for each stack such as encoder=4,decoder=1; there are "
        f"{', '.join(f'{count} in the {stack}' for stack, count in counts.items())}"
    )
    parts = [part.strip() for part in text.split(",")]
    if any("=" in part for part in parts):
        by_stack = {stack: number for stack, _, number in (part.partition("=") for part in parts)}
        if by_stack.keys() - counts.keys() or not all(number.isdigit() for number in by_stack.values()):
            raise error
        numbers = {stack: int(by_stack.get(stack, count)) for stack, count in counts.items()}
    elif not all(part.isdigit() for part in parts):
        raise error
    elif lists_layers:
        indices = sorted({int(part) for part in parts})
        if any(indices[-1] >= count for count in counts.values()):
            raise error
        return dict.fromkeys(counts, indices)
    else:
        numbers = dict.fromkeys(counts, int(parts[0]))
    return {stack: evenly_spaced_layers(number, counts[stack]) for stack, number in numbers.items()}


def student_from_config(teacher: PreTrainedModel, changes: str) -> PreTrainedModel:
    """Return a newly initialized model with the teacher's config, except for `changes` such as "hidden_size=128".

    Several changes are separated by commas. Vocabulary, labels and task head are those of the teacher.

    Raises UserError if the config has no such field, or if the changes do not fit each other.
    """
    family = family_of(teacher)
    config: PreTrainedConfig = family.config_class(**stock_fields(teacher.config))
    for part in changes.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if not isinstance(getattr(config, name, None), (int, float)) or not value.replace(".", "", 1).isdigit():
            raise UserError(
                f"student_config={part.strip()!r} does not change a {type(config).__name__}: give numeric fields that "
                "it has, such as hidden_size=128,num_hidden_layers=4,num_attention_heads=4,intermediate_size=512"
            )
        setattr(config, name, type(getattr(config, name))(float(value)))
    size, heads = getattr(config, "hidden_size", 0), getattr(config, "num_attention_heads", 1)
    if not heads or (size % heads and not teacher.config.is_encoder_decoder):
        raise UserError(f"student_config: hidden_size={size} is not a multiple of num_attention_heads={heads}")
    student_class = class_for(teacher, config)
    student = student_class._from_config(config, attn_implementation=teacher.config._attn_implementation)
    fit_sentence_modules(teacher, student)
    return student
