"""What a student is asked to match: pure functions that return (sum, count), so that accumulation can be exact."""

from __future__ import annotations

import torch
from torch.nn import functional as F

SumAndCount = tuple[torch.Tensor, torch.Tensor]


def soft_label_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float, mask: torch.Tensor | None = None
) -> SumAndCount:
    """Kullback-Leibler divergence of the student's softened distribution from the teacher's, times T squared.

    | argument | shape | meaning |
    | --- | --- | --- |
    | student_logits, teacher_logits | (..., classes) | unnormalised |
    | mask | (...) or None | positions that count; None: all |
    | returns | (), () | sum over the positions that count, and their number |

    The factor T squared keeps the gradients of soft and hard labels in proportion when T changes.
    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.1.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)  # [..., classes]
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)  # [..., classes]
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)  # [...]
    return _masked_sum(divergence * temperature**2, mask)


def squared_error(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, mask: torch.Tensor | None = None
) -> SumAndCount:
    """Squared difference of student and teacher, for regression heads.

    | argument | shape | meaning |
    | --- | --- | --- |
    | student_logits, teacher_logits | (..., outputs) | predicted values; their mean over outputs is taken |
    | mask | (...) or None | positions that count; None: all |
    | returns | (), () | sum over the positions that count, and their number |

    Source: Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", eq. 1.
    """
    return _masked_sum((student_logits.float() - teacher_logits.float()).square().mean(-1), mask)


def _masked_sum(values: torch.Tensor, mask: torch.Tensor | None) -> SumAndCount:
    if mask is None:
        return values.sum(), torch.tensor(values.numel(), device=values.device)
    return values.masked_fill(~mask.bool(), 0.0).sum(), mask.bool().sum()
