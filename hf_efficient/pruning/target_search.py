"""Search for the shape that meets a target, with costs that are measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.errors import UserError
from hf_efficient.measurement.target_costs import TARGET_COSTS, meta_copy
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.pruning.scoring import BudgetSelector, select_fractions
from hf_efficient.pruning.selection import CostTable, Scores, Selection, remove_units

logger = logging.get_logger(__name__)

MAX_ATTEMPTS = 8
MAX_OVERSHOOT = 1.1


class TargetSearch:
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
        self.cost = TARGET_COSTS[config.target[0]]
        key = _cost_cache_key(model, self.reference, config)
        known = _load_cost_table(costs, key)
        if known is not None:
            self.whole, table = known
            self.choice = BudgetSelector(model, config, lambda _: math.nan, table)
            return
        probe = meta_copy(model, self.cost, config)
        with logging.tqdm(desc="costs of narrower shapes", unit=" shapes") as progress:

            def cost_of(selection: Selection) -> float:
                progress.update()
                return self.cost.of(remove_units(probe, selection), config)

            self.choice = BudgetSelector(model, config, cost_of)
        self.whole = self.cost.of(self.reference, config)
        if costs is not None and not self.cost.counted:
            _save_cost_table(costs, key, self.whole, self.choice.table)

    def expected(self, config: PruningConfig, scores: Scores) -> Selection:
        """Return what stays if the table of costs is believed, for the target or the fractions of `config`."""
        if config.target is None:
            return select_fractions(self.model, config, scores)
        return self.choice.within(max(self.whole / config.target[1], 1.001 * self.choice.smallest(scores)), scores)

    def kept(self, scores: Scores) -> Selection:
        """Return what stays so that the target is kept: while the measured ratio misses, the choice is made again.

        Raises ValueError: the target cannot be reached; the message says what can.
        """
        if self.config.target is None:
            return select_fractions(self.model, self.config, scores)
        (name, goal), cost = self.config.target, self.cost
        best: tuple[float, Selection] | None = None
        tried: list[Selection] = []
        floor = 1.001 * self.choice.smallest(scores)
        budget = self.whole / (goal * cost.aim)
        for _ in range(MAX_ATTEMPTS):
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
            raise UserError(
                f"{name}={goal:g} cannot be reached: the smallest shape of this model that still attends gives "
                f"{reached:.2f}; ask for less, or start from a smaller model"
            )
        if best[0] > goal * MAX_OVERSHOOT:
            logger.warning(f"{name}={goal:g} was asked for; the nearest shape that keeps it gives {best[0]:.2f}")
        return best[1]

    def _ratio(self, selection: Selection) -> float:
        return self.cost.ratio(self.reference, remove_units(self.model, selection), self.config)


def _cost_cache_key(model: PreTrainedModel, reference: PreTrainedModel, config: PruningConfig) -> dict[str, Any]:
    """Return what measured costs depend on: shapes, the target's name, and how and where it is measured."""
    settings = {name: value for name, value in asdict(config).items() if name.startswith("latency_")}
    shapes = [
        {"class": type(each).__name__, "parameters": {name: [*p.shape] for name, p in each.named_parameters()}}
        for each in (model, reference)
    ]
    place = {"device": str(model.device), "threads": torch.get_num_threads()}
    return {"target": (config.target or ("",))[0], **settings, **place, "models": shapes}


def _load_cost_table(file: Path | None, key: Mapping[str, Any]) -> tuple[float, CostTable] | None:
    """Return the whole cost and the table that `file` holds for `key`, None where it holds none."""
    if file is None or not file.exists():
        return None
    held = json.loads(file.read_text(encoding="utf-8"))
    return (held["whole"], CostTable(**held["table"])) if held["of"] == key else None


def _save_cost_table(file: Path, key: Mapping[str, Any], whole: float, table: CostTable) -> None:
    beside = file.with_name(file.name + ".partial")
    beside.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps({"of": key, "whole": whole, "table": asdict(table)}), encoding="utf-8")
    beside.replace(file)
