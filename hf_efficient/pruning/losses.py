"""Losses that pruning criteria differentiate, each summed over the examples of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.models.batches import Batch, eval_mode, example_count, has_labels, non_padding_mask
from hf_efficient.models.inputs import is_label
from hf_efficient.models.sentence_modules import EMBEDDING, find_sentence_modules

Loss = Callable[[PreTrainedModel, Batch], torch.Tensor]

IGNORED_LABEL = -100


def example_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Return the task loss of a batch, summed over its examples, shape ().

    Raises UserError if the batch has no labels.
    """
    if not has_labels(batch):
        raise UserError(
            f"the batches have no labels, only {', '.join(batch)}: give labelled data, or the loss sampled_loss()"
        )
    loss: torch.Tensor = model(**batch).loss
    labels = batch.get("labels")
    if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        # The task loss is a mean over tokens.
        if _detects_replaced_tokens(model):
            counted = non_padding_mask(batch, labels[..., None], is_decoder=False)
        else:
            counted = labels.ne(IGNORED_LABEL)
        return loss * counted.sum()
    return loss * example_count(batch)


def sampled_loss(teacher: PreTrainedModel | None = None, seed: int = 0) -> Loss:
    """Return a loss for batches without labels: the negative log likelihood of labels sampled from the predictions.

    Labels are sampled from the predictions of `teacher`, and the expectation of the loss is the cross entropy with
    them. Without a teacher they are sampled from the model's own predictions, and the squared gradients average to the
    Fisher information. Regression targets, sentence embeddings, and hidden states of a model without a head, are
    sampled from a normal distribution of variance one around the predictions.

    Source: Kunstner et al. 2019, "Limitations of the Empirical Fisher Approximation", section 2.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if not is_label(name)}
        shift_right = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if shift_right is not None and "labels" in batch and "decoder_input_ids" not in batch:
            inputs["decoder_input_ids"] = shift_right(batch["labels"])
        outputs: Any = model(**inputs)
        teacher_outputs: Any = outputs
        if teacher is not None:
            with torch.no_grad(), eval_mode(teacher):
                teacher_outputs = teacher(**inputs)
        total = torch.zeros((), device=model.device)
        names = [name for name in (EMBEDDING, "logits", "start_logits", "end_logits") if name in outputs]
        for name in names or ["last_hidden_state"]:
            losses = _sampled_label_loss(
                model, outputs[name].float(), teacher_outputs[name].detach().float(), name, generator
            )
            if losses.dim() > 1:
                losses = losses[non_padding_mask(batch, losses[..., None], model.config.is_encoder_decoder)]
            total = total + losses.sum()
        return total

    return loss


def task_or_sampled_loss(teacher: PreTrainedModel | None = None, seed: int = 0) -> Loss:
    """Return the task loss for batches with labels, and `sampled_loss` for those without, and for embedders."""
    loss_without_labels = sampled_loss(teacher, seed)

    def loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        uses_labels = has_labels(batch) and find_sentence_modules(model) is None
        return (example_loss if uses_labels else loss_without_labels)(model, batch)

    return loss


def _detects_replaced_tokens(model: PreTrainedModel) -> bool:
    """Whether `model` has ELECTRA's head, which predicts for every token whether it was replaced."""
    return type(model).__name__.endswith("ForPreTraining")


def _sampled_label_loss(
    model: PreTrainedModel, output: torch.Tensor, teacher_output: torch.Tensor, name: str, generator: torch.Generator
) -> torch.Tensor:
    """Return the negative log likelihood, up to a constant, by `output` of a label sampled from `teacher_output`.

    Shapes are (..., classes) for the outputs and (...) for the result, (batch, tokens) for all if every token has one
    logit.
    """
    config: Any = model.config
    if _detects_replaced_tokens(model) or (name == "logits" and config.problem_type == "multi_label_classification"):
        labels = torch.bernoulli(teacher_output.sigmoid().cpu(), generator=generator).to(output.device)
        losses = F.binary_cross_entropy_with_logits(output, labels, reduction="none")
        return losses if _detects_replaced_tokens(model) else losses.sum(-1)
    is_classifier = config.problem_type != "regression" and config.num_labels > 1
    if name not in ("last_hidden_state", EMBEDDING) and (is_classifier or output.dim() > 2):
        probabilities = teacher_output.softmax(-1).flatten(0, -2).cpu()
        labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        losses = F.cross_entropy(output.flatten(0, -2), labels.to(output.device), reduction="none")
        return losses.view(output.shape[:-1])
    noise = torch.randn(teacher_output.shape, generator=generator).to(teacher_output.device)
    return (output - teacher_output - noise).square().sum(-1) / 2
