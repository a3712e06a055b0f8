"""The losses of a sentence embedder on pairs of texts with scores, and on texts with positives and negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hf_efficient.errors import UserError
from hf_efficient.models.inputs import is_label
from hf_efficient.models.sentence_modules import EMBEDDING, find_sentence_modules
from hf_efficient.trainer.loss import Batch

CONTRASTIVE_TEMPERATURE = 0.05  # divides cosines before a softmax, as in sentence-transformers


def prepare_for_embeddings(trainer: Any) -> bool:
    """Return whether the model of a `Trainer` is a sentence embedder, and give it labels: those of its rows."""
    if find_sentence_modules(trainer.model) is None:
        return False
    trainer.label_names = ["labels"]  # the transformer does not read them
    return True


def compute_pair_loss(
    model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
) -> Any:
    """Return the loss of a sentence embedder, and on request its outputs.

    | labels | texts of a row | loss |
    | --- | --- | --- |
    | (rows,): scores | a pair | `score_error` |
    | (rows, texts - 1): 1 or 0 | a text, its positive, perhaps a negative | `contrastive_loss` |

    The batch holds the texts of each row one after the other, (rows * texts, tokens).

    Raises UserError if there are no labels.
    """
    outputs: Any = model(**{name: value for name, value in inputs.items() if not is_label(name)})
    labels = inputs.get("labels")
    if labels is None:
        raise UserError(
            f"the batches have no scores of pairs of texts, only {', '.join(inputs)}: give pairs with scores, or "
            "columns query and positive, or train on the embeddings of a teacher (--distil)"
        )
    embeddings = outputs[EMBEDDING].float().unflatten(0, (len(labels), -1))
    loss = score_error(embeddings, labels) if labels.dim() == 1 else contrastive_loss(embeddings)
    return (loss, outputs) if return_outputs else loss


def score_error(embeddings: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of the cosines of pairs; NaN without any score that is known.

    | argument | shape | meaning |
    | --- | --- | --- |
    | embeddings | (rows, texts, size) | |
    | scores | (rows,) | of the two texts; NaN: not known |

    Source: Reimers and Gurevych 2019, "Sentence-BERT", section 3 (regression objective function).
    """
    if embeddings.shape[1] != 2:
        return torch.full((), torch.nan, device=embeddings.device)
    cosines = F.cosine_similarity(embeddings[:, 0], embeddings[:, 1])
    return F.mse_loss(cosines, scores.to(cosines), reduction="none").nanmean()


def contrastive_loss(embeddings: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of finding the positive of each row's first text among all other texts of the batch.

    `embeddings` (rows, texts, size) are those of the texts, their positives, and negatives if there are any. The
    candidates are the positives and negatives of all rows; copies of the row's own positive do not count. The
    larger the batch, the harder is the task: batches that are accumulated do not see each other.
    Source: Henderson et al. 2017, "Efficient Natural Language Response Suggestion for Smart Reply", section 4.4, with
    the cosines of sentence-transformers' MultipleNegativesRankingLoss.
    """
    vectors = F.normalize(embeddings, dim=-1)
    positives, candidates = vectors[:, 1], vectors[:, 1:].transpose(0, 1).flatten(0, 1)
    own = torch.eye(len(positives), len(candidates), dtype=torch.bool, device=vectors.device)
    with torch.no_grad():
        is_copy = (positives @ candidates.T > 1 - 1e-6) & ~own
    cosines = (vectors[:, 0] @ candidates.T).masked_fill(is_copy, -1.0)
    return F.cross_entropy(cosines / CONTRASTIVE_TEMPERATURE, torch.arange(len(cosines), device=cosines.device))
