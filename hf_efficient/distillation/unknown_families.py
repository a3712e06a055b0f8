"""Students with some layers of a teacher of an unknown family: the layers are found, and the student is checked."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.errors import UnsupportedModelError

CHECKED_TOKENS = 8
TOLERANCE = 1e-4  # of outputs, relative to the largest
FIELDS_PER_LAYER = ("layer_types", "attention_window")


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the layers of `model`, of which its config says the number.

    Raises UnsupportedModelError if there is no such list, or more than one.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and len({type(layer) for layer in module}) == 1
    ]
    if len(found) != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} has {len(found)} lists of num_hidden_layers={count} alike layers, and in a model "
            "of an unknown family layers are found where there is one: train another student with this teacher, or "
            "add a family as hf_efficient/models/README.md describes"
        )
    return found[0]


def extract_layers(teacher: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Return a copy of `teacher` with the layers `kept`, which computes as the teacher does without the others.

    Raises UnsupportedModelError if its layers cannot be found, or if it would compute something else: in some
    architectures layers depend on their number.
    """
    name, layers = find_layers(teacher)
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(kept)
    for field in FIELDS_PER_LAYER:
        if isinstance(values := getattr(config, field, None), list):
            setattr(config, field, [values[index] for index in kept])
    with torch.random.fork_rng(devices=[]), teacher.device:
        student: PreTrainedModel = type(teacher)._from_config(
            config, dtype=teacher.dtype, attn_implementation=teacher.config._attn_implementation
        )
    weights = dict(_renamed(teacher.state_dict(), name, kept))
    expected = {key: value.shape for key, value in student.state_dict().items()}
    is_complete = {key: value.shape for key, value in weights.items()} == expected
    if is_complete:
        student.load_state_dict(weights)
    dropped = [layer for index, layer in enumerate(layers) if index not in kept]
    if not is_complete or _difference(student, teacher, dropped) > TOLERANCE:
        raise UnsupportedModelError(
            f"{type(teacher).__name__} with the layers {', '.join(map(str, kept))} computes something else than the "
            "teacher without the others, since its layers depend on their number: add a family as "
            "hf_efficient/models/README.md describes"
        )
    if teacher.can_generate():
        student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.to(teacher.device).train(teacher.training)


def _renamed(
    weights: Mapping[str, torch.Tensor], layers: str, kept: Sequence[int]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of a student with the layers `kept` of the list called `layers`."""
    for name, value in weights.items():
        match = re.match(rf"{re.escape(layers)}\.(\d+)\.(.*)", name)
        if match is None:
            yield name, value
        elif int(match[1]) in kept:
            yield f"{layers}.{kept.index(int(match[1]))}.{match[2]}", value


def _difference(student: PreTrainedModel, teacher: PreTrainedModel, dropped: Collection[nn.Module]) -> float:
    """Return the largest difference of `student` from `teacher` without the layers `dropped`, relative to outputs."""
    ids = torch.arange(CHECKED_TOKENS, device=teacher.device)[None] % teacher.config.vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    was_training = teacher.training
    try:
        with torch.no_grad(), _bypassed(dropped):
            expected: torch.Tensor = teacher.eval().base_model(**inputs)[0].float()
            actual: torch.Tensor = student.eval().base_model(**inputs)[0].float()
    finally:
        teacher.train(was_training)
    return float((actual - expected).abs().max() / expected.abs().max())


@contextmanager
def _bypassed(layers: Collection[nn.Module]) -> Iterator[None]:
    """Let `layers` return their inputs within the context."""

    def bypass(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handles = [layer.register_forward_hook(bypass, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
