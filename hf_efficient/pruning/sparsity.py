"""Single connections removed: they stay as zeros in ordinary tensors, which makes no model faster."""

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
from hf_efficient.pruning.batches import Batch
from hf_efficient.pruning.connection_criteria import ConnectionScores, block_linears
from hf_efficient.pruning.criteria import CONNECTION_CRITERIA
from hf_efficient.pruning.losses import Loss, example_loss

SCOPES = ("global", "layer", "row")
DEFAULT_SCOPES = {"wanda": "row"}


class LowestScores(prune.BasePruningMethod):
    """Removes, of the connections that are left, the `count` that score lowest."""

    PRUNING_TYPE: ClassVar[str] = "unstructured"

    def __init__(self, count: int) -> None:
        self.count = count

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        """Return `default_mask` without the lowest of the scores `t`, both of one shape."""
        mask = default_mask.clone(memory_format=torch.contiguous_format)
        mask.view(-1)[torch.topk(t.flatten(), self.count, largest=False, sorted=False).indices] = 0
        return mask


class NOfM(prune.BasePruningMethod):
    """Keeps of every `m` consecutive inputs of an output row the `n` that score highest; what is gone stays so."""

    PRUNING_TYPE: ClassVar[str] = "global"

    def __init__(self, n: int, m: int) -> None:
        self.n, self.m = n, m

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        """Return `default_mask` without all but the best of each group of the scores `t`, both (outputs, inputs)."""
        scores = t.masked_fill(default_mask == 0, -math.inf).reshape(t.shape[0], -1, self.m)
        best = scores.topk(self.n, dim=-1).indices
        kept = torch.zeros_like(scores, dtype=default_mask.dtype).scatter_(-1, best, 1)
        return kept.view_as(default_mask) * default_mask


def parse_n_m(text: str) -> tuple[int, int]:
    """Return (n, m) of an N:M pattern such as "2:4". Raises ValueError: it is none."""
    n, colon, m = text.partition(":")
    if not (colon and n.isdecimal() and m.isdecimal() and 1 <= int(n) < int(m)):
        raise UserError(
            f'n_m={text!r} is no pattern: give "n:m" with 1 <= n < m, such as "2:4", which keeps 2 of every 4 '
            "consecutive input weights"
        )
    return int(n), int(m)


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
    """Return a copy of `model` in which the connections that `criterion` scores lowest are zeros.

    Class, config and names of the weights are those of `model`: it is saved and loaded as before. Only the Linears of
    its attention and feed-forward blocks lose connections. What is zero already stays zero and counts as removed.

    | argument | meaning |
    | --- | --- |
    | batches, loss | as in `hf_efficient.pruning.unit_criteria`; magnitude and random need neither, wanda no labels |
    | fraction | of the connections of the blocks, in [0, 1), to be zero afterwards |
    | n_m | "n:m": n of every m consecutive input weights of an output row stay |
    | criterion | a name in `CONNECTION_CRITERIA` |
    | scope | of a fraction: "global", "layer" (of every matrix) or "row" (of every output row of every matrix) |

    By default the scope is the criterion's own: "row" for wanda, "global" for all others.

    Raises ValueError: fraction, n_m, criterion or scope is out of its range, or m divides not every matrix's inputs.
    Raises TypeError: the family of `model` is unknown.
    """
    if criterion not in CONNECTION_CRITERIA:
        raise UserError(f"criterion={criterion!r} is unknown: give one of {', '.join(CONNECTION_CRITERIA)}")
    if n_m is None and scope is None:
        scope = DEFAULT_SCOPES.get(criterion, "global")
    _check(model, fraction, n_m, scope)
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
    """Make the connections of `model` that have the lowest `scores` zeros, in place; arguments as for `sparsify`.

    Parameters stay the same objects, so that an optimizer goes on with them: for sparsity that grows while training.

    Raises ValueError: as `sparsify` does, or the scores do not fit the weights.
    """
    if n_m is None and scope is None:
        scope = "global"
    _check(model, fraction, n_m, scope)
    linears = block_linears(model)
    _check_scores(linears, scores)

    # Carriers, since pruning a Linear itself would change the order of its parameters, and with it the optimizer's.
    carriers = {name: _mask_holder(linear) for name, linear in linears.items()}

    def apply(method: Any, name: str, *arguments: int) -> None:
        method.apply(carriers[name], "weight", *arguments, importance_scores=scores[name])

    if n_m is not None:
        for name in carriers:
            apply(NOfM, name, *parse_n_m(n_m))
    elif fraction is not None and scope == "row":
        for name, linear in linears.items():
            apply(NOfM, name, linear.in_features - round(fraction * linear.in_features), linear.in_features)
    elif fraction is not None and scope == "layer":
        for name, carrier in carriers.items():
            apply(LowestScores, name, _remaining_count([carrier], fraction))
    elif fraction is not None:
        prune.global_unstructured(
            [(carrier, "weight") for carrier in carriers.values()],
            pruning_method=LowestScores,
            importance_scores={(carrier, "weight"): scores[name] for name, carrier in carriers.items()},
            count=_remaining_count(carriers.values(), fraction),
        )
    for name, carrier in carriers.items():
        prune.remove(carrier, "weight")  # type: ignore[no-untyped-call]
        with torch.no_grad():  # a mask makes -0.0 of a negative weight, and signs do not compress
            linears[name].weight.masked_fill_(linears[name].weight == 0, 0)


