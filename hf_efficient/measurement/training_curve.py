"""The course of a training: agreement with the teacher on held-out training rows, against the steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingPoint:
    """One look at a student while it is trained.

    | field | meaning |
    | --- | --- |
    | round | the training run that it belongs to: rounds of pruning have one each |
    | step | optimizer steps of that run so far |
    | agreement | share of the predictions that equal the teacher's; for numbers their correlation |
    | loss | distance between the outputs of student and teacher, at temperature 1; None: not computed |
    """

    round: int
    step: int
    agreement: float
    loss: float | None = None
