"""Checks of a model and a config before any pruning is done."""

from __future__ import annotations

from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.models import class_for, family_of, is_quantized
from hf_efficient.pruning.config import PruningConfig


def check_prunable(model: PreTrainedModel, config: PruningConfig) -> None:
    """Check that `model` can be pruned as `config` requests.

    Raises UserError if `config` requests nothing or names a stack that `model` does not have, or if `model` is
    quantized; UnsupportedModelError if the architecture or the task head is not supported.
    """
    if is_quantized(model):
        raise UserError("a quantized model cannot be pruned: prune its float weights, then quantize")
    if not config.removes_anything:
        raise UserError(
            "the PruningConfig requests nothing: give a target (target_speedup=2), a fraction (layers=0.5) or "
            "connections (weights=0.5)"
        )
    family = family_of(model)
    class_for(model, model.config)
    config.check_stacks(tuple(family.stacks(model)))
    repetitions = family.repetitions(model.config)
    if config.layers and repetitions > 1 and len(family.layers(model)) == 1:
        raise UserError(
            f"layers={config.layers!r}: {type(model).__name__} repeats one layer {repetitions} times, and no layer "
            "can be removed: give heads and neurons, which are removed in all repetitions, or a target"
        )
    if config.target_generation_speedup is not None and not model.can_generate():
        raise UserError(
            f"target_generation_speedup is for models that generate text, which {type(model).__name__} does not: give "
            "target_speedup"
        )
