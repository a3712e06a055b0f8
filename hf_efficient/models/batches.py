"""Batches of examples: their number, their labels, and which of their tokens are no padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.models.inputs import is_label

Batch = Mapping[str, torch.Tensor]

# The value that marks padding, 0 in masks.
PADDING_VALUES = {"labels": -100}


def example_count(batch: Batch) -> int:
    """Return the number of examples of a batch."""
    return next(iter(batch.values())).shape[0]


def has_labels(batch: Batch) -> bool:
    """Whether the batch has labels."""
    return any(is_label(name) for name in batch)


def require_batches(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches.

    Raises UserError if there are none.
    """
    is_empty = True
    for batch in batches:
        is_empty = False
        yield batch
    if is_empty:
        raise UserError("the dataloader is empty: at least one batch is required")


def check_batches(name: str, batches: Any) -> Iterable[Batch]:
    """Return the argument `name`, or what iterates over it with a check that each batch maps names to tensors.

    Raises UserError if it is a single batch, or cannot be iterated over.
    """
    example = "a DataLoader, or a list of batches, each a dict of tensors by name"
    if isinstance(batches, (Mapping, str)) or not isinstance(batches, Iterable):
        raise UserError(f"{name} is a {type(batches).__name__}: give {example}")
    return _CheckedBatches(name, batches, example)


class _CheckedBatches:
    """Iterates over batches, as often as they can be."""

    def __init__(self, name: str, batches: Iterable[Any], example: str) -> None:
        self.name, self.batches, self.example = name, batches, example

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            if not isinstance(batch, Mapping) or not any(map(torch.is_tensor, batch.values())):
                raise UserError(
                    f"a batch of {self.name} is a {type(batch).__name__} without tensors: give {self.example}"
                )
            yield batch


@contextmanager
def eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Put `model` into eval mode within the context."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def non_padding_mask(batch: Batch, hidden_states: torch.Tensor, is_decoder: bool) -> torch.Tensor:
    """Return which positions of `hidden_states` (rows, tokens, size) are no padding, shape (rows, tokens).

    Those of a decoder are found by its attention mask or the labels, all others by the attention mask; without any of
    these of the right size, no position is padding.
    """
    names = ("decoder_attention_mask", "labels", "attention_mask") if is_decoder else ("attention_mask",)
    positions = hidden_states.shape[:-1]
    for name in names:
        values = batch.get(name)
        if values is not None and values.dim() > 1 and values.numel() == positions.numel():
            return values.ne(PADDING_VALUES.get(name, 0)).reshape(positions)
    return torch.ones(positions, dtype=torch.bool, device=hidden_states.device)
