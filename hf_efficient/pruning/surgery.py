"""Physical removal: from a model and a selection of what stays to a smaller model."""

from __future__ import annotations

from transformers import PreTrainedModel

from hf_efficient.models.surgery import keep_only
from hf_efficient.pruning.budget import Selection


def cut(model: PreTrainedModel, selection: Selection) -> PreTrainedModel:
    """Returns a smaller copy of `model` that keeps only `selection`; `model` itself stays as it is.

    Raises TypeError: the family of `model` is unknown, or has no class for its task head.
    """
    return keep_only(model, selection.layers, selection.units)
