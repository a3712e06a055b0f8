"""Random batches with labels for every task head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.measurement.comparison import model_inputs
from hf_efficient.models.inputs import task_head_of
from hf_efficient.tasks.masked_lm import MASKING_PROBABILITY
from hf_efficient.tasks.task import IGNORE_INDEX

NUM_CHOICES = 2

Inputs = dict[str, torch.Tensor]


def task_head(model: PreTrainedModel) -> str:
    """Return the task head of `model`, a key of `LABEL_FACTORIES`. Raises UserError if there is none for it."""
    head = task_head_of(type(model).__name__)
    if head not in LABEL_FACTORIES:
        raise UserError(
            f"{type(model).__name__} has no task head with random labels: give --task, or a model with one of the "
            f"heads {', '.join(LABEL_FACTORIES)}"
        )
    return head


def random_batch(model: PreTrainedModel, batch_size: int, sequence_length: int) -> Inputs:
    """Return random tokens without padding, (batch, tokens), and random labels for the model's head.

    The inputs of a multiple-choice model are (batch, 2, tokens). The labels of an encoder-decoder are as long as its
    inputs. Raises UserError if the model has no task head, or one without random labels.
    """
    head = task_head(model)
    inputs = model_inputs(model, batch_size, sequence_length)
    inputs.pop("decoder_input_ids", None)  # the model makes them from the labels
    if head == "MultipleChoice":
        inputs = {name: tensor.repeat(1, NUM_CHOICES, 1) for name, tensor in inputs.items()}
    inputs = {name: tensor.cpu() for name, tensor in inputs.items()}
    return {**inputs, **LABEL_FACTORIES[head](inputs["input_ids"], model.config, torch.Generator().manual_seed(0))}


def _class_labels(ids: torch.Tensor, config: PreTrainedConfig, generator: torch.Generator) -> Inputs:
    shape = (len(ids),)
    if config.problem_type == "multi_label_classification":
        return {"labels": torch.randint(2, (*shape, config.num_labels), generator=generator).float()}
    if config.problem_type == "regression" or config.num_labels == 1:
        return {"labels": torch.randn(shape, generator=generator)}
    return {"labels": torch.randint(config.num_labels, shape, generator=generator)}


def _token_labels(ids: torch.Tensor, config: PreTrainedConfig, generator: torch.Generator) -> Inputs:
    return {"labels": torch.randint(config.num_labels, ids.shape, generator=generator)}


def _span_labels(ids: torch.Tensor, config: PreTrainedConfig, generator: torch.Generator) -> Inputs:
    names = ("start_positions", "end_positions")
    return {name: torch.randint(ids.shape[-1], (len(ids),), generator=generator) for name in names}


def _choice_labels(ids: torch.Tensor, config: PreTrainedConfig, generator: torch.Generator) -> Inputs:
    return {"labels": torch.randint(NUM_CHOICES, (len(ids),), generator=generator)}


def _masked_labels(ids: torch.Tensor, config: PreTrainedConfig, generator: torch.Generator) -> Inputs:
    masked = torch.rand(ids.shape, generator=generator) < MASKING_PROBABILITY
    masked[:, 0] = True
    return {"labels": torch.where(masked, ids, IGNORE_INDEX)}


def _seq2seq_labels(ids: torch.Tensor, config: PreTrainedConfig, generator: torch.Generator) -> Inputs:
    return {"labels": ids.clone()}


LABEL_FACTORIES: dict[str, Callable[[torch.Tensor, PreTrainedConfig, torch.Generator], Inputs]] = {
    "SequenceClassification": _class_labels,
    "TokenClassification": _token_labels,
    "QuestionAnswering": _span_labels,
    "MultipleChoice": _choice_labels,
    "MaskedLM": _masked_labels,
    "ConditionalGeneration": _seq2seq_labels,
}
