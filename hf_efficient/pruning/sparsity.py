"""Removal of single connections: they become zeros in ordinary tensors, which makes no model faster."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import prune
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_efficient.errors import UserError
from hf_efficient.models.batches import Batch
from hf_efficient.pruning.config import DEFAULT_SCOPES, parse_n_m
from hf_efficient.pruning.connection_criteria import ConnectionScores, block_linears
from hf_efficient.pruning.criteria import CONNECTION_CRITERIA
from hf_efficient.pruning.losses import Loss, example_loss

CONNECTION_SCOPES = ("global", "layer", "row")


class LowestScores(prune.BasePruningMethod):
    """Removes the `count` connections with the lowest scores, of those that are not removed yet."""

    PRUNING_TYPE: ClassVar[str] = "unstructured"

    def __init__(self, count: int) -> None:
        self.count = count

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        """Return `default_mask` without the lowest of the scores `t`, both of the same shape."""
        mask = default_mask.clone(memory_format=torch.contiguous_format)
        mask.view(-1)[torch.topk(t.flatten(), self.count, largest=False, sorted=False).indices] = 0
        return mask


class NOfM(prune.BasePruningMethod):
    """Keeps, of every `m` consecutive inputs of an output row, the `n` with the highest scores."""

    PRUNING_TYPE: ClassVar[str] = "global"

    def __init__(self, n: int, m: int) -> None:
        self.n, self.m = n, m

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        """Return `default_mask` with only the best of each group of the scores `t`, both (outputs, inputs)."""
        scores = t.masked_fill(default_mask == 0, -math.inf).reshape(t.shape[0], -1, self.m)
        best = scores.topk(self.n, dim=-1).indices
        mask = torch.zeros_like(scores, dtype=default_mask.dtype).scatter_(-1, best, 1)
        return mask.view_as(default_mask) * default_mask


def sparsify(
    model: PreTrainedModel,
    batches: Iterable[Batch] = (),
    *,
    fraction: float | None = None,
    n_m: str | None = None,
    criterion: str = "magnitude",
    scope: str | None = None,
    loss: Loss = example_loss,
) -> PreTrainedModel:
    """Return a copy of `model` in which the connections with the lowest scores are zero.

    Class, config and names of the weights do not change: the copy is saved and loaded like `model`. Only the Linears
    of attention and feed-forward blocks lose connections. Weights that are zero already stay zero, and count as
    removed.

    | argument | meaning |
    | --- | --- |
    | batches, loss | as for a `ConnectionCriterion`; magnitude and random need neither, wanda no labels |
    | fraction | of the connections of the blocks, in [0, 1), that are zero afterwards |
    | n_m | "n:m": n of every m consecutive input weights of an output row are kept |
    | criterion | a name in `CONNECTION_CRITERIA` |
    | scope | where a fraction is taken: "global", "layer" (of every matrix) or "row" (of every output row) |

    The default scope depends on the criterion: "row" for wanda, "global" for all others.

    Raises UserError if fraction, n_m, criterion or scope is out of its range, or m does not divide the inputs of every
    matrix; TypeError if the family of `model` is not supported.
    """
    if criterion not in CONNECTION_CRITERIA:
        raise UserError(f"criterion={criterion!r} is unknown: give one of {', '.join(CONNECTION_CRITERIA)}")
    if n_m is None and scope is None:
        scope = DEFAULT_SCOPES.get(criterion, "global")
    _check_request(model, fraction, n_m, scope)
    scores = CONNECTION_CRITERIA[criterion](model, batches, loss)
    sparse = copy.deepcopy(model)
    remove_connections(sparse, scores, fraction=fraction, n_m=n_m, scope=scope)
    return sparse


def remove_connections(
    model: PreTrainedModel,
    scores: ConnectionScores,
    *,
    fraction: float | None = None,
    n_m: str | None = None,
    scope: str | None = None,
) -> None:
    """Set the connections of `model` with the lowest `scores` to zero, in place; arguments as for `sparsify`.

    Parameters stay the same objects, so an optimizer keeps training them: for sparsity that grows during training.

    Raises UserError as `sparsify` does, or if the scores do not fit the weights.
    """
    if n_m is None and scope is None:
        scope = "global"
    _check_request(model, fraction, n_m, scope)
    linears = block_linears(model)
    _check_scores(linears, scores)

    # Pruning a Linear itself would change the order of its parameters, and with it that of the optimizer's.
    holders = {name: _mask_holder(linear) for name, linear in linears.items()}

    def apply(method: Any, name: str, *arguments: int) -> None:
        method.apply(holders[name], "weight", *arguments, importance_scores=scores[name])

    if n_m is not None:
        for name in holders:
            apply(NOfM, name, *parse_n_m(n_m))
    elif fraction is not None and scope == "row":
        for name, linear in linears.items():
            apply(NOfM, name, linear.in_features - round(fraction * linear.in_features), linear.in_features)
    elif fraction is not None and scope == "layer":
        for name, holder in holders.items():
            apply(LowestScores, name, _remaining_count([holder], fraction))
    elif fraction is not None:
        prune.global_unstructured(
            [(holder, "weight") for holder in holders.values()],
            pruning_method=LowestScores,
            importance_scores={(holder, "weight"): scores[name] for name, holder in holders.items()},
            count=_remaining_count(holders.values(), fraction),
        )
    for name, holder in holders.items():
        prune.remove(holder, "weight")  # type: ignore[no-untyped-call]
        with torch.no_grad():  # masking a negative weight gives -0.0, and signs do not compress
            linears[name].weight.masked_fill_(linears[name].weight == 0, 0)


def zero_fraction(model: PreTrainedModel) -> float:
    """Return the fraction of zeros among the connections of the blocks of `model`, in [0, 1]."""
    weights = [linear.weight.detach() for linear in block_linears(model).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / max(1, sum(weight.numel() for weight in weights))


def unwrap_parallel(model: Any) -> PreTrainedModel:
    """Return the model inside `DataParallel` or `DistributedDataParallel`, or `model` itself."""
    unwrapped: PreTrainedModel = model.module if isinstance(model, (DistributedDataParallel, DataParallel)) else model
    return unwrapped


class KeepZerosCallback(TrainerCallback):
    """Keeps at zero, while a model is trained, the connections of its blocks that were zero when training began.

    They are read from the weights, after those of a checkpoint were loaded, so nothing is saved for them. After every
    optimizer step they are set to zero again, before anything is saved or evaluated; gradient accumulation, mixed
    precision and `DistributedDataParallel` make no difference.
    """

    def __init__(self) -> None:
        self._zeros: list[tuple[torch.Tensor, torch.Tensor]] = []

    def record_zeros(self, model: nn.Module) -> None:
        """Record which connections of `model` are zero now; call it again after more were removed."""
        weights = (linear.weight for linear in block_linears(unwrap_parallel(model)).values())
        self._zeros = [(weight, weight.detach() == 0) for weight in weights]

    @torch.no_grad()
    def restore_zeros(self) -> None:
        """Set the recorded connections to zero."""
        for weight, zeros in self._zeros:
            weight.masked_fill_(zeros, 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the zeros of the model."""
        self.record_zeros(kwargs["model"])

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the recorded connections to zero again."""
        self.restore_zeros()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Release the weights of the model."""
        self._zeros = []


