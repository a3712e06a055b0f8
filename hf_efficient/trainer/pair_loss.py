"""The loss of a sentence embedder on pairs of texts with scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hf_efficient.errors import UserError
from hf_efficient.models.inputs import is_label
from hf_efficient.models.sentence_modules import EMBEDDING, find_sentence_modules
from hf_efficient.trainer.loss import Batch


def prepare_for_embeddings(trainer: Any) -> bool:
    """Return whether the model of a `Trainer` is a sentence embedder, and give it labels: the scores of pairs."""
    if find_sentence_modules(trainer.model) is None:
        return False
    trainer.label_names = ["labels"]  # the transformer does not read them
    return True


def compute_pair_loss(
    model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
) -> Any:
    """Return the loss of a sentence embedder, and on request its outputs: the squared error of the cosines of pairs.

    The batch holds the texts of each pair one after the other, (pairs * 2, tokens), and the scores (pairs,). Without
    any score that is known the loss is NaN.

    Source: Reimers and Gurevych 2019, "Sentence-BERT", section 3 (regression objective function).

    Raises UserError if there are no scores of pairs.
    """
    outputs: Any = model(**{name: value for name, value in inputs.items() if not is_label(name)})
    embeddings, scores = outputs[EMBEDDING].float(), inputs.get("labels")
    if scores is None:
        raise UserError(
            f"the batches have no scores of pairs of texts, only {', '.join(inputs)}: give pairs with scores, or "
            "train on the embeddings of a teacher (--distil)"
        )
    if len(embeddings) == 2 * len(scores):
        cosines = F.cosine_similarity(embeddings[::2], embeddings[1::2])
        loss = F.mse_loss(cosines, scores.to(cosines), reduction="none").nanmean()
    else:
        loss = torch.full((), torch.nan, device=embeddings.device)
    return (loss, outputs) if return_outputs else loss
