"""Criteria for single connections: how much each weight of a network's blocks matters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.models import family_of
from hf_efficient.pruning.batches import Batch, eval_mode, example_count, non_padding_mask, require_batches
from hf_efficient.pruning.losses import Loss, example_loss

ConnectionScores = dict[str, torch.Tensor]
# Gradients of single examples at every weight are slow, and a few hundred rank connections well.
CONNECTION_SAMPLES = 256

Calls = dict[str, list[tuple[torch.Tensor, torch.Tensor]]]


class ConnectionCriterion(Protocol):
    """Scores every connection of `model`; larger matters more, and what scores lowest goes first."""

    def __call__(self, model: PreTrainedModel, batches: Iterable[Batch], loss: Loss) -> ConnectionScores:
        """Return a tensor of the weight's shape for the name of every weight in `block_linears(model)`."""
        ...


def block_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the Linears of the attention and feed-forward blocks of `model`, by the names of their weights.

    Embeddings, poolers and task heads are not among them.

    Raises TypeError: the family of `model` is unknown.
    """
    blocks = family_of(model).blocks(model).values()
    members = {id(module) for block in blocks for module in (*block.input_linears, block.output)}
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if id(module) in members and isinstance(module, nn.Linear)
    }


def magnitude(model: PreTrainedModel, batches: Iterable[Batch] = (), loss: Loss = example_loss) -> ConnectionScores:
    """Scores a connection by the size of its weight, |w|; needs no data.

    Source: Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", section 3.
    """
    return {name: _size(linear) for name, linear in block_linears(model).items()}


def wanda(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> ConnectionScores:
    """Scores a connection by |w| times the L2 norm of its input over all tokens that are no padding.

    Needs no labels, and no gradients. Made to be compared within an output row: inputs of different Linears differ
    in scale.

    Raises ValueError: there is no batch.
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
    return {name: _size(linear) * squares[name].sqrt() for name, linear in linears.items()}


def taylor(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> ConnectionScores:
    """Scores a connection by the mean over examples of |g w|: the first-order change of an example's loss.

    Raises ValueError: there is no batch.
    Source: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", eq. 8, before squaring.
    """
    means = _mean_over_examples(model, batches, loss, torch.abs)
    return {name: _size(linear) * means[name] for name, linear in block_linears(model).items()}


def fisher(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> ConnectionScores:
    """Scores a connection by the mean over examples of g^2 w^2 / 2: the second-order rise of the loss at a minimum.

    Raises ValueError: there is no batch.
    Source: LeCun et al. 1989, "Optimal Brain Damage", eq. 5, with the diagonal Fisher information as the Hessian.
    """
    means = squared_gradients(model, batches, loss)
    return {name: _size(linear).square() * means[name] / 2 for name, linear in block_linears(model).items()}


def squared_gradients(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> ConnectionScores:
    """Return the mean over examples of g^2, the diagonal of the empirical Fisher information, of every connection.

    Raises ValueError: there is no batch.
    """
    return _mean_over_examples(model, batches, loss, torch.square)


def snip(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> ConnectionScores:
    """Scores a connection by |g w|, g being the gradient of the mean loss: meant for networks before training.

    Raises ValueError: there is no batch.
    Source: Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", eq. 6.
    """
    means = _mean_over_examples(model, batches, loss, torch.positive)
    return {name: _size(linear) * means[name].abs() for name, linear in block_linears(model).items()}


def movement(
    model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss, learning_rate: float = 0.01
) -> ConnectionScores:
    """Scores a connection by the sum of -(g w) over steps of training: low is a weight that moves towards zero.

    A copy is trained, one step of SGD a batch, without dropout, gradients clipped to a norm of 1. Scores have a sign.
    Weights that are zero stay so, and score 0.

    Raises ValueError: there is no batch.
    Source: Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", eq. 3.
    """
    trained = copy.deepcopy(model).requires_grad_(True).eval()
    weights = {name: linear.weight for name, linear in block_linears(trained).items()}
    zeros = {name: weight == 0 for name, weight in weights.items()}
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    optimizer = torch.optim.SGD(trained.parameters(), lr=learning_rate)
    for batch in require_batches(batches):
        optimizer.zero_grad()
        with torch.enable_grad():
            torch.autograd.backward(loss(trained, batch) / example_count(batch))
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        with torch.no_grad():
            for name, weight in weights.items():
                if weight.grad is not None:
                    sums[name] -= weight.grad * weight
            optimizer.step()
            for name, weight in weights.items():
                weight.masked_fill_(zeros[name], 0)
    return {name: total.detach() for name, total in sums.items()}


def random(model: PreTrainedModel, batches: Iterable[Batch] = (), loss: Loss = example_loss) -> ConnectionScores:
    """Scores connections by numbers drawn evenly from [0, 1) with a fixed seed: what every criterion has to beat."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(linear.weight.shape, generator=generator).to(linear.weight.device)
        for name, linear in block_linears(model).items()
    }


def _size(linear: nn.Linear) -> torch.Tensor:
    return linear.weight.detach().float().abs()


@contextmanager
def _record_calls(linears: Mapping[str, nn.Linear]) -> Iterator[Calls]:
    """Remembers, as long as the context lasts, the (input, output) of every call of `linears`, by their names."""
    calls: Calls = {name: [] for name in linears}

    def remember(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if torch.is_grad_enabled() and not output.requires_grad:
                output.requires_grad_()  # of a frozen model
            calls[name].append((args[0].detach(), output))

        return hook

    handles = [linear.register_forward_hook(remember(name)) for name, linear in linears.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _mean_over_examples(
    model: PreTrainedModel, batches: Iterable[Batch], loss: Loss, of: Callable[[torch.Tensor], torch.Tensor]
) -> ConnectionScores:
    """Return, for every weight, the mean over examples of `of(gradient)`, each example's gradient taken by itself.

    One backward pass a batch gives the gradients at the outputs; an example's gradient at the weight is the product of
    those with its inputs, one matrix at a time in memory.
    """
    linears = block_linears(model)
    sums = {name: torch.zeros_like(linear.weight, dtype=torch.float32) for name, linear in linears.items()}
    examples = 0
    with eval_mode(model):
        for batch in require_batches(batches):
            rows = example_count(batch)
            with torch.enable_grad(), _record_calls(linears) as calls:
                total = loss(model, batch)
                outputs = [output for pairs in calls.values() for _, output in pairs]
                gradients = iter(torch.autograd.grad(total, outputs, materialize_grads=True))
            for name, pairs in calls.items():
                # A multiple choice head makes one row of every choice: they belong to one example.
                reads = [read.reshape(rows, -1, read.shape[-1]) for read, _ in pairs]
                errors = [next(gradients).reshape(rows, -1, output.shape[-1]) for _, output in pairs]
                read, error = torch.cat(reads, 1), torch.cat(errors, 1)
                for row in range(rows):
                    sums[name] += of((error[row].T @ read[row]).float())
            examples += rows
    return {name: total / examples for name, total in sums.items()}


__all__ = [
    "ConnectionCriterion",
    "ConnectionScores",
    "block_linears",
    "fisher",
    "magnitude",
    "movement",
    "random",
    "snip",
    "squared_gradients",
    "taylor",
    "wanda",
]
