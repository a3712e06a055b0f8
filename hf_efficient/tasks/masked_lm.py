"""Masked language modelling: predicting masked tokens of a text."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import DataCollatorForLanguageModeling, DataCollatorForTokenClassification, PreTrainedTokenizerBase

from hf_efficient.errors import UserError
from hf_efficient.measurement.metrics import masked_lm_metrics
from hf_efficient.measurement.row_metrics import masked_lm_row_metrics
from hf_efficient.tasks.task import TEXT_COLUMNS, Batch, RowEncoder, Task, TaskMetrics, read_logits

MASKING_PROBABILITY = 0.15


class MaskingCollator:
    """Mask 15% of the tokens of each example, anew in every epoch; examples that have labels are only padded.

    Source: Devlin et al. 2019, "BERT", section 3.1 (task 1).

    Raises UserError if the tokenizer has no mask token.
    """

    mlm = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.mask_token is None:
            raise UserError(f"{type(tokenizer).__name__} has no mask token: fill-mask needs a model that has one")
        self._mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKING_PROBABILITY)
        self._pad = DataCollatorForTokenClassification(tokenizer)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch; labels are -100 except for masked tokens."""
        return dict((self._pad if "labels" in examples[0] else self._mask)(examples))


def mask_once(data: Dataset, tokenizer: PreTrainedTokenizerBase, seed: int) -> Dataset:
    """Return `data` with masked tokens and labels, so that every model predicts the same tokens."""
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKING_PROBABILITY, seed=seed)

    def mask(example: dict[str, Any]) -> dict[str, Any]:
        return {name: value[0].tolist() for name, value in collator([example]).items()}

    return data.map(mask, desc="masking tokens")


def masked_token_scores(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return for each token the cross-entropy of its label, and whether the label has the highest logit.

    | argument | shape |
    | --- | --- |
    | logits | (rows, tokens, vocabulary) |
    | labels | (rows, tokens) |
    | returns | (rows, tokens, 2) |
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    loss = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    return torch.stack([loss, (logits.argmax(-1) == labels).float()], dim=-1)


def encode_masked_lm(batch: Batch, encoder: RowEncoder) -> dict[str, Any]:
    """Return the tokens of texts."""
    return encoder.tokenize(*(batch[name] for name in encoder.columns.texts))


def masked_lm_compute_metrics(*_: Any) -> TaskMetrics:
    """Return the function that computes accuracy and perplexity over masked tokens."""
    return TaskMetrics(read_logits, masked_lm_metrics, masked_lm_row_metrics)


MASKED_LM = Task(
    "fill-mask",
    "fill-mask",
    "accuracy",
    encode_masked_lm,
    masked_lm_compute_metrics,
    text_columns=tuple(columns for columns in TEXT_COLUMNS if len(columns) == 1),
    collator=MaskingCollator,
    reduce_logits=masked_token_scores,
    complete_evaluation=mask_once,
    has_labels=False,
    has_classes=False,
)
