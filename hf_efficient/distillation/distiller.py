"""A frozen teacher and what the student learns from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.distillation.objectives import SumAndCount, soft_label_loss, squared_error

TEACHER_LOGITS = "teacher_logits"


@dataclass(frozen=True)
class DistillationConfig:
    """How much of the loss comes from the teacher, and how soft its labels are.

    Raises ValueError: a field is out of its range.
    """

    temperature: float = field(
        default=2.0,
        metadata={"help": "Divides the logits of teacher and student; larger shows more of the dark knowledge."},
    )
    hard_label_weight: float = field(default=0.5, metadata={"help": "Weight of the task's own loss on the labels."})
    logits_weight: float = field(
        default=0.5, metadata={"help": "Weight of the distance to the teacher's soft labels."}
    )
    cache_teacher: bool = field(
        default=False, metadata={"help": "Ask the teacher once for every example, before training."}
    )

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0; usual values lie between 1 and 10")
        for name in ("hard_label_weight", "logits_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not self.hard_label_weight and not self.logits_weight:
            raise ValueError(
                "hard_label_weight and logits_weight are both 0: nothing would be learned; give one a weight"
            )


def check_same_task(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raises ValueError: teacher and student read other tokens or predict other labels, so nothing compares."""
    ours, theirs = student.config, teacher.config
    if ours.vocab_size != theirs.vocab_size:
        raise ValueError(
            f"the teacher has a vocabulary of {theirs.vocab_size} tokens and the student one of {ours.vocab_size}: "
            "they must share a tokenizer"
        )
    if ours.num_labels != theirs.num_labels or _named(ours.id2label) != _named(theirs.id2label):
        raise ValueError(
            f"the teacher predicts {theirs.id2label} and the student {ours.id2label}: give both the same label map "
            "(id2label in config.json), in the same order"
        )


def _named(id2label: Mapping[int, str]) -> dict[int, str] | None:
    """Returns the label map, or None when it only holds the names that transformers makes up."""
    if all(name == f"LABEL_{index}" for index, name in id2label.items()):
        return None
    return {int(index): name for index, name in id2label.items()}


class Distiller(nn.Module):
    """Holds a teacher, frozen and in eval mode whatever happens around it, and compares students with it.

    `token_ids` (student's vocabulary,) holds the teacher's id of each of the student's tokens; None: the same.

    Raises ValueError: the teacher answers questions or predicts several labels at once.
    """

    def __init__(
        self, teacher: PreTrainedModel, config: DistillationConfig, token_ids: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        if (
            teacher.config.problem_type == "multi_label_classification"
            or "QuestionAnswering" in type(teacher).__name__
        ):
            raise ValueError(
                f"soft labels of {type(teacher).__name__} are not one distribution a row or token, which is what is "
                "compared: train without distillation"
            )
        self.teacher = teacher.eval().requires_grad_(False)
        self.config = config
        self.token_ids = None if token_ids is None else token_ids.to(teacher.device)
        self.encodes_labels = bool(teacher.config.is_encoder_decoder and teacher.can_generate())
        self.regression = teacher.config.problem_type == "regression" or teacher.config.num_labels == 1

    def train(self, mode: bool = True) -> Distiller:
        """Leaves the teacher in eval mode."""
        return self

    @staticmethod
    def count(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns how many positions of a batch are compared, shape (): tokens with a label, or else examples."""
        labels = inputs.get("labels")
        if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
            return labels.ne(-100).sum()
        return torch.tensor(next(iter(inputs.values())).shape[0])

    @torch.no_grad()
    def ask(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the teacher's logits on `inputs`, in the student's tokens."""
        # T5 makes its decoder's inputs of the labels, the others take no notice of them here.
        known = {name: value for name, value in inputs.items() if "label" not in name or self.encodes_labels}
        if self.token_ids is not None:
            for name in known.keys() & {"input_ids", "decoder_input_ids", "labels"}:
                ids = known[name]
                known[name] = torch.where(ids < 0, ids, self.token_ids[ids.clamp(min=0)])
        outputs: Any = self.teacher(**known)
        logits: torch.Tensor = outputs.logits
        if self.token_ids is not None and logits.shape[-1] == self.teacher.config.vocab_size:
            logits = logits[..., self.token_ids]
        return logits

    def forward(self, inputs: Mapping[str, torch.Tensor], student_logits: torch.Tensor) -> SumAndCount:
        """Returns the sum of the distances to the teacher's soft labels over the batch, and their `count`."""
        teacher_logits = inputs.get(TEACHER_LOGITS)
        if teacher_logits is None:
            teacher_logits = self.ask(inputs)
        if self.regression:
            return squared_error(student_logits, teacher_logits)
        labels = inputs.get("labels")
        mask = labels.ne(-100) if labels is not None and student_logits.dim() == 3 else None
        return soft_label_loss(student_logits, teacher_logits, self.config.temperature, mask)
