"""Settings whose defaults depend on the student: whether it is cut from its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.distillation.layer_pairs import is_pruned
from hf_efficient.models import find_family

DEFAULT_HIDDEN_WEIGHT = 10.0  # the best in scripts/benchmarks/recipe.py


def resolve_defaults(
    config: DistillationConfig, student: PreTrainedModel, teachers: Sequence[PreTrainedModel]
) -> DistillationConfig:
    """Return `config` with a hidden weight and a dropout: as they are, or by default according to the student.

    Without `teachers` the teacher is a copy of the student. A student that is, or will be, cut from its only teacher
    is trained without dropout: it imitates answers that were given without. Its hidden states still resemble the
    teacher's and are compared, unless the outputs are cached.
    """
    is_cut = not teachers or (len(teachers) == 1 and _is_cut_from(student, teachers[0]))
    if config.student_dropout is None and is_cut:
        config = replace(config, student_dropout=0.0)
    if config.hidden_weight is None:
        is_comparable = is_cut and find_family(student.config) is not None and not config.cache_teacher
        config = replace(config, hidden_weight=DEFAULT_HIDDEN_WEIGHT if is_comparable else 0.0)
    return config


def _is_cut_from(student: PreTrainedModel, teacher: PreTrainedModel) -> bool:
    has_same_width = find_family(student.config) is find_family(teacher.config) is not None and (
        student.config.hidden_size == teacher.config.hidden_size
    )
    return has_same_width and is_pruned(student)
