"""Reconstruction without training: the outputs of pruned blocks are fitted to those of the unpruned ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.models import Block, family_of
from hf_efficient.models.batches import Batch, eval_mode, non_padding_mask, require_batches
from hf_efficient.pruning.selection import Selection

DAMPING = 1e-2
RECONSTRUCTION_SAMPLES = 1024


class _StopForward(Exception):  # noqa: N818 (not an error)
    """The hooks have captured everything: the rest of the forward pass is not needed."""


def reconstruct_outputs(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    selection: Selection,
    batches: Sequence[Batch],
    damping: float = DAMPING,
) -> None:
    """Fit, in place, each output projection of `student` so that its hidden states approximate those of the teacher.

    | argument | meaning |
    | --- | --- |
    | student | `remove_units(teacher, selection)` |
    | batches | calibration data, tensors by name; labels are not used |
    | damping | weight of the distance to the current weights, in units of the mean square of the inputs |

    Blocks are fitted one after the other, on inputs that are already corrected. W and b minimize over all tokens that
    are no padding

        sum of |W x + b + r - s|^2 + damping * mean |x|^2 * |(W, b) - (W0, b0)|^2

    where x are the activations of the kept units, r is the residual stream of the student before the block and s that
    of the teacher after it: errors of earlier blocks are corrected too. Solved by Cholesky decomposition of the damped
    normal equations, which are positive definite, in double precision. Blocks before the first pruned one do not
    change. A layer that a forward pass repeats (ALBERT) is fitted to all repetitions at once.

    Raises UserError if there are no batches, or if the activations are infinite or too large to be fitted.
    Source: Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", section 4.3, and Kurtic et al.
    2023, "ZipLM", section 3.1, for complete matrices instead of masks and with the residual stream as the target.
    """
    family = family_of(teacher)
    teacher_blocks, student_blocks = family.blocks(teacher), family.blocks(student)
    layer_counts: dict[str, int] = {}
    is_pruned = False
    with torch.no_grad(), eval_mode(student), eval_mode(teacher):
        for teacher_layer in selection.layers:
            stack = teacher_layer.partition(".")[0]
            student_layer = f"{stack}.{layer_counts.get(stack, 0)}"
            layer_counts[stack] = layer_counts.get(stack, 0) + 1
            pairs = [
                (block, teacher_blocks[name.replace(student_layer, teacher_layer, 1)])
                for name, block in student_blocks.items()
                if block.layer == student_layer
            ]
            is_pruned = is_pruned or teacher_layer != student_layer
            is_pruned = is_pruned or any(block.units != teacher_block.units for block, teacher_block in pairs)
            if is_pruned:
                targets = _residual_streams(teacher, [teacher_block for _, teacher_block in pairs], batches)
                for (block, _), block_targets in zip(pairs, targets, strict=True):
                    _fit(student, block, block_targets, batches, damping)


def _residual_streams(
    model: PreTrainedModel, blocks: Sequence[Block], batches: Sequence[Batch]
) -> list[list[torch.Tensor]]:
    """Return, for each of the blocks of a layer and each batch, the residual stream after it, (tokens, size)."""
    streams: list[list[torch.Tensor]] = [[] for _ in blocks]
    captured: list[torch.Tensor] = []
    repetitions = family_of(model).repetitions(model.config)

    def capture(stream: torch.Tensor) -> None:
        captured.append(stream)
        if len(captured) == len(blocks) * repetitions:
            raise _StopForward

    with _capture_residual(blocks, capture):
        for batch in require_batches(batches):
            captured.clear()
            _run_until_stopped(model, batch)
            for number, (block_streams, block) in enumerate(zip(streams, blocks, strict=True)):
                mask = _token_mask(batch, captured[number], block)
                block_streams.append(torch.cat([stream[mask] for stream in captured[number :: len(blocks)]]))
    return streams


def _fit(
    model: PreTrainedModel, block: Block, targets: Sequence[torch.Tensor], batches: Sequence[Batch], damping: float
) -> None:
    """Replace the output projection of `block` by the damped least squares fit to the streams `targets`."""
    output: Any = block.output
    parameters = [output.weight.T] if block.units else []
    parameters += [] if output.bias is None else [output.bias[None]]
    if not parameters:
        return
    initial = torch.cat(parameters).double()  # [inputs (+ 1), size]
    gram, moments = initial.new_zeros(len(initial), len(initial)), torch.zeros_like(initial)
    captured: list[torch.Tensor] = []
    repetitions = family_of(model).repetitions(model.config)

    def capture_projection(module: Any, args: tuple[torch.Tensor, ...], projected: torch.Tensor) -> None:
        captured.extend((args[0], projected))

    def capture_stream(stream: torch.Tensor) -> None:
        captured.append(stream)
        if len(captured) == 3 * repetitions:
            raise _StopForward

    with _capture_residual([block], capture_stream, capture_projection):
        for batch, target in zip(batches, targets, strict=True):
            captured.clear()
            _run_until_stopped(model, batch)
            mask = _token_mask(batch, captured[-1], block)
            units, projected, stream = (
                torch.cat([values[mask] for values in captured[part::3]]).float() for part in range(3)
            )
            missing = target.float() - stream + projected  # [tokens, size]
            ones = missing.new_ones(len(missing), 0 if output.bias is None else 1)
            inputs = torch.cat([units[:, : output.in_features], ones], dim=1)  # [tokens, inputs (+ 1)]
            gram += inputs.T @ inputs
            moments += inputs.T @ missing
    damped = gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device) * max(
        damping * float(gram.diagonal().mean()), torch.finfo(torch.float32).tiny
    )
    factor, failed = torch.linalg.cholesky_ex(damped)
    fitted = initial + torch.cholesky_solve(moments - gram @ initial, factor)
    if int(failed) or not torch.isfinite(fitted.to(parameters[0].dtype)).all():
        raise UserError(
            f"the outputs of {block.layer} cannot be reconstructed: what the model computes from the training data is "
            "infinite, or too large for least squares, so its weights are far too large; give another model, or leave "
            "the reconstruction out by recovery=False"
        )
    if block.units:
        output.weight.copy_(fitted[: output.in_features].T)
    if output.bias is not None:
        output.bias.copy_(fitted[-1])


def _token_mask(batch: Batch, stream: torch.Tensor, block: Block) -> torch.Tensor:
    return non_padding_mask(batch, stream, is_decoder=block.layer.startswith("decoder"))


def _run_until_stopped(model: PreTrainedModel, batch: Batch) -> None:
    """Run `model` until a hook stops it."""
    try:
        model(**batch)
    except _StopForward:
        return


@contextmanager
def _capture_residual(
    blocks: Sequence[Block],
    capture_stream: Callable[[torch.Tensor], None],
    capture_projection: Callable[..., None] | None = None,
) -> Iterator[None]:
    """Call `capture_stream` with the residual stream after each of `blocks`, (rows, tokens, size), within the context.

    `capture_projection` is a forward hook of their output projections.
    """
    handles = []
    for block in blocks:
        if capture_projection is not None:
            handles.append(block.output.register_forward_hook(capture_projection))
        if block.norm is not None:
            handles.append(block.norm.register_forward_pre_hook(lambda module, args: capture_stream(args[0])))
        else:
            handles.append(
                block.owner.register_forward_hook(
                    lambda module, args, output: capture_stream(output[0] if isinstance(output, tuple) else output)
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
