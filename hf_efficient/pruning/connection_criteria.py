"""Criteria for single connections: how much each weight of the blocks of a network matters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.models import family_of
from hf_efficient.models.batches import Batch, eval_mode, example_count, non_padding_mask, require_batches
from hf_efficient.pruning.losses import Loss, example_loss

ConnectionScores = dict[str, torch.Tensor]
# Gradients per example of every weight are slow to compute, and a few hundred rank connections well.
CONNECTION_SAMPLES = 256

# (input, output) of every call of a Linear, by the name of its weight.
Calls = dict[str, list[tuple[torch.Tensor, torch.Tensor]]]


class ConnectionCriterion(Protocol):
    """Scores every connection of `model`; larger matters more, the lowest are removed first.

    | argument | shape | meaning |
    | --- | --- | --- |
    | batches | tensors (batch, ...) by name | inputs, with labels if the loss requires them |
    | loss | () | sum of the losses of a batch's examples |
    | returns | of each weight, by its name | scores |
    """

    def __call__(self, model: PreTrainedModel, batches: Iterable[Batch], loss: Loss) -> ConnectionScores:
        """Return the scores of every weight in `block_linears`; raise UserError if data is required but missing."""
        ...


def block_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the Linears of the attention and feed-forward blocks of `model`, by the names of their weights.

    Embeddings, poolers and task heads are not included.

    Raises UnsupportedModelError if the family of `model` is not supported.
    """
    blocks = family_of(model).blocks(model).values()
    members = {id(module) for block in blocks for module in (*block.input_linears, block.output)}
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if id(module) in members and isinstance(module, nn.Linear)
    }


def magnitude(model: PreTrainedModel, batches: Iterable[Batch] = (), loss: Loss = example_loss) -> ConnectionScores:
    """Score a connection by its magnitude, |w|; needs no data.

    Source: Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", section 3.
    """
    return {name: _magnitudes(linear) for name, linear in block_linears(model).items()}


