"""Criteria: how much each head, neuron and layer of a network matters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.models import Block, family_of
from hf_efficient.pruning.batches import Batch, eval_mode, example_count, non_padding_mask, require_batches
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.losses import Loss, example_loss
from hf_efficient.pruning.selection import Scores

MOVEMENT_LEARNING_RATE = 1e-2


class Criterion(Protocol):
    """Scores the units and layers of `model`; larger matters more, comparable across blocks and layers.

    | argument | shape | meaning |
    | --- | --- | --- |
    | batches | tensors (batch, ...) by name | inputs, with labels where the loss asks for them |
    | loss | () | sum of the losses of a batch's examples |
    | returns | (units,) a block, one number a layer | `Scores` |
    """

    def __call__(self, model: PreTrainedModel, batches: Iterable[Batch], loss: Loss) -> Scores:
        """Return a score for every unit and layer. Raises ValueError: data is needed, and there is none."""
        ...


# ---- criteria by the gradients of gates ----

GateGradients = dict[str, torch.Tensor]


def gate_gradients(
    model: PreTrainedModel, batches: Iterable[Batch], loss: Loss
) -> Iterator[tuple[GateGradients, GateGradients]]:
    """Yield, for every batch, the gradients of each example's loss by its own gates of units and of layers.

    | yields | shape |
    | --- | --- |
    | first, by block | (batch, units) |
    | second, by layer | (batch,) |

    Raises ValueError: there is no batch.
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
                found = torch.autograd.grad(loss(model, batch), gates, allow_unused=True, materialize_grads=True)
            count = len(unit_gates)
            yield dict(zip(unit_gates, found[:count], strict=True)), dict(zip(layer_gates, found[count:], strict=True))


def _mean_over_examples(
    model: PreTrainedModel, batches: Iterable[Batch], loss: Loss, of: Callable[[torch.Tensor], torch.Tensor]
) -> Scores:
    """Return the mean over all examples of a function of each example's gate gradient."""
    family = family_of(model)
    units = {name: torch.zeros(block.units, device=model.device) for name, block in family.blocks(model).items()}
    layers = {name: torch.zeros((), device=model.device) for name in family.layers(model)}
    examples = 0
    for unit_gradients, layer_gradients in gate_gradients(model, batches, loss):
        for sums, gradients in ((units, unit_gradients), (layers, layer_gradients)):
            for name, gradient in gradients.items():
                sums[name] += of(gradient).sum(0)
        examples += next(iter(layer_gradients.values())).shape[0]
    return Scores(
        units={name: total / examples for name, total in units.items()},
        layers={name: float(total) / examples for name, total in layers.items()},
    )


def fisher(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> Scores:
    """Scores units and layers by the Fisher information of their gates, the mean over examples of g squared, halved.

    It estimates how much the loss rises, to second order, when the gate closes. The Fisher matrix of a block's gates
    tells, in `pairwise`, what closing several of them costs, which the diagonal alone makes too little of.
    Source: Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", eq. 7 and section 4.2; layers
    likewise.
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
        examples += next(iter(layer_gradients.values())).shape[0]
    matrices = {name: matrix / (2 * examples) for name, matrix in matrices.items()}
    return Scores(
        units={name: matrix.diagonal().clone() for name, matrix in matrices.items()},
        layers={name: float(total) / (2 * examples) for name, total in layers.items()},
        pairwise=matrices,
    )


def taylor(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> Scores:
    """Scores units and layers by the mean of |g|, to first order how much the loss changes when the gate closes.

    Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", eq. 2, for heads; Molchanov et al. 2019,
    "Importance Estimation for Neural Network Pruning", section 3, for neurons: their gate gradient sums g * w.
    """
    return _mean_over_examples(model, batches, loss, torch.abs)


def snip(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> Scores:
    """Scores units and layers by |mean of g|, the sensitivity of the loss of all the data together.

    Made for networks that were not trained yet; on a trained one the mean is near zero and says little.
    Source: Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", eq. 4, for gates.
    """
    mean = _mean_over_examples(model, batches, loss, lambda gradient: gradient)
    return Scores(
        units={name: gradient.abs() for name, gradient in mean.units.items()},
        layers={name: abs(gradient) for name, gradient in mean.layers.items()},
    )


def movement(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> Scores:
    """Scores a unit by how far training moves what it writes away from zero: minus the sum over steps of w * dL/dw.

    A copy of the model is trained for one pass over the batches by plain gradient descent, since a network at rest
    does not move. Over the weights that read a unit w * dL/dw sums to the gradient of its gate. Scores may be below 0.
    Source: Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", eq. 3, summed over groups.
    """
    student = copy.deepcopy(model).requires_grad_(True).train()
    blocks = family_of(student).blocks(student)
    units = {name: torch.zeros(block.units, device=model.device) for name, block in blocks.items()}
    optimizer = torch.optim.SGD(student.parameters(), lr=MOVEMENT_LEARNING_RATE)
    for batch in require_batches(batches):
        optimizer.zero_grad()
        with torch.enable_grad():
            (loss(student, batch) / example_count(batch)).backward()  # type: ignore[no-untyped-call]
        for name, moved in weight_movement(blocks).items():
            units[name] += moved
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    return Scores(units, _layer_scores(units))


def weight_movement(blocks: Mapping[str, Block]) -> dict[str, torch.Tensor]:
    """Return, after a backward pass, minus the sum of w * dL/dw over what reads each unit, (units,) a block."""
    moved = {}
    for name, block in blocks.items():
        weight = getattr(block.output, "weight", None)
        if block.units and weight is not None and weight.grad is not None:
            moved[name] = -(weight.detach() * weight.grad).float().sum(0).view(block.units, -1).sum(1)
    return moved


# ---- criteria without gradients ----


def magnitude(model: PreTrainedModel, batches: Iterable[Batch] = (), loss: Loss = example_loss) -> Scores:
    """Scores a unit by the sum of squares of the weights that it owns: rows of the inputs, columns of the output.

    A head owns more weights than a neuron, and costs as much more. Needs no data.
    Source: Han et al. 2015, "Learning both Weights and Connections", section 3, for groups of weights.
    """
    return _from_weights(model, torch.square)


def magnitude_l1(model: PreTrainedModel, batches: Iterable[Batch] = (), loss: Loss = example_loss) -> Scores:
    """Scores a unit by the sum of the absolute values of the weights that it owns. Needs no data.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1, for heads and neurons.
    """
    return _from_weights(model, torch.abs)


def random(model: PreTrainedModel, batches: Iterable[Batch] = (), loss: Loss = example_loss) -> Scores:
    """Scores units at random, in proportion to the weights that they own: the control that a criterion has to beat.

    Drawn from the seed that `transformers.set_seed` sets. Needs no data.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed())
    units = {}
    for name, block in family_of(model).blocks(model).items():
        linears: Any = (*block.input_linears, block.output) if block.units else ()
        owned = sum(linear.weight.numel() for linear in linears)
        drawn = torch.rand(block.units, generator=generator) * owned / max(block.units, 1)
        units[name] = drawn.to(model.device)
    return Scores(units, _layer_scores(units))


