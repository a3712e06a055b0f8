"""What scoring and correcting read: batches of examples, which of their tokens count, and the loss of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.models.inputs import is_label

Batch = Mapping[str, torch.Tensor]

PADDED = {"labels": -100}


def example_count(batch: Batch) -> int:
    """Return the number of examples of a batch."""
    return next(iter(batch.values())).shape[0]


def require_batches(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches. Raises ValueError: there is none."""
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise UserError("the dataloader is empty: at least one batch is needed")


@contextmanager
def eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Put `model` in eval mode as long as the context lasts."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def non_padding_mask(batch: Batch, hidden_states: torch.Tensor, decoding: bool) -> torch.Tensor:
    """Return which positions of `hidden_states` (rows, tokens, size) are no padding, shape (rows, tokens)."""
    for name in ("decoder_attention_mask", "labels", "attention_mask")[0 if decoding else 2 :]:
        known = batch.get(name)
        if known is not None and known.dim() > 1 and known.numel() == hidden_states.shape[:-1].numel():
            return known.ne(PADDED.get(name, 0)).reshape(hidden_states.shape[:-1])
    return torch.ones(hidden_states.shape[:-1], dtype=torch.bool, device=hidden_states.device)


def has_labels(batch: Batch) -> bool:
    """Whether the batch says what the model should answer."""
    return any(is_label(name) for name in batch)
