"""Distillation losses: functions that return (sum, count), so that losses over accumulated batches are exact.

They are exactly zero if student and teacher are equal. Positions outside the mask add nothing, whatever their values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

SumAndCount = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class LossTerm:
    """A weighted term of the training loss.

    | field | meaning |
    | --- | --- |
    | name | key of the term in the logs |
    | weight | factor of the term in the loss |
    | sum | () sum over the positions of a batch |
    | unit | what is counted to divide the sum by, over all batches of an optimizer step |
    """

    name: str
    weight: float
    sum: torch.Tensor
    unit: str


# ---- outputs of task heads ----


def soft_label_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float, mask: torch.Tensor | None = None
) -> SumAndCount:
    """Kullback-Leibler divergence between the softened distributions of teacher and student, times T squared.

    | argument | shape | meaning |
    | --- | --- | --- |
    | student_logits, teacher_logits | (..., classes) | unnormalized |
    | mask | (...) or None | positions to include; None: all |
    | returns | (), () | sum over the included positions, and their number |

    With the factor T squared, the ratio of the gradients of soft and hard labels does not depend on T.
    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.1.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)  # [..., classes]
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)  # [..., classes]
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)  # [...]
    return _masked_sum(divergence * temperature**2, mask)


def independent_soft_label_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float, mask: torch.Tensor | None = None
) -> SumAndCount:
    """Kullback-Leibler divergence for labels that do not exclude each other (multi-label heads).

    Each label is a binary distribution, sigmoid(logit / T). The divergences are averaged over the labels, as in the
    task's own loss. Shapes and source as for `soft_label_loss`.
    """
    student, teacher = student_logits.float() / temperature, teacher_logits.float() / temperature
    yes, no = teacher.sigmoid(), (-teacher).sigmoid()
    divergence = yes * (F.logsigmoid(teacher) - F.logsigmoid(student))
    divergence = divergence + no * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return _masked_sum(divergence.mean(-1) * temperature**2, mask)


def squared_error(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, mask: torch.Tensor | None = None
) -> SumAndCount:
    """Mean squared error over the last dimension, between predicted values or between hidden states.

    | argument | shape | meaning |
    | --- | --- | --- |
    | student_logits, teacher_logits | (..., numbers) | predicted values, or hidden states |
    | mask | (...) or None | positions to include; None: all |
    | returns | (), () | sum over the included positions, and their number |

    Source: Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", eq. 1, for outputs; Jiao et al. 2020,
    "TinyBERT", eq. 8 and 9, for hidden states and embeddings.
    """
    return _masked_sum((student_logits.float() - teacher_logits.float()).square().mean(-1), mask)


def margin_error(student_scores: torch.Tensor, teacher_scores: torch.Tensor, queries: torch.Tensor) -> SumAndCount:
    """Squared error of the differences between the scores of documents of the same query (MarginMSE).

    | argument | shape | meaning |
    | --- | --- | --- |
    | student_scores, teacher_scores | (rows, 1) | score of a document for its query |
    | queries | (rows,) | number of the query |
    | returns | (), () | sum over the pairs of documents of a query, and the number of pairs |

    Source: Hofstätter et al. 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation", eq. 7, there for pairs of a relevant and another document.
    """
    errors = (student_scores.float() - teacher_scores.float()).reshape(-1)
    pairs = document_pairs(queries)
    return _masked_sum((errors[:, None] - errors[None, :]).square(), pairs)


def document_pairs(queries: torch.Tensor) -> torch.Tensor:
    """Return which pairs (rows, rows) of rows are documents of the same query, each pair once."""
    return queries[:, None].eq(queries[None, :]).triu(diagonal=1)


# ---- intermediate outputs ----


def cosine_distance(
    student_states: torch.Tensor, teacher_states: torch.Tensor, mask: torch.Tensor | None = None
) -> SumAndCount:
    """One minus the cosine similarity of the hidden states.

    | argument | shape | meaning |
    | --- | --- | --- |
    | student_states, teacher_states | (..., size) | hidden states |
    | mask | (...) or None | positions to include; None: all |
    | returns | (), () | sum over the included positions, and their number |

    Computed as half the squared distance of the normalized vectors, which is exactly zero for equal ones.
    Source: Sanh et al. 2019, "DistilBERT", section 3 (cosine embedding loss).
    """
    student, teacher = F.normalize(student_states.float(), dim=-1), F.normalize(teacher_states.float(), dim=-1)
    return _masked_sum((student - teacher).square().sum(-1) / 2, mask)


def attention_loss(
    student_scores: torch.Tensor, teacher_scores: torch.Tensor, mask: torch.Tensor | None = None
) -> SumAndCount:
    """Mean squared error of the attention scores before the softmax, over heads and included keys.

    | argument | shape | meaning |
    | --- | --- | --- |
    | student_scores, teacher_scores | (batch, heads, tokens, tokens) | scaled products of queries and keys |
    | mask | (batch, tokens) or None | tokens to include, as queries and as keys; None: all |
    | returns | (), () | sum over the included tokens, and their number |

    Source: Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding", eq. 7.
    """
    squares = (student_scores.float() - teacher_scores.float()).square().mean(1)  # [batch, queries, keys]
    if mask is None:
        return _masked_sum(squares.mean(-1), None)
    keys = mask.bool()[:, None, :]
    return _masked_sum(squares.masked_fill(~keys, 0.0).sum(-1) / keys.sum(-1).clamp(min=1), mask)


def relation_loss(
    student_states: torch.Tensor, teacher_states: torch.Tensor, heads: int, mask: torch.Tensor | None = None
) -> SumAndCount:
    """Kullback-Leibler divergence of the relations between tokens: the softmax of their scaled dot products.

    | argument | shape | meaning |
    | --- | --- | --- |
    | student_states | (batch, tokens, size) | queries, keys or values of one layer, all heads concatenated |
    | teacher_states | (batch, tokens, teacher size) | the same of the teacher |
    | heads | | number of relation heads, which divides both sizes; the divergence is averaged over them |
    | mask | (batch, tokens) or None | tokens to include; None: all |
    | returns | (), () | sum over the included tokens, and their number |

    The relations are (tokens, tokens), so that sizes and numbers of attention heads may differ.
    Source: Wang et al. 2020, "MiniLM", eq. 7 (values), and Wang et al. 2021, "MiniLMv2", eq. 2 to 6 (relation heads).
    """

    def log_relations(states: torch.Tensor) -> torch.Tensor:
        split = states.float().view(*states.shape[:-1], heads, -1).transpose(1, 2)  # [batch, heads, tokens, head size]
        products = split @ split.transpose(-1, -2) / math.sqrt(split.shape[-1])  # [batch, heads, tokens, tokens]
        if mask is not None:
            products = products.masked_fill(~mask.bool()[:, None, None, :], torch.finfo(products.dtype).min)
        return F.log_softmax(products, dim=-1)

    student, teacher = log_relations(student_states), log_relations(teacher_states)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True)  # [batch, heads, tokens, tokens]
    if mask is not None:
        divergence = divergence.masked_fill(~mask.bool()[:, None, None, :], 0.0)
    return _masked_sum(divergence.sum(-1).mean(1), mask)


def _masked_sum(values: torch.Tensor, mask: torch.Tensor | None) -> SumAndCount:
    if mask is None:
        return values.sum(), torch.full((), values.numel(), device=values.device)
    return values.masked_fill(~mask.bool(), 0.0).sum(), mask.bool().sum()
