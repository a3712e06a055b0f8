"""Checks of a pruning before any work is done."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.errors import UserError
from hf_efficient.measurement.runtimes import check_runtime
from hf_efficient.models import family_of, is_quantized
from hf_efficient.pruning.config import PruningConfig

logger = logging.get_logger(__name__)


def check_prunable(model: PreTrainedModel, config: PruningConfig) -> None:
    """Check what cannot work before any of the work is done.

    Raises ValueError: `config` asks for nothing or for a stack or runtime that there is not, or `model` is quantized.
    Raises TypeError: the architecture, or its task head, is unknown.
    """
    if is_quantized(model):
        raise UserError("a quantized model cannot be pruned: prune its float form, then quantize")
    if not config.active:
        raise UserError(
            "the PruningConfig asks for nothing: give a target (target_speedup=2), a fraction (layers=0.5) or "
            "connections (weights=0.5)"
        )
    family = family_of(model)
    family.class_for(type(model), model.config)
    config.check_stacks(tuple(family.stacks(model)))
    check_runtime(config.latency_runtime)
    if config.target_generation_speedup is not None and not model.can_generate():
        raise UserError(
            f"target_generation_speedup is about models that write, {type(model).__name__} writes nothing: give "
            "target_speedup"
        )
