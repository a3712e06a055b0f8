"""Criteria for units: how much each head, neuron and layer of a network matters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.models import Block, family_of
from hf_efficient.models.batches import Batch, eval_mode, example_count, non_padding_mask, require_batches
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.losses import Loss, example_loss
from hf_efficient.pruning.selection import Scores

MOVEMENT_LEARNING_RATE = 1e-2

GateGradients = dict[str, torch.Tensor]


class Criterion(Protocol):
    """Scores the units and layers of `model`; larger matters more, comparable across blocks and layers.

    | argument | shape | meaning |
    | --- | --- | --- |
    | batches | tensors (batch, ...) by name | inputs, with labels if the loss requires them |
    | loss | () | sum of the losses of a batch's examples |
    | returns | (units,) per block, one number per layer | `Scores` |
    """

    def __call__(self, model: PreTrainedModel, batches: Iterable[Batch], loss: Loss) -> Scores:
        """Return a score for every unit and layer; raise UserError if data is required and there is none."""
        ...


# ---- criteria by the gradients of gates ----


def fisher(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> Scores:
    """Score units and layers by the Fisher information of their gates, half the mean over examples of g squared.

    It estimates, to second order, how much the loss increases when the gate closes. The Fisher matrix of the gates of
    a block, in `pairwise`, estimates the cost of closing several of them, which its diagonal alone underestimates.

    Source: Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", eq. 7 and section 4.2, also
    applied to layers.
    """
    blocks = family_of(model).blocks(model)
    matrices = {name: torch.zeros(block.units, block.units, device=model.device) for name, block in blocks.items()}
    layers = {name: torch.zeros((), device=model.device) for name in family_of(model).layers(model)}
    examples = 0
    for unit_gradients, layer_gradients in gate_gradients(model, batches, loss):
        for name, gradient in unit_gradients.items():
            matrices[name] += gradient.T @ gradient
        for name, gradient in layer_gradients.items():
            layers[name] += gradient.square().sum()
        examples += example_count(layer_gradients)
    matrices = {name: matrix / (2 * examples) for name, matrix in matrices.items()}
    return Scores(
        units={name: matrix.diagonal().clone() for name, matrix in matrices.items()},
        layers={name: float(total) / (2 * examples) for name, total in layers.items()},
        pairwise=matrices,
    )


def taylor(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> Scores:
    """Score units and layers by the mean of |g|, to first order the change of the loss when the gate closes.

    Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", eq. 2, for heads; Molchanov et al. 2019,
    "Importance Estimation for Neural Network Pruning", section 3, for neurons: their gate gradient sums g * w.
    """
    return _mean_over_examples(model, batches, loss, torch.abs)


def snip(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> Scores:
    """Score units and layers by |mean of g|, the sensitivity of the mean loss of all examples.

    Intended for networks before training; in a trained one the mean is close to zero and carries little information.

    Source: Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", eq. 4, for gates.
    """
    mean = _mean_over_examples(model, batches, loss, lambda gradient: gradient)
    return Scores(
        units={name: gradient.abs() for name, gradient in mean.units.items()},
        layers={name: abs(gradient) for name, gradient in mean.layers.items()},
    )


def gate_gradients(
    model: PreTrainedModel, batches: Iterable[Batch], loss: Loss
) -> Iterator[tuple[GateGradients, GateGradients]]:
    """Yield, for every batch, the gradients of the loss of each example by its own gates of units and of layers.

    | yields | shape |
    | --- | --- |
    | first, by block | (batch, units) |
    | second, by layer | (batch,) |

    Raises UserError if there are no batches.
    """
    family = family_of(model)
    blocks, layers = family.blocks(model), family.layers(model)
    with eval_mode(model):
        for batch in require_batches(batches):
            rows = example_count(batch)
            unit_gates = {
                name: torch.ones(rows, block.units, device=model.device, requires_grad=True)
                for name, block in blocks.items()
                if block.units
            }
            layer_gates = {name: torch.ones(rows, device=model.device, requires_grad=True) for name in layers}
            gates = [*unit_gates.values(), *layer_gates.values()]
            with torch.enable_grad(), apply_gates(model, unit_gates, layer_gates):
                gradients = torch.autograd.grad(loss(model, batch), gates, allow_unused=True, materialize_grads=True)
            count = len(unit_gates)
            yield (
                dict(zip(unit_gates, gradients[:count], strict=True)),
                dict(zip(layer_gates, gradients[count:], strict=True)),
            )


def _mean_over_examples(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    loss: Loss,
    function: Callable[[torch.Tensor], torch.Tensor],
) -> Scores:
    """Return the mean over all examples of `function` of the gate gradients of each."""
    family = family_of(model)
    units = {name: torch.zeros(block.units, device=model.device) for name, block in family.blocks(model).items()}
    layers = {name: torch.zeros((), device=model.device) for name in family.layers(model)}
    examples = 0
    for unit_gradients, layer_gradients in gate_gradients(model, batches, loss):
        for sums, gradients in ((units, unit_gradients), (layers, layer_gradients)):
            for name, gradient in gradients.items():
                sums[name] += function(gradient).sum(0)
        examples += example_count(layer_gradients)
    return Scores(
        units={name: total / examples for name, total in units.items()},
        layers={name: float(total) / examples for name, total in layers.items()},
    )


# ---- criteria by weights and activations ----


def movement(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> Scores:
    """Score a unit by how much training moves its output weights away from zero: minus the sum over steps of w * g.

    A copy of the model is trained for one pass over the batches by plain gradient descent. Over the weights that read
    a unit, w * g sums to the gradient of its gate. Scores can be negative.

    Source: Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", eq. 3, summed over groups.
    """
    student = copy.deepcopy(model).requires_grad_(True).train()
    blocks = family_of(student).blocks(student)
    units = {name: torch.zeros(block.units, device=model.device) for name, block in blocks.items()}
    optimizer = torch.optim.SGD(student.parameters(), lr=MOVEMENT_LEARNING_RATE)
    for batch in require_batches(batches):
        optimizer.zero_grad()
        with torch.enable_grad():
            torch.autograd.backward(loss(student, batch) / example_count(batch))
        for name, block in blocks.items():
            weight: Any = getattr(block.output, "weight", None)
            if block.units and weight is not None and weight.grad is not None:
                products = -(weight.detach() * weight.grad).float()
                units[name] += products.sum(0).view(block.units, -1).sum(1)
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    return Scores(units, _layer_scores(units))


def magnitude(model: PreTrainedModel, batches: Iterable[Batch] = (), loss: Loss = example_loss) -> Scores:
    """Score a unit by the sum of squares of its weights: rows of the input Linears, columns of the output Linear.

    A head has more weights than a neuron, and a higher cost in proportion. Needs no data.

    Source: Han et al. 2015, "Learning both Weights and Connections", section 3, for groups of weights.
    """
    return _from_weights(model, torch.square)


def magnitude_l1(model: PreTrainedModel, batches: Iterable[Batch] = (), loss: Loss = example_loss) -> Scores:
    """Score a unit by the sum of the absolute values of its weights. Needs no data.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1, for heads and neurons.
    """
    return _from_weights(model, torch.abs)


def random(model: PreTrainedModel, batches: Iterable[Batch] = (), loss: Loss = example_loss) -> Scores:
    """Score units at random, in proportion to their number of weights: the baseline for all other criteria.

    Drawn with the seed that `transformers.set_seed` sets. Needs no data.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed())
    units = {}
    for name, block in family_of(model).blocks(model).items():
        linears: Any = (*block.input_linears, block.output) if block.units else ()
        weight_count = sum(linear.weight.numel() for linear in linears)
        scores = torch.rand(block.units, generator=generator) * weight_count / max(block.units, 1)
        units[name] = scores.to(model.device)
    return Scores(units, _layer_scores(units))


