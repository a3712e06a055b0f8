"""Rounding of weights to integers: each to the nearest, or so that the errors of outputs compensate each other."""

from __future__ import annotations

import torch

BLOCK_COLUMNS = 64
DAMPING = 0.01


def quantize_rows(weight: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize each row of `weight` (rows, columns) symmetrically, to integers from -`limit` to `limit`.

    Return the integers (rows, columns) in float32 and the scales (rows, 1), 1 for a row of zeros.
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(-1, keepdim=True) / limit
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale).round().clamp(-limit, limit), scale


def round_with_compensation(
    weight: torch.Tensor, scale: torch.Tensor, second_moments: torch.Tensor, limit: int
) -> torch.Tensor:
    """Return integers for `weight` whose products with the inputs differ little from those of `weight`.

    The columns are rounded one after the other, and the columns that follow make up for the error of each.

    | argument | shape | meaning |
    | --- | --- | --- |
    | weight | (rows, columns) | |
    | scale | (rows, 1) | value of the integer 1 |
    | second_moments | (columns, columns) | sum of the products of the inputs with each other |
    | returns | (rows, columns) | integers from -`limit` to `limit`, in float32 |

    Source: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    algorithm 1.
    """
    columns = weight.shape[1]
    moments = second_moments.to(weight.device, torch.float64)
    mean = moments.diagonal().mean()
    if not float(mean) > 0:  # the inputs are zero
        return (weight / scale).round().clamp(-limit, limit)
    moments = moments + DAMPING * mean * torch.eye(columns, dtype=moments.dtype, device=moments.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    remaining, integers = weight.float().clone(), torch.zeros_like(weight, dtype=torch.float32)
    for start in range(0, columns, BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, columns)
        errors = torch.zeros_like(remaining[:, start:stop])
        for column in range(start, stop):
            values = remaining[:, column : column + 1]
            rounded = (values / scale).round().clamp(-limit, limit)
            integers[:, column : column + 1] = rounded
            error = (values - rounded * scale) / factor[column, column]
            errors[:, column - start : column - start + 1] = error
            remaining[:, column + 1 : stop] -= error * factor[column, column + 1 : stop]
        remaining[:, stop:] -= errors @ factor[start:stop, stop:]
    return integers
