"""Dropout of a student while it learns from its teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

# Modules of Transformers that call `nn.functional.dropout` hold its probability in one of these.
PROBABILITIES = ("dropout", "attention_dropout", "activation_dropout")


@contextmanager
def replaced_dropout(model: nn.Module, probability: float | None) -> Iterator[None]:
    """Within the context, `model` has this probability of dropout wherever it has one above 0; None changes nothing.

    Its config keeps the probabilities that the model was made with.
    """
    places = [] if probability is None else [*_find_dropout(model)]
    for module, name, _ in places:
        setattr(module, name, probability)
    try:
        yield
    finally:
        for module, name, original in places:
            setattr(module, name, original)


def has_dropout(model: nn.Module) -> bool:
    """Whether `model` has a probability of dropout above 0 anywhere."""
    return next(_find_dropout(model), None) is not None


def _find_dropout(model: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """Yield the modules with a probability of dropout above 0, its attribute and its value."""
    for module in model.modules():
        names = ("p",) if isinstance(module, _DropoutNd) else PROBABILITIES
        for name in names:
            value = module.__dict__.get(name)
            if isinstance(value, float) and value > 0:
                yield module, name, value