def activation(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> Scores:
    """Score a unit by the mean of |a| over tokens, summed over its activations a.

    Source: Hu et al. 2016, "Network Trimming", eq. 1, with the mean instead of the fraction of zeros.
    """
    return _from_activations(model, batches, lambda block, sums, tokens: sums["absolute"] / tokens)


def wanda(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> Scores:
    """Score a unit by the sum of |w| * ||a|| over the output weights that read it, norms over tokens.

    Source: Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models", eq. 1, summed over
    the columns of a unit; norms are divided by the square root of the number of tokens.
    """

    def weight_activations(block: Block, sums: Mapping[str, torch.Tensor], tokens: int) -> torch.Tensor:
        output: Any = block.output
        return output.weight.detach().float().abs().sum(0) * (sums["square"] / tokens).sqrt()

    return _from_activations(model, batches, weight_activations)


def _from_weights(model: PreTrainedModel, function: Callable[[torch.Tensor], torch.Tensor]) -> Scores:
    """Return, for each unit, the sum of `function` of each of its weights."""
    units = {}
    for name, block in family_of(model).blocks(model).items():
        units[name] = torch.zeros(block.units, device=model.device)
        if block.units:
            output: Any = block.output
            units[name] += function(output.weight.detach().float()).sum(0).view(block.units, -1).sum(1)
            for linear in block.input_linears:
                rows = function(linear.weight.detach().float()).sum(1)
                units[name] += rows.view(block.fused, block.units, -1).sum((0, 2))
    return Scores(units, _layer_scores(units))


def _from_activations(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    function: Callable[[Block, Mapping[str, torch.Tensor], int], torch.Tensor],
) -> Scores:
    """Return, for each unit, `function` of the sums over tokens of |a| and of a squared of its activations a."""
    blocks = {name: block for name, block in family_of(model).blocks(model).items() if block.units}
    sums: dict[str, dict[str, torch.Tensor]] = {
        name: {kind: torch.zeros(block.output.in_features, device=model.device) for kind in ("absolute", "square")}
        for name, block in blocks.items()
    }
    tokens = dict.fromkeys(blocks, 0)

    def sum_activations(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            mask = non_padding_mask(batch, args[0], is_decoder=name.startswith("decoder"))
            activations = args[0][mask].float()
            sums[name]["absolute"] += activations.abs().sum(0)
            sums[name]["square"] += activations.square().sum(0)
            tokens[name] += len(activations)

        return hook

    handles = [block.output.register_forward_pre_hook(sum_activations(name)) for name, block in blocks.items()]
    try:
        with torch.no_grad(), eval_mode(model):
            for batch in require_batches(batches):
                model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    units = {name: torch.zeros(0, device=model.device) for name in family_of(model).blocks(model)}
    for name, block in blocks.items():
        units[name] = function(block, sums[name], tokens[name]).view(block.units, -1).sum(1)
    return Scores(units, _layer_scores(units))


def _layer_scores(units: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the score of each layer, the sum of those of its units."""
    layers: dict[str, float] = {}
    for name, scores in units.items():
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, 0.0) + float(scores.sum())
    return layers
