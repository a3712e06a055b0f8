"""Recovery without training: what is left of a block is fitted to what the whole block wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_efficient.models import Block, family_of
from hf_efficient.pruning.batches import Batch, eval_mode, non_padding_mask, require_batches
from hf_efficient.pruning.selection import Selection

DAMPING = 1e-2
RECONSTRUCTION_SAMPLES = 1024


class _StopForward(Exception):  # noqa: N818 (no error: the rest of a forward pass is not needed)
    """The last block that was asked for has been computed."""


def reconstruct_outputs(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    selection: Selection,
    batches: Sequence[Batch],
    damping: float = DAMPING,
) -> None:
    """Fits, in place, each output projection of `student` so that its hidden states come close to the teacher's.

    | argument | meaning |
    | --- | --- |
    | student | `cut(teacher, selection)` |
    | batches | calibration data, tensors by name; labels are not used |
    | damping | how much the fit is held to the weights that are there, in units of the mean square of the inputs |

    Block after block, and so on inputs that are corrected already, W and b minimize over the tokens, padding left out,

        sum of |W x + b + r - s|^2 + damping * mean |x|^2 * |(W, b) - (W0, b0)|^2

    where x is what is left of the units, r the student's residual stream before the block and s the teacher's after
    it, so that the errors of earlier blocks are made up for too. Solved by the Cholesky factors of the damped normal
    equations, which are positive definite, in double precision. A network of which nothing was removed stays as it is.

    Raises ValueError: there is no batch.
    Source: Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", section 4.3, and Kurtic et al.
    2023, "ZipLM", section 3.1, for whole matrices instead of masks and with the residual stream as the aim.
    """
    family = family_of(teacher)
    theirs, ours = family.blocks(teacher), family.blocks(student)
    before: dict[str, int] = {}
    pruned = False
    with torch.no_grad(), eval_mode(student), eval_mode(teacher):
        for source in selection.layers:
            stack = source.partition(".")[0]
            layer = f"{stack}.{before.get(stack, 0)}"
            before[stack] = before.get(stack, 0) + 1
            pruned = pruned or source != layer
            pairs = [
                (block, theirs[name.replace(layer, source, 1)]) for name, block in ours.items() if block.layer == layer
            ]
            pruned = pruned or any(block.units != whole.units for block, whole in pairs)
            if pruned:
                aims = _residual_streams(teacher, [whole for _, whole in pairs], batches)
                for (block, _), aim in zip(pairs, aims, strict=True):
                    _fit(student, block, aim, batches, damping)


def _residual_streams(
    model: PreTrainedModel, blocks: Sequence[Block], batches: Sequence[Batch]
) -> list[list[torch.Tensor]]:
    """Return, for each of the blocks of a layer and each batch, the residual stream after it, (tokens, size)."""
    streams: list[list[torch.Tensor]] = [[] for _ in blocks]
    seen: list[torch.Tensor] = []

    def see(stream: torch.Tensor) -> None:
        seen.append(stream)
        if len(seen) == len(blocks):
            raise _StopForward

    with _capture_residual(blocks, see):
        for batch in require_batches(batches):
            seen.clear()
            _run(model, batch)
            for kept, block, stream in zip(streams, blocks, seen, strict=True):
                kept.append(stream[non_padding_mask(batch, stream, block.layer.startswith("decoder"))])
    return streams


def _fit(
    model: PreTrainedModel, block: Block, aims: Sequence[torch.Tensor], batches: Sequence[Batch], damping: float
) -> None:
    """Replaces the weights of the block's output by the damped least squares fit to the streams `aims`."""
    output: Any = block.output
    parts = [output.weight.T] if block.units else []
    parts += [] if output.bias is None else [output.bias[None]]
    if not parts:
        return
    start = torch.cat(parts).double()  # [inputs (+ 1), size]
    gram, moments = start.new_zeros(len(start), len(start)), torch.zeros_like(start)
    seen: list[torch.Tensor] = []

    def see(stream: torch.Tensor) -> None:
        seen.append(stream)
        raise _StopForward

    with _capture_residual([block], see, writing=lambda module, args, written: seen.extend((args[0], written))):
        for batch, aim in zip(batches, aims, strict=True):
            seen.clear()
            _run(model, batch)
            real = non_padding_mask(batch, seen[-1], block.layer.startswith("decoder"))
            read, written, stream = (values[real].float() for values in seen)
            lacking = aim.float() - stream + written  # [tokens, size]
            ones = lacking.new_ones(len(lacking), 0 if output.bias is None else 1)
            inputs = torch.cat([read[:, : output.in_features], ones], dim=1)  # [tokens, inputs (+ 1)]
            gram += inputs.T @ inputs
            moments += inputs.T @ lacking
    damped = gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device) * max(
        damping * float(gram.diagonal().mean()), torch.finfo(torch.float32).tiny
    )
    fitted = start + torch.cholesky_solve(moments - gram @ start, torch.linalg.cholesky(damped))
    if block.units:
        output.weight.copy_(fitted[: output.in_features].T)
    if output.bias is not None:
        output.bias.copy_(fitted[-1])


def _run(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> None:
    """Run `model` until a hook has what it wants."""
    with _until_reached():
        model(**batch)


@contextmanager
def _until_reached() -> Iterator[None]:
    try:
        yield
    except _StopForward:
        return


@contextmanager
def _capture_residual(
    blocks: Sequence[Block], see: Callable[[torch.Tensor], None], writing: Callable[..., None] | None = None
) -> Iterator[None]:
    """Shows `see` the residual stream after each of `blocks`, (rows, tokens, size), as long as the context lasts.

    `writing` is a forward hook of what reads their units.
    """
    handles = []
    for block in blocks:
        if writing is not None:
            handles.append(block.output.register_forward_hook(writing))
        if block.norm is not None:
            handles.append(block.norm.register_forward_pre_hook(lambda module, args: see(args[0])))
        else:
            handles.append(
                block.owner.register_forward_hook(
                    lambda module, args, output: see(output[0] if isinstance(output, tuple) else output)
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
