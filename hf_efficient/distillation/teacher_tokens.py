"""A teacher with a tokenizer of its own: the texts in its tokens, as further columns of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets

from hf_efficient.distillation.teacher import INPUTS, PREFIX, has_teacher_inputs
from hf_efficient.distillation.teacher_cache import Collator

TEACHER_INPUTS = tuple(f"{PREFIX}{name}" for name in INPUTS)


def add_teacher_tokens(rows: Dataset, rows_of_teacher: Dataset) -> Dataset:
    """Return tokenized rows with the tokens of the same rows by the teacher's tokenizer."""
    columns = [name for name in INPUTS if name in rows_of_teacher.column_names]
    own = rows_of_teacher.select_columns(columns).rename_columns({name: f"{PREFIX}{name}" for name in columns})
    return concatenate_datasets([rows, own], axis=1)


class TeacherTokensCollator:
    """Makes batches with the tokens of student and teacher, each padded by the collator of its own tokenizer."""

    def __init__(self, collator: Collator, teacher_collator: Collator) -> None:
        self.collator, self.teacher_collator = collator, teacher_collator

    def __call__(self, examples: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
        """Return the batch; the columns of the teacher's tokens have "teacher_" in front of their names."""
        shared = [
            {name: value for name, value in example.items() if name not in TEACHER_INPUTS} for example in examples
        ]
        batch = dict(self.collator(shared))
        if not has_teacher_inputs(examples[0]):
            return batch
        own = [
            {name.removeprefix(PREFIX): value for name, value in example.items() if name in TEACHER_INPUTS}
            for example in examples
        ]
        return batch | {f"{PREFIX}{name}": value for name, value in self.teacher_collator(own).items()}
