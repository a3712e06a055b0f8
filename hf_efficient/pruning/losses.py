"""Losses that pruning criteria differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.models.inputs import is_label
from hf_efficient.pruning.batches import Batch, eval_mode, example_count, has_labels, non_padding_mask

Loss = Callable[[PreTrainedModel, Batch], torch.Tensor]


def _detects_replaced_tokens(model: PreTrainedModel) -> bool:
    """Whether `model` says of every token whether it was replaced."""
    return type(model).__name__.endswith("ForPreTraining")


def example_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Return the task loss of a batch, summed over its examples, as `importance` functions expect it: shape ().

    Raises ValueError: the batch has no labels.
    """
    if not has_labels(batch):
        raise UserError(
            f"the batches have no labels, only {', '.join(batch)}: give labelled data, or the loss sampled_loss()"
        )
    loss: torch.Tensor = model(**batch).loss
    labels = batch.get("labels")
    if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        # A loss of tokens is their mean.
        counted = (
            non_padding_mask(batch, labels[..., None], False) if _detects_replaced_tokens(model) else labels.ne(-100)
        )
        return loss * counted.sum()
    return loss * example_count(batch)


def sampled_loss(teacher: PreTrainedModel | None = None, seed: int = 0) -> Loss:
    """Return a loss for batches without labels: how unlikely `model` finds answers drawn from what the teacher says.

    Its expectation is the cross entropy with the teacher's distribution, and without a teacher, where the model is its
    own, the squares of its gradients average to the Fisher information. Numbers (regression, hidden states of a
    model without a head) are drawn from a normal distribution of variance one around the teacher's.

    Source: Kunstner et al. 2019, "Limitations of the Empirical Fisher Approximation", section 2.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if not is_label(name)}
        shifted = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if shifted is not None and "labels" in batch and "decoder_input_ids" not in batch:
            inputs["decoder_input_ids"] = shifted(batch["labels"])
        outputs: Any = model(**inputs)
        answers: Any = outputs
        if teacher is not None:
            with torch.no_grad(), eval_mode(teacher):
                answers = teacher(**inputs)
        total = torch.zeros((), device=model.device)
        names = [name for name in ("logits", "start_logits", "end_logits") if name in outputs]
        for name in names or ["last_hidden_state"]:
            lost = _sampled_label_loss(model, outputs[name].float(), answers[name].detach().float(), name, generator)
            total = total + lost[non_padding_mask(batch, lost[..., None], model.config.is_encoder_decoder)].sum()
        return total

    return loss


def _sampled_label_loss(
    model: PreTrainedModel, ours: torch.Tensor, theirs: torch.Tensor, name: str, generator: torch.Generator
) -> torch.Tensor:
    """Return minus the log likelihood by the output `ours` of an answer drawn from `theirs`, without constants.

    Shapes are (..., numbers) and (...); of tokens that are judged one by one all are (...).
    """
    config: Any = model.config
    if _detects_replaced_tokens(model) or (name == "logits" and config.problem_type == "multi_label_classification"):
        drawn = torch.bernoulli(theirs.sigmoid().cpu(), generator=generator).to(ours.device)
        lost = F.binary_cross_entropy_with_logits(ours, drawn, reduction="none")
        return lost if _detects_replaced_tokens(model) else lost.sum(-1)
    classifies = config.problem_type != "regression" and config.num_labels > 1
    if name != "last_hidden_state" and (classifies or ours.dim() > 2):
        drawn = torch.multinomial(theirs.softmax(-1).flatten(0, -2).cpu(), 1, generator=generator)[:, 0]
        lost = F.cross_entropy(ours.flatten(0, -2), drawn.to(ours.device), reduction="none")
        return lost.view(ours.shape[:-1])
    noise = torch.randn(theirs.shape, generator=generator).to(theirs.device)
    return (ours - theirs - noise).square().sum(-1) / 2


def task_or_sampled_loss(teacher: PreTrainedModel | None = None, seed: int = 0) -> Loss:
    """Return the task loss for batches with labels and `sampled_loss` for those without."""
    sampled = sampled_loss(teacher, seed)
    return lambda model, batch: (example_loss if has_labels(batch) else sampled)(model, batch)
