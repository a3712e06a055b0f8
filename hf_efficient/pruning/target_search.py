"""Search for the selection that reaches a target, whose cost is measured."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.errors import UserError
from hf_efficient.files.replacing import replacing
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.pruning.scoring import BudgetSelector, select_fractions
from hf_efficient.pruning.selection import CostTable, Scores, Selection, remove_units

logger = logging.get_logger(__name__)

MAX_ATTEMPTS = 10
MAX_OVERSHOOT = 1.1
# The table interpolates linearly, and rounding could put the smallest shape just above its own cost.
FLOOR_FACTOR = 1.001
# Budgets that differ by less are the same to the search.
BUDGET_STEP = 1.02
# Differences below these factors between costs in the table, and between ratios measured alternately, may be noise.
TABLE_NOISE_FACTOR = 1.1
RATIO_NOISE_FACTOR = 1.03


class Cost(Protocol):
    """A cost of models that a target is a ratio of, as `hf_efficient.measurement.target_costs.TargetCost`.

    The search aims at `aim_factor` times the requested ratio, and ends with a ratio between `min_factor` and
    `max_factor` times it. A deterministic cost depends on the shape of a model alone.
    """

    def measure(self, model: PreTrainedModel, /) -> float:
        """Return the cost of a student."""
        ...

    def measure_reference(self, model: PreTrainedModel, /) -> float:
        """Return the cost of the reference, which may be measured in another form than students."""
        ...

    def ratio(self, reference: PreTrainedModel, student: PreTrainedModel, /) -> float:
        """Return the cost of `reference` divided by that of `student`."""
        ...

    @property
    def aim_factor(self) -> float: ...  # noqa: D102
    @property
    def min_factor(self) -> float: ...  # noqa: D102
    @property
    def max_factor(self) -> float: ...  # noqa: D102
    @property
    def is_deterministic(self) -> bool: ...  # noqa: D102


class TargetSearch:
    """Selects what `model` keeps under the target, or by the fractions, of `config`.

    | argument | meaning |
    | --- | --- |
    | cost | the cost that the target of `config` is a ratio of; None where `config` has no target |
    | reference | the model that the target is a ratio of; None: `model` |
    | cost_file | measured costs are written to it, and read from it for the same models and settings |

    Costs of narrower shapes are measured once, when the search is built. With a `cost_file`, a resumed run selects by
    the same costs as the interrupted one.
    """

    cost: Cost
    reference_cost: float
    selector: BudgetSelector

    def __init__(
        self,
        model: PreTrainedModel,
        config: PruningConfig,
        cost: Cost | None,
        reference: PreTrainedModel | None = None,
        cost_file: Path | None = None,
    ) -> None:
        self.model, self.config = model, config
        self.reference = model if reference is None else reference
        if config.target is None:
            return
        if cost is None:
            raise UserError(f"{config.target[0]} needs a cost: use hf_efficient.functions.build_target_search")
        self.cost = cost
        cache_key = _cost_cache_key(model, self.reference, config)
        cached = _load_cost_table(cost_file, cache_key)
        if cached is None:
            self.selector = self._measure_selector()
            self.reference_cost = cost.measure_reference(self.reference)
            if cost_file is not None and not cost.is_deterministic:
                _save_cost_table(cost_file, cache_key, self.reference_cost, self.selector.table)
        else:
            self.reference_cost, table = cached
            self.selector = BudgetSelector(model, config, table)
        self._check_reachable(*config.target)

    def _check_reachable(self, name: str, target_ratio: float) -> None:
        """Raise UserError if even the smallest shape is far from the target, whatever the scores will be."""
        blocks = self.selector.infos
        equal = Scores({block.name: torch.ones(block.units) for block in blocks}, {b.layer: 1.0 for b in blocks})
        floor = FLOOR_FACTOR * self.selector.min_cost(equal)
        if floor <= MAX_OVERSHOOT * self.reference_cost / target_ratio:
            return
        ratio = self._measure_ratio(self.selector.select(floor, equal), target_ratio)
        if ratio * MAX_OVERSHOOT < target_ratio:
            raise _unreachable(name, target_ratio, ratio)

    def _measure_selector(self) -> BudgetSelector:
        measured_model = _meta_copy(self.model, self.cost) if self.cost.is_deterministic else self.model
        with logging.tqdm(desc="costs of narrower shapes", unit=" shapes") as progress:

            def cost_of(selection: Selection) -> float:
                progress.update()
                return self.cost.measure(remove_units(measured_model, selection))

            return BudgetSelector.from_costs(self.model, self.config, cost_of)

    def select_from_table(self, config: PruningConfig, scores: Scores) -> Selection:
        """Return the selection for the target or the fractions of `config`, by the cost table alone."""
        if config.target is None:
            return select_fractions(self.model, config, scores)
        budget = self.reference_cost / config.target[1]
        return self.selector.select(max(budget, FLOOR_FACTOR * self.selector.min_cost(scores)), scores)

    def select_until_met(self, scores: Scores) -> Selection:
        """Return the selection that meets the target: while the measured ratio misses it, the budget is corrected.

        Raises UserError if the target cannot be reached; the message names the ratio that can.
        """
        if self.config.target is None:
            return select_fractions(self.model, self.config, scores)
        name, target_ratio = self.config.target
        floor = FLOOR_FACTOR * self.selector.min_cost(scores)
        best = self._search_budget(target_ratio, floor, scores)
        if best is None:
            ratio = self._measure_ratio(self.selector.select(floor, scores), target_ratio)
            raise _unreachable(name, target_ratio, ratio)
        ratio, selection = best if self.cost.is_deterministic else self._restore_free_units(target_ratio, *best)
        if ratio > target_ratio * MAX_OVERSHOOT:
            logger.warning(f"{name}={target_ratio:g} was requested; the nearest shape that meets it has {ratio:.2f}")
        return selection

    def _search_budget(self, target_ratio: float, floor: float, scores: Scores) -> tuple[float, Selection] | None:
        """Return the ratio and the selection of the first budget whose ratio is between the factors of the cost.

        If there is none, those of the largest budget that meets the target, if any does. The next budget is in
        proportion to the last ratio, between the largest that removed too much and the smallest that did too little.
        """
        aimed_ratio = target_ratio * self.cost.aim_factor
        min_ratio, max_ratio = target_ratio * self.cost.min_factor, target_ratio * self.cost.max_factor
        attempts: list[tuple[float, Selection]] = []
        best: tuple[float, Selection] | None = None
        best_budget = 0.0
        lower, upper = 0.0, math.inf
        budget = max(self.reference_cost / aimed_ratio, floor)
        for _ in range(MAX_ATTEMPTS):
            selection = self.selector.select(budget, scores)
            ratio = next((ratio for ratio, attempted in attempts if attempted == selection), None)
            if ratio is None:
                ratio = self._measure_ratio(selection, target_ratio)
                attempts.append((ratio, selection))
                logger.info(f"target ratio {target_ratio:.3f}, attempt {len(attempts)} reaches {ratio:.3f}")
            if min_ratio <= ratio <= max_ratio:
                return ratio, selection
            if ratio >= target_ratio and budget > best_budget:
                best, best_budget = (ratio, selection), budget
            if ratio > max_ratio:
                lower = budget
            elif budget > floor:
                upper = min(budget, self.selector.table.total(selection))
            else:
                break
            budget *= ratio / aimed_ratio
            if upper <= BUDGET_STEP * lower:
                break
            if not lower < budget < upper:
                budget = math.sqrt(lower * upper) if lower else 0.999 * upper
            budget = max(budget, floor)
        return best

    def _restore_free_units(self, target_ratio: float, ratio: float, selection: Selection) -> tuple[float, Selection]:
        """Return the ratio and the selection with all units of its blocks, if it is hardly slower, else those given.

        Where width costs nothing, the noise of the table can have narrowed the blocks.
        """
        units = {
            block.name: tuple(range(block.units)) if selection.units[block.name] else ()
            for block in self.selector.infos
        }
        wide = Selection(selection.layers, units)
        table, aimed_ratio = self.selector.table, target_ratio * self.cost.aim_factor
        if wide == selection or table.total(wide) > TABLE_NOISE_FACTOR * table.total(selection):
            return ratio, selection
        wide_ratio = self._measure_ratio(wide, target_ratio)
        is_as_fast = wide_ratio >= max(target_ratio, min(ratio, aimed_ratio) / RATIO_NOISE_FACTOR)
        return (wide_ratio, wide) if is_as_fast else (ratio, selection)

    def _measure_ratio(self, selection: Selection, target_ratio: float) -> float:
        """Return the measured ratio; the lower of two measurements if the first one would be accepted but is noisy."""
        student = remove_units(self.model, selection)
        ratio = self.cost.ratio(self.reference, student)
        if self.cost.is_deterministic or not target_ratio <= ratio <= target_ratio * self.cost.max_factor:
            return ratio
        return min(ratio, self.cost.ratio(self.reference, student))


def _unreachable(name: str, target_ratio: float, reachable_ratio: float) -> UserError:
    return UserError(
        f"{name}={target_ratio:g} cannot be reached: the smallest shape of this model that keeps an attention head "
        f"reaches {reachable_ratio:.2f}; give a lower target, or start from a smaller model"
    )


def _meta_copy(model: PreTrainedModel, cost: Cost) -> PreTrainedModel:
    """Return a copy of `model` on the meta device, where nothing is computed, or `model` if it cannot run there."""
    meta_model = copy.deepcopy(model).to("meta")
    try:
        cost.measure(meta_model)
    except RuntimeError:
        # Its forward pass reads values: T5's classifier looks for the end token in its input, DeBERTa for padding.
        return model
    return meta_model


def _cost_cache_key(model: PreTrainedModel, reference: PreTrainedModel, config: PruningConfig) -> dict[str, Any]:
    """Return what measured costs depend on: shapes, the target's name, and how and where they are measured."""
    latency_settings = {name: value for name, value in asdict(config).items() if name.startswith("latency_")}
    shapes = [
        {"class": type(each).__name__, "parameters": {name: [*p.shape] for name, p in each.named_parameters()}}
        for each in (model, reference)
    ]
    machine = {"device": str(model.device), "threads": torch.get_num_threads()}
    return {"target": (config.target or ("",))[0], **latency_settings, **machine, "models": shapes}


def _load_cost_table(file: Path | None, cache_key: Mapping[str, Any]) -> tuple[float, CostTable] | None:
    """Return the reference cost and the table that `file` holds for `cache_key`, None if it holds others or none."""
    if file is None or not file.exists():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("key") != cache_key:
        return None
    return content["reference_cost"], CostTable(**content["table"])


def _save_cost_table(file: Path, cache_key: Mapping[str, Any], reference_cost: float, table: CostTable) -> None:
    content = {"key": cache_key, "reference_cost": reference_cost, "table": asdict(table)}
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