def _check_request(model: PreTrainedModel, fraction: float | None, n_m: str | None, scope: str | None) -> None:
    if (fraction is None) == (n_m is None):
        raise UserError(f"fraction={fraction} and n_m={n_m!r}: give one of them, a fraction to remove or a pattern")
    if n_m is None:
        if fraction is None or not 0 <= fraction < 1:
            raise UserError(f"fraction={fraction} is not a fraction to remove: give a number in [0, 1)")
        if scope not in CONNECTION_SCOPES:
            raise UserError(f"scope={scope!r} is unknown: give one of {', '.join(CONNECTION_SCOPES)}")
        return
    if scope is not None:
        raise UserError(f"scope={scope!r} has no effect with n_m={n_m!r}, which compares within groups: leave it out")
    _, m = parse_n_m(n_m)
    for name, linear in block_linears(model).items():
        if linear.in_features % m:
            raise UserError(
                f"n_m={n_m!r} requires rows that {m} divides, but {name} has {linear.in_features} inputs: give "
                f"another m, or prune neurons to multiples of {m}"
            )


def _check_scores(linears: Mapping[str, nn.Linear], scores: ConnectionScores) -> None:
    for name, linear in linears.items():
        shape = tuple(linear.weight.shape)
        if name not in scores or tuple(scores[name].shape) != shape:
            given = f"a tensor {tuple(scores[name].shape)}" if name in scores else "nothing"
            raise UserError(f"the scores have {given} for {name}: give a tensor {shape}, the shape of the weight")
        if not torch.isfinite(scores[name]).all():
            raise UserError(f"the scores of {name} are not finite: check the data, or choose another criterion")


def _mask_holder(linear: nn.Linear) -> nn.Module:
    """Return a module with the weight of `linear` and a mask of its values that are not zero."""
    module = nn.Module()
    module.weight = linear.weight
    prune.custom_from_mask(module, "weight", linear.weight != 0)  # type: ignore[no-untyped-call]
    return module


def _remaining_count(holders: Iterable[nn.Module], fraction: float) -> int:
    """Return how many more connections must be removed until `fraction` of all are."""
    masks: list[Any] = [holder.weight_mask for holder in holders]
    target_count = round(fraction * sum(mask.numel() for mask in masks))
    return max(0, target_count - sum(int((mask == 0).sum()) for mask in masks))
