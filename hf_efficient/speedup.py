"""Pruning to a target that is kept: costs are measured, and the search corrected until the student has it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.measurement.comparison import model_inputs
from hf_efficient.measurement.cost import count_flops, count_parameters
from hf_efficient.measurement.runtime import time_in_turn
from hf_efficient.pruning.budget import Selection
from hf_efficient.pruning.importance import Batch, Loss, example_loss
from hf_efficient.pruning.pruner import BudgetedChoice, PruningConfig, score, select_fractions
from hf_efficient.pruning.surgery import cut

logger = logging.get_logger(__name__)

ATTEMPTS = 8
TABLE_SECONDS = 0.4
CHECK_SECONDS = 4.0


@dataclass(frozen=True)
class Cost:
    """A cost that a target is a ratio of.

    `of` is the cost of a model, `ratio` that of a reference divided by that of a student. A choice aims at `aim` times
    the ratio that was asked for, and is good between `least` and `most` times it: a noisy cost leaves room for noise.
    `counted` costs depend on the shape alone.
    """

    of: Callable[[PreTrainedModel, PruningConfig], float]
    ratio: Callable[[PreTrainedModel, PreTrainedModel, PruningConfig], float]
    aim: float = 1.0
    least: float = 1.0
    most: float = math.inf
    counted: bool = True


def _inputs(model: PreTrainedModel, config: PruningConfig) -> dict[str, torch.Tensor]:
    return model_inputs(model, config.latency_batch_size, config.latency_sequence_length)


def _flops(model: PreTrainedModel, config: PruningConfig) -> float:
    return float(count_flops(model, {"input_ids": _inputs(model, config)["input_ids"]}) or math.nan)


def _parameters(model: PreTrainedModel, config: PruningConfig) -> float:
    return float(count_parameters(model))


def _latency(model: PreTrainedModel, config: PruningConfig) -> float:
    return _medians({"model": model}, config, TABLE_SECONDS)["model"]


def _latency_ratio(reference: PreTrainedModel, student: PreTrainedModel, config: PruningConfig) -> float:
    medians = _medians({"reference": reference, "student": student}, config, CHECK_SECONDS)
    return medians["reference"] / medians["student"]


def _medians(models: dict[str, PreTrainedModel], config: PruningConfig, seconds: float) -> dict[str, float]:
    """Returns the median latency of each model in milliseconds, taken in turn for about `seconds` in all."""
    calls = {}
    for name, model in models.items():
        model.eval()
        calls[name] = partial(model, **_inputs(model, config))
    once = sum(median(times) for times in time_in_turn(calls, repeats=1, warmup=1).values()) / 1e3
    repeats = min(100, max(5, round(seconds / once)))
    return {name: median(times) for name, times in time_in_turn(calls, repeats, warmup=1).items()}


def _exact(
    of: Callable[[PreTrainedModel, PruningConfig], float],
) -> Callable[[PreTrainedModel, PreTrainedModel, PruningConfig], float]:
    return lambda reference, student, config: of(reference, config) / of(student, config)


COSTS = {
    "target_speedup": Cost(_latency, _latency_ratio, aim=1.07, least=1.05, most=1.1, counted=False),
    "target_flops": Cost(_flops, _exact(_flops)),
    "target_size": Cost(_parameters, _exact(_parameters)),
}


def prune(
    model: PreTrainedModel,
    config: PruningConfig,
    dataloader: Iterable[Batch] = (),
    reference: PreTrainedModel | None = None,
    loss: Loss = example_loss,
) -> PreTrainedModel:
    """Returns a smaller copy of `model`, without training it; `model` itself stays as it is.

    | argument | meaning |
    | --- | --- |
    | dataloader | batches with labels, as tensors by name, that the criterion looks at; magnitude needs none |
    | reference | the model that the target is a ratio of; None: `model` |
    | loss | sum of the losses of a batch's examples, shape () |

    A target is kept: the student's cost is measured (latency in turn with the reference's), and while it misses the
    costs are corrected and the choice is made again.

    Raises ValueError: the config asks for nothing, or its target cannot be reached; the message says what can.
    Raises TypeError: the architecture is unknown.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("a quantized model cannot be pruned: prune its float form, then quantize")
    if not config.active:
        raise ValueError(
            "the PruningConfig asks for nothing: give a target (target_speedup=2) or a fraction (layers=0.5)"
        )
    scores = score(model, config, dataloader, loss)
    if config.target is None:
        return cut(model, select_fractions(model, config, scores))

    name, goal = config.target
    cost, reference = COSTS[name], reference if reference is not None else model
    # Nothing is computed where a cost is only counted: copies on the meta device hold no numbers.
    probe = copy.deepcopy(model).to("meta") if cost.counted else model
    with logging.tqdm(desc="costs of narrower shapes", unit=" shapes") as progress:

        def cost_of(selection: Selection) -> float:
            progress.update()
            return cost.of(cut(probe, selection), config)

        choice = BudgetedChoice(model, config, scores, cost_of)

    best: tuple[float, PreTrainedModel] | None = None
    tried: list[Selection] = []
    floor = 1.001 * choice.smallest
    budget = cost.of(reference, config) / (goal * cost.aim)
    for _ in range(ATTEMPTS):
        selection = choice.within(max(budget, floor))
        if selection in tried:
            budget *= 0.99
            continue
        tried.append(selection)
        student = cut(model, selection)
        ratio = cost.ratio(reference, student, config)
        logger.info(f"{name}: asked {goal:.3f}, choice {len(tried)} gives {ratio:.3f}")
        if ratio >= goal and (best is None or abs(ratio - goal * cost.aim) < abs(best[0] - goal * cost.aim)):
            best = ratio, student
        if goal * cost.least <= ratio <= goal * cost.most or (ratio < goal and budget <= floor):
            break
        budget *= ratio / (goal * cost.aim)
    if best is None:
        reached = cost.ratio(reference, cut(model, choice.within(floor)), config)
        raise ValueError(
            f"{name}={goal:g} cannot be reached: the smallest shape of this model that still attends gives "
            f"{reached:.2f}; ask for less, or start from a smaller model"
        )
    return best[1]