def wanda(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> ConnectionScores:
    """Score a connection by |w| times the L2 norm of its input over all tokens that are no padding.

    Needs neither labels nor gradients. Intended for comparisons within an output row: the inputs of different Linears
    differ in scale.

    Raises UserError if there are no batches.
    Source: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models", eq. 1.
    """
    linears = block_linears(model)
    squares = {name: torch.zeros(linear.in_features, device=linear.weight.device) for name, linear in linears.items()}
    decoders = {
        id(linear)
        for block in family_of(model).blocks(model).values()
        for linear in (*block.input_linears, block.output)
        if block.layer.startswith("decoder")
    }
    with eval_mode(model):
        for batch in require_batches(batches):
            with torch.no_grad(), _record_calls(linears) as calls:
                model(**batch)
            for name, pairs in calls.items():
                for inputs, _ in pairs:
                    mask = non_padding_mask(batch, inputs, id(linears[name]) in decoders)
                    squares[name] += inputs[mask].float().square().sum(0)
    return {name: _magnitudes(linear) * squares[name].sqrt() for name, linear in linears.items()}


def taylor(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> ConnectionScores:
    """Score a connection by the mean over examples of |g w|: the first-order change of an example's loss.

    Raises UserError if there are no batches.
    Source: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", eq. 8, before squaring.
    """
    means = _mean_over_examples(model, batches, loss, torch.abs)
    return {name: _magnitudes(linear) * means[name] for name, linear in block_linears(model).items()}


def fisher(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> ConnectionScores:
    """Score a connection by the mean over examples of g^2 w^2 / 2, to second order the increase of the loss.

    Raises UserError if there are no batches.
    Source: LeCun et al. 1989, "Optimal Brain Damage", eq. 5, at a minimum, with the Fisher information as the Hessian.
    """
    means = squared_gradients(model, batches, loss)
    return {name: _magnitudes(linear).square() * means[name] / 2 for name, linear in block_linears(model).items()}


def squared_gradients(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> ConnectionScores:
    """Return the mean over examples of g^2, the diagonal of the empirical Fisher information, of every connection.

    Raises UserError if there are no batches.
    """
    return _mean_over_examples(model, batches, loss, torch.square)


def snip(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> ConnectionScores:
    """Score a connection by |g w|, g the gradient of the mean loss; intended for networks before training.

    Raises UserError if there are no batches.
    Source: Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", eq. 6.
    """
    means = _mean_over_examples(model, batches, loss, torch.positive)
    return {name: _magnitudes(linear) * means[name].abs() for name, linear in block_linears(model).items()}


def movement(
    model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss, learning_rate: float = 0.01
) -> ConnectionScores:
    """Score a connection by the sum of -(g w) over training steps: negative for weights that move towards zero.

    A copy is trained, one step of SGD per batch, without dropout, with gradients clipped to a norm of 1. Weights that
    are zero stay zero, and their score is 0.

    Raises UserError if there are no batches.
    Source: Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", eq. 3.
    """
    student = copy.deepcopy(model).requires_grad_(True).eval()
    weights = {name: linear.weight for name, linear in block_linears(student).items()}
    zeros = {name: weight == 0 for name, weight in weights.items()}
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    optimizer = torch.optim.SGD(student.parameters(), lr=learning_rate)
    for batch in require_batches(batches):
        optimizer.zero_grad()
        with torch.enable_grad():
            torch.autograd.backward(loss(student, batch) / example_count(batch))
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        with torch.no_grad():
            for name, weight in weights.items():
                if weight.grad is not None:
                    sums[name] -= weight.grad * weight
            optimizer.step()
            for name, weight in weights.items():
                weight.masked_fill_(zeros[name], 0)
    return {name: total.detach() for name, total in sums.items()}


def random(model: PreTrainedModel, batches: Iterable[Batch] = (), loss: Loss = example_loss) -> ConnectionScores:
    """Score connections by random numbers in [0, 1) from a fixed seed: the baseline for all other criteria."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(linear.weight.shape, generator=generator).to(linear.weight.device)
        for name, linear in block_linears(model).items()
    }


def _magnitudes(linear: nn.Linear) -> torch.Tensor:
    return linear.weight.detach().float().abs()


@contextmanager
def _record_calls(linears: Mapping[str, nn.Linear]) -> Iterator[Calls]:
    """Record the calls of `linears` within the context, by their names."""
    calls: Calls = {name: [] for name in linears}

    def record(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if torch.is_grad_enabled() and not output.requires_grad:
                output.requires_grad_()  # the model is frozen
            calls[name].append((args[0].detach(), output))

        return hook

    handles = [linear.register_forward_hook(record(name)) for name, linear in linears.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _mean_over_examples(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    loss: Loss,
    function: Callable[[torch.Tensor], torch.Tensor],
) -> ConnectionScores:
    """Return, for every weight, the mean over examples of `function` of the gradient of each.

    One backward pass per batch computes the gradients of the outputs of the Linears. The gradient of a weight for one
    example is the product of those with its inputs; only one such matrix is in memory at a time.
    """
    linears = block_linears(model)
    sums = {name: torch.zeros_like(linear.weight, dtype=torch.float32) for name, linear in linears.items()}

    def add(batch: Batch) -> None:
        rows = example_count(batch)
        with torch.enable_grad(), _record_calls(linears) as calls:
            total = loss(model, batch)
            outputs = [output for pairs in calls.values() for _, output in pairs]
            if any(output.shape[0] % rows for output in outputs):
                # A Linear also reads what all examples share, such as DeBERTa's positions: one example at a time.
                for row in range(rows):
                    add({name: values[row : row + 1] for name, values in batch.items()})
                return
            gradients = iter(torch.autograd.grad(total, outputs, materialize_grads=True))
        for name, pairs in calls.items():
            # A multiple choice head makes a row of every choice: those of an example belong together.
            inputs = torch.cat([each.reshape(rows, -1, each.shape[-1]) for each, _ in pairs], 1)
            output_gradients = torch.cat(
                [next(gradients).reshape(rows, -1, output.shape[-1]) for _, output in pairs], 1
            )
            for row in range(rows):
                sums[name] += function((output_gradients[row].T @ inputs[row]).float())

    examples = 0
    with eval_mode(model):
        for batch in require_batches(batches):
            add(batch)
            examples += example_count(batch)
    return {name: total / examples for name, total in sums.items()}
