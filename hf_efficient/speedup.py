"""Pruning to a target that is kept: costs are measured, and the search corrected until the student has it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.measurement.comparison import model_inputs, writing
from hf_efficient.measurement.cost import count_flops, count_parameters
from hf_efficient.measurement.runtime import time_in_turn
from hf_efficient.measurement.runtimes import check_runtime, prepare
from hf_efficient.models import family_of, is_quantized
from hf_efficient.pruning.batches import Batch, Loss, task_or_sampled_loss
from hf_efficient.pruning.budget import CostTable, Scores, Selection
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.pruning.connections import CONNECTION_SAMPLES
from hf_efficient.pruning.pruner import BudgetedChoice, sample, score, select_fractions
from hf_efficient.pruning.recovery import CALIBRATION_SAMPLES, correct
from hf_efficient.pruning.sparsity import sparsify
from hf_efficient.pruning.surgery import cut

logger = logging.get_logger(__name__)

# What is timed of a model, for a config.
Work: TypeAlias = Callable[[PreTrainedModel, PruningConfig], Callable[[], object]]

ATTEMPTS = 8
TABLE_SECONDS = 0.4
CHECK_SECONDS = 4.0
OVERSHOOT = 1.1


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
    inputs = _inputs(model, config)
    del inputs["attention_mask"]  # the meta device holds no values to look at
    return float(count_flops(model, inputs) or math.nan)


def _parameters(model: PreTrainedModel, config: PruningConfig) -> float:
    return float(count_parameters(model))


def _pass(model: PreTrainedModel, config: PruningConfig) -> Callable[[], object]:
    return prepare(config.latency_runtime, model, _inputs(model, config))


def _writing(model: PreTrainedModel, config: PruningConfig) -> Callable[[], object]:
    return writing(model, _inputs(model, config), config.latency_new_tokens)


def _timed(work: Work) -> Cost:
    """Returns the cost that is the time of `work` with a model."""

    def time(model: PreTrainedModel, config: PruningConfig) -> float:
        return _medians(work, {"model": model}, config, TABLE_SECONDS)["model"]

    def ratio(reference: PreTrainedModel, student: PreTrainedModel, config: PruningConfig) -> float:
        medians = _medians(work, {"reference": reference, "student": student}, config, CHECK_SECONDS)
        return medians["reference"] / medians["student"]

    return Cost(time, ratio, aim=1.07, least=1.05, most=1.1, counted=False)


def _medians(
    work: Work, models: Mapping[str, PreTrainedModel], config: PruningConfig, seconds: float
) -> dict[str, float]:
    """Returns the median time of `work` with each model in milliseconds, taken in turn for about `seconds` in all."""
    calls = {name: work(model, config) for name, model in models.items()}
    once = sum(median(times) for times in time_in_turn(calls, repeats=1, warmup=1).values()) / 1e3
    repeats = min(100, max(5, round(seconds / once)))
    return {name: median(times) for name, times in time_in_turn(calls, repeats, warmup=1).items()}


def _exact(
    of: Callable[[PreTrainedModel, PruningConfig], float],
) -> Callable[[PreTrainedModel, PreTrainedModel, PruningConfig], float]:
    return lambda reference, student, config: of(reference, config) / of(student, config)


COSTS = {
    "target_speedup": _timed(_pass),
    "target_generation_speedup": _timed(_writing),
    "target_flops": Cost(_flops, _exact(_flops)),
    "target_size": Cost(_parameters, _exact(_parameters)),
}


def _probe(model: PreTrainedModel, cost: Cost, config: PruningConfig) -> PreTrainedModel:
    """Returns the model to take costs of: on the meta device, where nothing is computed, if they are only counted."""
    if not cost.counted:
        return model
    probe = copy.deepcopy(model).to("meta")
    try:
        cost.of(probe, config)
    except NotImplementedError:
        return model  # what it computes depends on values: T5's classifier looks for the end token in its input
    return probe


class Shapes:
    """The shapes that a model can be given under a target, with costs that are measured once.

    `reference` is the model that the target is a ratio of; None: `model`. What was measured is kept in the file
    `costs`, if there is one, and taken from there for the same models and settings: an interrupted run goes on with
    the same numbers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: PruningConfig,
        reference: PreTrainedModel | None = None,
        costs: Path | None = None,
    ) -> None:
        self.model, self.config = model, config
        self.reference = model if reference is None else reference
        if config.target is None:
            return
        self.cost = COSTS[config.target[0]]
        key = _measured_for(model, self.reference, config)
        known = _read_costs(costs, key)
        if known is not None:
            self.whole, table = known
            self.choice = BudgetedChoice(model, config, lambda _: math.nan, table)
            return
        probe = _probe(model, self.cost, config)
        with logging.tqdm(desc="costs of narrower shapes", unit=" shapes") as progress:

            def cost_of(selection: Selection) -> float:
                progress.update()
                return self.cost.of(cut(probe, selection), config)

            self.choice = BudgetedChoice(model, config, cost_of)
        self.whole = self.cost.of(self.reference, config)
        if costs is not None and not self.cost.counted:
            _write_costs(costs, key, self.whole, self.choice.table)

    def expected(self, config: PruningConfig, scores: Scores) -> Selection:
        """Returns what stays if the table of costs is believed, for the target or the fractions of `config`."""
        if config.target is None:
            return select_fractions(self.model, config, scores)
        return self.choice.within(max(self.whole / config.target[1], 1.001 * self.choice.smallest(scores)), scores)

    def kept(self, scores: Scores) -> Selection:
        """Returns what stays so that the target is kept: while the measured ratio misses, the choice is made again.

        Raises ValueError: the target cannot be reached; the message says what can.
        """
        if self.config.target is None:
            return select_fractions(self.model, self.config, scores)
        (name, goal), cost = self.config.target, self.cost
        best: tuple[float, Selection] | None = None
        tried: list[Selection] = []
        floor = 1.001 * self.choice.smallest(scores)
        budget = self.whole / (goal * cost.aim)
        for _ in range(ATTEMPTS):
            selection = self.choice.within(max(budget, floor), scores)
            if selection in tried:
                budget *= 0.99
                continue
            tried.append(selection)
            ratio = self._ratio(selection)
            logger.info(f"{name}: asked {goal:.3f}, choice {len(tried)} gives {ratio:.3f}")
            if ratio >= goal and (best is None or abs(ratio - goal * cost.aim) < abs(best[0] - goal * cost.aim)):
                best = ratio, selection
            if goal * cost.least <= ratio <= goal * cost.most or (ratio < goal and budget <= floor):
                break
            budget *= ratio / (goal * cost.aim)
        if best is None:
            reached = self._ratio(self.choice.within(floor, scores))
            raise ValueError(
                f"{name}={goal:g} cannot be reached: the smallest shape of this model that still attends gives "
                f"{reached:.2f}; ask for less, or start from a smaller model"
            )
        if best[0] > goal * OVERSHOOT:
            logger.warning(f"{name}={goal:g} was asked for; the nearest shape that keeps it gives {best[0]:.2f}")
        return best[1]

    def _ratio(self, selection: Selection) -> float:
        return self.cost.ratio(self.reference, cut(self.model, selection), self.config)


