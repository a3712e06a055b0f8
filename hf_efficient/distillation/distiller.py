"""The loss between a student and its teacher, as the terms that a config gives a weight."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.distillation.activations import Activations, capture_activations, token_masks
from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.distillation.embeddings import EmbeddingLosses
from hf_efficient.distillation.intermediate import STUDENT, TEACHER, IntermediateLosses
from hf_efficient.distillation.losses import LossTerm, document_pairs, margin_error
from hf_efficient.distillation.teacher import Teacher
from hf_efficient.distillation.teacher_cache import read_cached_outputs
from hf_efficient.errors import UserError
from hf_efficient.models.inputs import QUERY

Batch = Mapping[str, torch.Tensor]
SOFT_LABEL_UNIT, PAIR_UNIT = "soft", "pairs of documents"
PROJECTIONS_NAME = "projections.safetensors"


def check_same_task(student: PreTrainedModel, teacher: PreTrainedModel, shares_tokens: bool = True) -> None:
    """Check that student and teacher have the same vocabulary and the same labels. Raises UserError if not.

    `shares_tokens`: the teacher reads the tokens of the student, and not the texts by a tokenizer of its own.
    """
    student_config, teacher_config = student.config, teacher.config
    if shares_tokens and student_config.vocab_size != teacher_config.vocab_size:
        raise UserError(
            f"the teacher has a vocabulary of {teacher_config.vocab_size} tokens and the student one of "
            f"{student_config.vocab_size}: they must share a tokenizer"
        )
    has_same_labels = student_config.num_labels == teacher_config.num_labels and (
        _label_names(student_config.id2label) == _label_names(teacher_config.id2label)
    )
    if not has_same_labels:
        raise UserError(
            f"the teacher predicts {teacher_config.id2label} and the student {student_config.id2label}: give both the "
            "same label map (id2label in config.json), in the same order"
        )


def _label_names(id2label: Mapping[int, str]) -> dict[int, str] | None:
    """Return the label map; None if it has only the default names of transformers."""
    if all(name == f"LABEL_{index}" for index, name in id2label.items()):
        return None
    return {int(index): name.lower() for index, name in id2label.items()}


class Distiller(nn.Module):
    """Computes the loss between a student and its teacher, as the terms that `config` gives a weight.

    Usage: `prepare(student)`; then for each batch run the student inside `capture()` and call the distiller.
    `projections` between different widths are parameters of this module, not of the student.

    Raises UserError if the config needs logits of a teacher without a task head, or intermediate outputs of several
    teachers.
    """

    def __init__(self, teacher: Teacher, config: DistillationConfig) -> None:
        super().__init__()
        self.teacher, self.config = teacher, config
        self.intermediate = IntermediateLosses(teacher.model, config)
        self.projections = self.intermediate.projections
        head = teacher.head_outputs
        self.embeddings: EmbeddingLosses | None = None
        if head is not None and head.predicts_embeddings:
            self.embeddings = EmbeddingLosses(teacher.model, config, self.projections)
        elif config.keep_projection:
            raise UserError(
                f"keep_projection keeps a projection of sentence embeddings, and {type(teacher.model).__name__} is no "
                "embedder: leave it out"
            )
        if config.margin_weight and not (head is not None and head.predicts_numbers):
            raise UserError(
                f"margin_weight compares scores of documents, and {type(teacher.model).__name__} has no single output "
                "that is one: leave it out, or give a reranker"
            )
        if config.uses_logits and head is None:
            raise UserError(
                f"{type(teacher.model).__name__} has no task head, so it has no logits to compare: set "
                "logits_weight=0, and hidden_weight or relation_weight above 0"
            )
        if config.uses_intermediate_outputs and len(teacher.models) > 1:
            raise UserError(
                f"there are {len(teacher.models)} teachers, but hidden states, embeddings, attention and relations "
                "are compared with one: give one teacher, or use soft labels only"
            )

    def prepare(self, student: PreTrainedModel) -> None:
        """Prepare the comparison with `student`: map its layers to the teacher's, create missing projections.

        An explicit layer map refers to the layers of the first student that this is called with.

        Raises UserError if the layers cannot be mapped, or if attention is compared but no mapped layer has heads.
        """
        self.intermediate.prepare(student)
        if self.embeddings is not None:
            self.embeddings.prepare(student)

    def save_projections(self, folder: str | os.PathLike[str]) -> None:
        """Write the projections into `folder`, to resume training; the student itself does not need them."""
        state = self.projections.state_dict()
        if state:
            save_file({name: value.contiguous() for name, value in state.items()}, Path(folder) / PROJECTIONS_NAME)

    def load_projections(self, folder: str | os.PathLike[str]) -> None:
        """Load the projections that `save_projections` wrote for the same student and teacher."""
        if len(self.projections):
            self.projections.load_state_dict(load_file(Path(folder) / PROJECTIONS_NAME))

    def counts(self, inputs: Batch) -> dict[str, torch.Tensor]:
        """Return what the sums over a batch are divided by, for each unit of `LossTerm`, each of shape ()."""
        counts = {}
        is_counted = self.config.uses_logits or self.embeddings is not None
        if is_counted and self.teacher.head_outputs is not None:
            counts[SOFT_LABEL_UNIT] = self.teacher.head_outputs.count(inputs)
        if self.config.margin_weight and QUERY in inputs:
            counts[PAIR_UNIT] = document_pairs(inputs[QUERY]).sum()
        return counts | {stack: mask.sum() for stack, mask in token_masks(inputs, self.intermediate.stacks).items()}

    def capture(self) -> AbstractContextManager[Activations]:
        """Return a context that captures the activations of one forward pass of the student."""
        keys = self.intermediate.required_activations(STUDENT)
        return capture_activations(self.intermediate.student, keys) if keys else nullcontext({})

    def comparable(self, outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return the outputs of the student in the size of the teacher's: embeddings may have another one."""
        return outputs if self.embeddings is None else self.embeddings.project(outputs)

    def forward(self, inputs: Batch, outputs: Any, activations: Activations, progress: float = 0.0) -> list[LossTerm]:
        """Return the terms of the loss between student and teacher on a batch.

        | argument | meaning |
        | --- | --- |
        | inputs | the batch, with the teacher's outputs if they are cached |
        | outputs, activations | the outputs of the student, and what `capture` yielded |
        | progress | the fraction of the training that is done, in [0, 1] |

        Raises UserError if student and teacher have different tokens or labels.
        """
        config, head, intermediate = self.config, self.teacher.head_outputs, self.intermediate
        keys = intermediate.required_activations(TEACHER)
        temperature, weight = config.value_at("temperature", progress), config.value_at("logits_weight", progress)
        cached = None
        if not keys and head is not None:
            cached = read_cached_outputs(inputs, outputs, head.outputs, temperature)
        if cached is not None:
            student_outputs, teacher_outputs = cached
        else:
            student_outputs = outputs
            teacher_outputs, teacher_activations = self.teacher.predict(inputs, keys)
        terms = []
        if weight and head is not None:
            loss = head.loss(self.comparable(student_outputs), teacher_outputs, temperature, inputs)
            terms.append(LossTerm("soft_label_loss", weight, loss, SOFT_LABEL_UNIT))
        if config.margin_weight:
            margin, _ = margin_error(student_outputs["logits"], teacher_outputs["logits"], _queries_of(inputs))
            terms.append(LossTerm("margin_loss", config.margin_weight, margin, PAIR_UNIT))
        if self.embeddings is not None:
            terms += self.embeddings.terms(student_outputs, teacher_outputs, weight, SOFT_LABEL_UNIT)
        if keys:
            masks = token_masks(inputs, intermediate.stacks)
            for stack in intermediate.stacks:
                terms += intermediate.terms(stack, masks[stack], activations, teacher_activations)
        return terms


def _queries_of(inputs: Batch) -> torch.Tensor:
    """Return the number of the query of each row, (rows,). Raises UserError if the batch has none."""
    if QUERY not in inputs:
        raise UserError(
            f"margin_weight compares documents of the same query, and the batches have {', '.join(inputs)}, but no "
            f"column {QUERY!r}: use the task text-ranking, or add numbers of the queries"
        )
    return inputs[QUERY]
