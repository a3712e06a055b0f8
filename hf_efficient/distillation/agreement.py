"""How often a student decides as its teacher does, for every kind of task head."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hf_efficient.distillation.head_outputs import HeadOutputs


def decide(head: HeadOutputs, outputs: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return what a model predicts for a batch, (items, decisions) on the CPU.

    Items are examples, or for heads with a prediction for each token the tokens that count. A decision is a class, the
    position of the start or the end of an answer, 0 or 1 for each of several labels, the number of a regression, or a
    sentence embedding.
    """
    logits = [outputs[name].detach().float() for name in head.outputs]
    mask = head.mask(inputs)
    if head.needs_padding_mask and mask is not None:
        lowest = torch.finfo(torch.float32).min
        logits = [values.masked_fill(~mask.bool(), lowest) for values in logits]
    if head.predicts_numbers or head.predicts_embeddings:
        decisions = logits[0].reshape(len(logits[0]), -1)
    elif head.predicts_independently:
        decisions = (logits[0] > 0).long()
    else:
        decisions = torch.stack([values.argmax(-1) for values in logits], dim=-1)
    if head.per_token:
        decisions = decisions.unsqueeze(-1) if head.detects_replaced_tokens else decisions
        decisions = decisions if mask is None else decisions[mask.bool()]
    return decisions.cpu()


def agreement_of(head: HeadOutputs, student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Return the share of the items on which all decisions are equal; for numbers their Pearson correlation.

    The correlation with constant numbers is 0.
    """
    if not head.predicts_numbers:
        return float((student == teacher).all(-1).double().mean())
    centred = [values.double().flatten() - values.double().mean() for values in (student, teacher)]
    norm = float(centred[0].norm() * centred[1].norm())
    return float(centred[0] @ centred[1]) / norm if norm else 0.0