def activation(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> Scores:
    """Scores a unit by the mean of |a| over tokens, summed over the numbers that it computes.

    Source: Hu et al. 2016, "Network Trimming", eq. 1, with the mean instead of the share of zeros.
    """
    return _from_activations(model, batches, lambda block, sums, tokens: sums["absolute"] / tokens)


def wanda(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> Scores:
    """Scores a unit by the sum of |w| * ||a|| over the weights that read it, norms over tokens.

    Source: Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models", eq. 1, summed over
    the columns of a unit; norms are divided by the root of the number of tokens.
    """

    def reading(block: Block, sums: Mapping[str, torch.Tensor], tokens: int) -> torch.Tensor:
        output: Any = block.output
        return output.weight.detach().float().abs().sum(0) * (sums["square"] / tokens).sqrt()

    return _from_activations(model, batches, reading)


def _from_weights(model: PreTrainedModel, of: Callable[[torch.Tensor], torch.Tensor]) -> Scores:
    """Return, for each unit, the sum of a function of every weight that it owns."""
    units = {}
    for name, block in family_of(model).blocks(model).items():
        units[name] = torch.zeros(block.units, device=model.device)
        if block.units:
            output: Any = block.output
            units[name] += of(output.weight.detach().float()).sum(0).view(block.units, -1).sum(1)
            for linear in block.input_linears:
                units[name] += of(linear.weight.detach().float()).view(block.units, -1).sum(1)
    return Scores(units, _layer_scores(units))


def _from_activations(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    of: Callable[[Block, Mapping[str, torch.Tensor], int], torch.Tensor],
) -> Scores:
    """Return, for each unit, a function of the sums over tokens of |a| and a squared of what its block computes."""
    blocks = {name: block for name, block in family_of(model).blocks(model).items() if block.units}
    sums: dict[str, dict[str, torch.Tensor]] = {
        name: {kind: torch.zeros(block.output.in_features, device=model.device) for kind in ("absolute", "square")}
        for name, block in blocks.items()
    }
    tokens = dict.fromkeys(blocks, 0)

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            values = args[0][non_padding_mask(batch, args[0], decoding=name.startswith("decoder"))].float()
            sums[name]["absolute"] += values.abs().sum(0)
            sums[name]["square"] += values.square().sum(0)
            tokens[name] += values.shape[0]

        return hook

    handles = [block.output.register_forward_pre_hook(watch(name)) for name, block in blocks.items()]
    try:
        with torch.no_grad(), eval_mode(model):
            for batch in require_batches(batches):
                model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    units = {name: torch.zeros(0, device=model.device) for name in family_of(model).blocks(model)}
    for name, block in blocks.items():
        units[name] = of(block, sums[name], tokens[name]).view(block.units, -1).sum(1)
    return Scores(units, _layer_scores(units))


def _layer_scores(units: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the score of each layer as the sum of its units'."""
    layers: dict[str, float] = {}
    for name, scores in units.items():
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, 0.0) + float(scores.sum())
    return layers


__all__ = [
    "Criterion",
    "Scores",
    "activation",
    "fisher",
    "gate_gradients",
    "magnitude",
    "magnitude_l1",
    "movement",
    "random",
    "snip",
    "taylor",
    "wanda",
]