def _measured_for(model: PreTrainedModel, reference: PreTrainedModel, config: PruningConfig) -> dict[str, Any]:
    """Returns what measured costs depend on: shapes, the target's name, and how and where it is measured."""
    settings = {name: value for name, value in asdict(config).items() if name.startswith("latency_")}
    shapes = [
        {"class": type(each).__name__, "parameters": {name: [*p.shape] for name, p in each.named_parameters()}}
        for each in (model, reference)
    ]
    place = {"device": str(model.device), "threads": torch.get_num_threads()}
    return {"target": (config.target or ("",))[0], **settings, **place, "models": shapes}


def _read_costs(file: Path | None, key: Mapping[str, Any]) -> tuple[float, CostTable] | None:
    """Returns the whole cost and the table that `file` holds for `key`, None where it holds none."""
    if file is None or not file.exists():
        return None
    held = json.loads(file.read_text(encoding="utf-8"))
    return (held["whole"], CostTable(**held["table"])) if held["of"] == key else None


def _write_costs(file: Path, key: Mapping[str, Any], whole: float, table: CostTable) -> None:
    beside = file.with_name(file.name + ".partial")
    beside.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps({"of": key, "whole": whole, "table": asdict(table)}), encoding="utf-8")
    beside.replace(file)


def check_prunable(model: PreTrainedModel, config: PruningConfig) -> None:
    """Refuses what cannot work before any of the work is done.

    Raises ValueError: `config` asks for nothing or for a stack or runtime that there is not, or `model` is quantized.
    Raises TypeError: the architecture, or its task head, is unknown.
    """
    if is_quantized(model):
        raise ValueError("a quantized model cannot be pruned: prune its float form, then quantize")
    if not config.active:
        raise ValueError(
            "the PruningConfig asks for nothing: give a target (target_speedup=2), a fraction (layers=0.5) or "
            "connections (weights=0.5)"
        )
    family = family_of(model)
    family.class_for(type(model), model.config)
    config.check_stacks(tuple(family.stacks(model)))
    check_runtime(config.latency_runtime)
    if config.target_generation_speedup is not None and not model.can_generate():
        raise ValueError(
            f"target_generation_speedup is about models that write, {type(model).__name__} writes nothing: give "
            "target_speedup"
        )


