"""Whether weights are numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from hf_efficient.errors import UserError


def find_non_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Return the name of the first of `weights` that has an entry that is NaN or infinite, or None."""
    names, are_finite = [], []
    for name, weight in weights:
        if weight.is_floating_point() and weight.device.type != "meta":
            names.append(name)
            are_finite.append(torch.isfinite(weight.detach()).all())
    by_device = {flag.device for flag in are_finite}
    if len(by_device) == 1 and bool(torch.stack(are_finite).all()):  # one synchronization
        return None
    return next((name for name, flag in zip(names, are_finite, strict=True) if not flag), None)


def check_finite_weights(model: nn.Module, title: str) -> None:
    """Raise UserError, with the name of a tensor, if the model called `title` has weights that are NaN or infinite."""
    name = find_non_finite([*model.named_parameters(), *model.named_buffers()])
    if name is not None:
        raise UserError(
            f"{title} has weights that are NaN or infinite, in {name}: its training failed, or its file is damaged; "
            "give another one"
        )
