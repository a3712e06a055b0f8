"""What scoring and correcting read: batches of examples, which of their tokens count, and the loss of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

Batch = Mapping[str, torch.Tensor]
Loss = Callable[[PreTrainedModel, Batch], torch.Tensor]

PADDED = {"labels": -100}


def example_count(batch: Batch) -> int:
    """Returns the number of examples of a batch."""
    return next(iter(batch.values())).shape[0]


def at_least_one(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yields the batches. Raises ValueError: there is none."""
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise ValueError("the dataloader is empty: at least one batch is needed")


@contextmanager
def in_eval(model: PreTrainedModel) -> Iterator[None]:
    """Puts `model` in eval mode as long as the context lasts."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def real_tokens(batch: Batch, hidden_states: torch.Tensor, decoding: bool) -> torch.Tensor:
    """Returns which positions of `hidden_states` (rows, tokens, size) are no padding, shape (rows, tokens)."""
    for name in ("decoder_attention_mask", "labels", "attention_mask")[0 if decoding else 2 :]:
        known = batch.get(name)
        if known is not None and known.dim() > 1 and known.numel() == hidden_states.shape[:-1].numel():
            return known.ne(PADDED.get(name, 0)).reshape(hidden_states.shape[:-1])
    return torch.ones(hidden_states.shape[:-1], dtype=torch.bool, device=hidden_states.device)


def is_labelled(batch: Batch) -> bool:
    """Whether the batch says what the model should answer."""
    return any(name.startswith("label") or name.endswith("_positions") for name in batch)


def example_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Returns the task loss of a batch, summed over its examples, as `importance` functions expect it: shape ().

    Raises ValueError: the batch has no labels.
    """
    if not is_labelled(batch):
        raise ValueError(
            f"the batches have no labels, only {', '.join(batch)}: give labelled data, or the loss sampled_loss()"
        )
    loss: torch.Tensor = model(**batch).loss
    labels = batch.get("labels")
    if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        return loss * labels.ne(-100).sum()  # a loss of tokens is their mean
    return loss * next(iter(batch.values())).shape[0]


def sampled_loss(teacher: PreTrainedModel | None = None, seed: int = 0) -> Loss:
    """Returns a loss for batches without labels: how unlikely `model` finds answers drawn from what the teacher says.

    Its expectation is the cross entropy with the teacher's distribution, and without a teacher, where the model is its
    own, the squares of its gradients average to the Fisher information. Numbers (regression, hidden states of a
    model without a head) are drawn from a normal distribution of variance one around the teacher's.

    Source: Kunstner et al. 2019, "Limitations of the Empirical Fisher Approximation", section 2.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if "label" not in name}
        outputs: Any = model(**inputs)
        with torch.no_grad():
            answers: Any = outputs if teacher is None else teacher(**inputs)
        classifies = model.config.problem_type != "regression" and model.config.num_labels > 1
        names = [name for name in ("logits", "start_logits", "end_logits") if name in outputs]
        total = torch.zeros((), device=model.device)
        for name in names or ["last_hidden_state"]:
            ours, theirs = outputs[name].float(), answers[name].detach().float()
            if names and (classifies or ours.dim() > 2):
                probabilities = theirs.softmax(-1).flatten(0, -2).cpu()
                drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0].view(theirs.shape[:-1])
                lost = F.cross_entropy(ours.flatten(0, -2), drawn.flatten().to(ours.device), reduction="none")
                lost = lost.view(theirs.shape[:-1])
            else:
                noise = torch.randn(theirs.shape, generator=generator).to(theirs.device)
                lost = (ours - theirs - noise).square().sum(-1) / 2
            mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
            total = total + (lost * mask if mask is not None and mask.shape == lost.shape else lost).sum()
        return total

    return loss


def task_or_sampled_loss(teacher: PreTrainedModel | None = None, seed: int = 0) -> Loss:
    """Returns the task loss for batches with labels and `sampled_loss` for those without."""
    sampled = sampled_loss(teacher, seed)
    return lambda model, batch: (example_loss if is_labelled(batch) else sampled)(model, batch)
