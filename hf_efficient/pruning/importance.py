"""Criteria: how much each head, neuron and layer of a network matters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from hf_efficient.models import Block, family_of
from hf_efficient.pruning.budget import Scores
from hf_efficient.pruning.gates import gated

Batch = Mapping[str, torch.Tensor]
Loss = Callable[[PreTrainedModel, Batch], torch.Tensor]


class Criterion(Protocol):
    """Scores the units and layers of `model`; larger matters more, comparable across blocks and layers."""

    def __call__(self, model: PreTrainedModel, batches: Iterable[Batch], loss: Loss) -> Scores:
        """Returns a score for every unit and layer."""
        ...


def example_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Returns the task loss of a batch, summed over its examples, as `importance` functions expect it: shape ().

    Raises ValueError: the batch has no labels.
    """
    if not any(name.startswith("label") or name.endswith("_positions") for name in batch):
        raise ValueError(
            f"the batches have no labels, only {', '.join(batch)}: pruning by gradients needs labelled data"
        )
    loss: torch.Tensor = model(**batch).loss
    labels = batch.get("labels")
    if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        return loss * labels.ne(-100).sum()  # a loss of tokens is their mean
    return loss * next(iter(batch.values())).shape[0]


def fisher(model: PreTrainedModel, batches: Iterable[Batch], loss: Loss = example_loss) -> Scores:
    """Scores units and layers by the diagonal Fisher information of their gates: the mean over examples of g squared.

    | argument | shape | meaning |
    | --- | --- | --- |
    | batches | tensors (batch, ...) | inputs with labels; the mean is over all their examples |
    | loss | () | sum of the losses of a batch's examples |
    | returns | (units,) a block, one number a layer | half the mean of g squared: the rise of the loss |

    Raises ValueError: there is no batch.
    Source: Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", eq. 7; layers likewise.
    """
    family, device = family_of(model), model.device
    blocks, layers = family.blocks(model), family.layers(model)
    unit_sums = {name: torch.zeros(block.units, device=device) for name, block in blocks.items()}
    layer_sums = {name: torch.zeros((), device=device) for name in layers}
    examples, training = 0, model.training
    model.eval()
    for batch in batches:
        rows = next(iter(batch.values())).shape[0]
        unit_gates = {
            name: torch.ones(rows, block.units, device=device, requires_grad=True)
            for name, block in blocks.items()
            if block.units
        }
        layer_gates = {name: torch.ones(rows, device=device, requires_grad=True) for name in layers}
        with torch.enable_grad(), gated(model, unit_gates, layer_gates):
            total = loss(model, batch)
            gradients = torch.autograd.grad(total, [*unit_gates.values(), *layer_gates.values()])
        for sums, names in ((unit_sums, unit_gates), (layer_sums, layer_gates)):
            for name, gradient in zip(names, gradients[: len(names)], strict=True):
                sums[name] += gradient.square().sum(0)
            gradients = gradients[len(names) :]
        examples += rows
    model.train(training)
    if not examples:
        raise ValueError("the dataloader is empty: scoring needs at least one batch")
    return Scores(
        units={name: total / (2 * examples) for name, total in unit_sums.items()},
        layers={name: float(total) / (2 * examples) for name, total in layer_sums.items()},
    )


def magnitude(model: PreTrainedModel, batches: Iterable[Batch] = (), loss: Loss = example_loss) -> Scores:
    """Scores a unit by the sum of squares of the weights that it owns: rows of the inputs, columns of the output.

    | returns | shape | meaning |
    | --- | --- | --- |
    | units | (units,) a block | squared L2 norm; a head owns more weights than a neuron, and costs as much more |
    | layers | one number a layer | sum over the layer's units |

    Needs no data: `batches` and `loss` are there because every criterion is called alike.
    Source: Han et al. 2015, "Learning both Weights and Connections", section 3, for groups of weights.
    """
    units = {name: _squared_norms(block) for name, block in family_of(model).blocks(model).items()}
    layers: dict[str, float] = {}
    for name, scores in units.items():
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, 0.0) + float(scores.sum())
    return Scores(units, layers)


def _squared_norms(block: Block) -> torch.Tensor:
    if not block.units:
        return torch.zeros(0)
    output: Any = block.output
    norms: torch.Tensor = output.weight.detach().square().sum(0).view(block.units, -1).sum(1)
    for linear in block.input_linears:
        norms = norms + linear.weight.detach().square().view(block.units, -1).sum(1)
    return norms


CRITERIA: dict[str, Criterion] = {"fisher": fisher, "magnitude": magnitude}

__all__ = ["CRITERIA", "Batch", "Criterion", "Loss", "Scores", "example_loss", "fisher", "magnitude"]