def zero_fraction(model: PreTrainedModel) -> float:
    """Return the fraction of zeros among the connections of the blocks of `model`, in [0, 1]."""
    weights = [linear.weight.detach() for linear in block_linears(model).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / max(1, sum(weight.numel() for weight in weights))


class KeepZerosCallback(TrainerCallback):
    """Keeps at zero, while a model is trained, every connection of its blocks that was zero when training began.

    Which those are is read from the weights, after a checkpoint to resume from has been loaded into them: nothing has
    to be saved for it. After every step of the optimizer they are set to zero again, before anything is saved or
    evaluated; gradient accumulation, mixed precision and `DistributedDataParallel` make no difference.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def record_zeros(self, model: nn.Module) -> None:
        """Take what is zero in `model` now as what is to stay zero: again, after more connections were removed."""
        whole: Any = model.module if isinstance(model, (DistributedDataParallel, DataParallel)) else model
        weights = (linear.weight for linear in block_linears(whole).values())
        self._kept = [(weight, weight.detach() == 0) for weight in weights]

    @torch.no_grad()
    def restore_zeros(self) -> None:
        """Set to zero what is to stay zero."""
        for weight, zeros in self._kept:
            weight.masked_fill_(zeros, 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the zeros of the model."""
        self.record_zeros(kwargs["model"])

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set them to zero again."""
        self.restore_zeros()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lets go of the model."""
        self._kept = []


def _check(model: PreTrainedModel, fraction: float | None, n_m: str | None, scope: str | None) -> None:
    if (fraction is None) == (n_m is None):
        raise UserError(f"fraction={fraction} and n_m={n_m!r}: give one of them, a fraction to remove or a pattern")
    if n_m is None:
        if fraction is None or not 0 <= fraction < 1:
            raise UserError(f"fraction={fraction} is not a fraction to remove: give a number in [0, 1)")
        if scope not in SCOPES:
            raise UserError(f"scope={scope!r} is unknown: give one of {', '.join(SCOPES)}")
        return
    if scope is not None:
        raise UserError(f"scope={scope!r} says nothing with n_m={n_m!r}, which compares within groups: leave it out")
    _, m = parse_n_m(n_m)
    for name, linear in block_linears(model).items():
        if linear.in_features % m:
            raise UserError(
                f"n_m={n_m!r} needs rows that {m} divides, but {name} has {linear.in_features} inputs: give another "
                f"m, or prune neurons to multiples of {m}"
            )


def _check_scores(linears: Mapping[str, nn.Linear], scores: ConnectionScores) -> None:
    for name, linear in linears.items():
        shape = tuple(linear.weight.shape)
        if name not in scores or tuple(scores[name].shape) != shape:
            given = f"a tensor {tuple(scores[name].shape)}" if name in scores else "nothing"
            raise UserError(f"the scores have {given} for {name}: give a tensor {shape}, the weight's shape")
        if not torch.isfinite(scores[name]).all():
            raise UserError(f"the scores of {name} are not finite: check the data, or give another criterion")


def _mask_holder(linear: nn.Linear) -> nn.Module:
    """Return a module whose weight is that of `linear`, with a mask of what is not zero already."""
    module = nn.Module()
    module.weight = linear.weight
    prune.custom_from_mask(module, "weight", linear.weight != 0)  # type: ignore[no-untyped-call]
    return module


def _remaining_count(carriers: Iterable[nn.Module], fraction: float) -> int:
    """Return how many more connections must go for `fraction` of all to be gone."""
    masks: list[Any] = [carrier.weight_mask for carrier in carriers]
    goal = round(fraction * sum(mask.numel() for mask in masks))
    return max(0, goal - sum(int((mask == 0).sum()) for mask in masks))
