"""Whether the weights of a model are numbers."""

from __future__ import annotations

import torch
from torch import nn

from hf_efficient.errors import UserError


def check_finite_weights(model: nn.Module, name: str) -> None:
    """Raise UserError, with the names of the tensors, if weights of the model called `name` are NaN or infinite."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    damaged = [
        tensor_name
        for tensor_name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.device.type != "meta" and not bool(torch.isfinite(tensor).all())
    ]
    if damaged:
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        raise UserError(
            f"{name} has weights that are NaN or infinite, in {', '.join(damaged[:3])}{more}: its training failed or "
            "its file is damaged; give another checkpoint of it"
        )