def select(
    model: PreTrainedModel,
    config: PruningConfig,
    batches: Sequence[Batch] = (),
    reference: PreTrainedModel | None = None,
    loss: Loss | None = None,
) -> Selection:
    """Returns which layers and units of `model` stay; arguments as for `prune`."""
    shapes = Shapes(model, config, reference)
    return shapes.kept(score(model, config, batches, loss or task_or_sampled_loss(reference)))


def prune(
    model: PreTrainedModel,
    config: PruningConfig,
    dataloader: Iterable[Batch] = (),
    reference: PreTrainedModel | None = None,
    loss: Loss | None = None,
    scores: Scores | None = None,
    costs: Path | None = None,
) -> PreTrainedModel:
    """Returns a smaller copy of `model`, without training it; `model` itself stays as it is.

    | argument | meaning |
    | --- | --- |
    | dataloader | batches as tensors by name, which criterion and recovery look at; magnitude and random need none |
    | reference | the model that the target is a ratio of; None: `model` |
    | loss | sum of the losses of a batch's examples, (); None: the task's, or by the answers of `reference` |
    | scores | found already; None: by the criterion of `config` |
    | costs | a file that keeps measured costs, and gives them back for the same models and settings |

    A target is kept: the student's cost is measured (latency in turn with the reference's), and while it misses the
    choice is made again. What is left is fitted to what it wrote before (`recovery`), where there is data. Single
    connections go last.

    Raises ValueError: the config asks for nothing, or its target cannot be reached; the message says what can.
    Raises TypeError: the architecture is unknown.
    """
    check_prunable(model, config)
    loss = loss or task_or_sampled_loss(reference)
    batches = sample(dataloader, config.scoring_samples, model.device)
    student = model
    if config.removes_units:
        scores = scores or score(model, config, batches, loss)
        selection = Shapes(model, config, reference, costs).kept(scores)
        student = cut(model, selection)
        if config.recovery and batches:
            correct(student, model, selection, sample(batches, CALIBRATION_SAMPLES, model.device))
    if config.removes_connections:
        few = sample(batches, CONNECTION_SAMPLES, model.device)
        student = sparsify(student, few, criterion=config.criterion, loss=loss, **config.connections())
    return student
