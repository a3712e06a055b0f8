"""From a model, a config and data to scores, and from scores to a selection."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.models import family_of
from hf_efficient.models.batches import Batch, example_count
from hf_efficient.models.blocks import AttentionBlock
from hf_efficient.pruning.budget_search import (
    cross_attention_blocks,
    keep_uniform_fraction,
    measure_costs,
    min_cost,
    select_uniformly,
    select_within_budget,
)
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.pruning.criteria import CRITERIA
from hf_efficient.pruning.losses import Loss
from hf_efficient.pruning.selection import BlockInfo, CostTable, Scores, Selection, top_units

MULTIPLE_ON_CPU, MULTIPLE_ON_ACCELERATOR = 8, 32


def take_examples(dataloader: Iterable[Batch], count: int, device: torch.device) -> list[dict[str, torch.Tensor]]:
    """Return batches with the first `count` examples of `dataloader`, only their tensors, on `device`."""
    batches: list[dict[str, torch.Tensor]] = []
    for batch in dataloader:
        batches.append({name: value[:count].to(device) for name, value in batch.items() if torch.is_tensor(value)})
        count -= example_count(batches[-1])
        if count <= 0:
            break
    return batches


def score_units(model: PreTrainedModel, config: PruningConfig, batches: Iterable[Batch], loss: Loss) -> Scores:
    """Return the scores of `model` by the criterion of `config` on `batches`."""
    return CRITERIA[config.criterion](model, logging.tqdm(batches, desc=f"scores by {config.criterion}"), loss)


def default_multiple(device: torch.device) -> int:
    """Return what feed-forward widths are multiples of by default: matrix units of GPUs work on tiles of that size."""
    return MULTIPLE_ON_CPU if device.type in ("cpu", "meta") else MULTIPLE_ON_ACCELERATOR


def block_infos(model: PreTrainedModel, config: PruningConfig) -> list[BlockInfo]:
    """Return what selecting needs to know about every block of `model`."""
    infos = []
    for name, block in family_of(model).blocks(model).items():
        stack, _, short_name = name.split(".", 2)
        is_heads = isinstance(block, AttentionBlock)
        infos.append(
            BlockInfo(
                name=name,
                layer=block.layer,
                kind="heads" if is_heads else "neurons",
                units=block.units,
                step=1 if is_heads else config.multiple_of or default_multiple(model.device),
                shape_key=f"{stack}.{short_name}",
                min_units=math.ceil(config.fraction_for("keep_at_least", stack) * block.units),
            )
        )
    return infos


class BudgetSelector:
    """Selects what `model` keeps within budgets, by one table of costs for all of them."""

    def __init__(self, model: PreTrainedModel, config: PruningConfig, table: CostTable) -> None:
        self.infos, self.config, self.table = block_infos(model, config), config, table

    @classmethod
    def from_costs(
        cls, model: PreTrainedModel, config: PruningConfig, cost_of: Callable[[Selection], float]
    ) -> BudgetSelector:
        """Return the selector whose table is measured by `cost_of`, the cost of `model` when it keeps a selection."""
        runs_without_layers = family_of(model).runs_without_layers
        return cls(
            model, config, measure_costs(block_infos(model, config), cost_of, runs_without_layers=runs_without_layers)
        )

    def min_cost(self, scores: Scores) -> float:
        """Return the cost in the table of the cheapest selection that is considered."""
        if self.config.scope == "layer":
            return self.table.total(keep_uniform_fraction(self.infos, scores, 0))
        return min_cost(self.infos, scores, self.table, self.config.portable)

    def select(self, budget: float, scores: Scores) -> Selection:
        """Return the selection with the lowest score removed whose cost in the table is at most `budget`.

        Raises UserError if no selection fits `budget`.
        """
        if self.config.scope == "layer":
            return select_uniformly(self.infos, scores, self.table, budget)
        return select_within_budget(self.infos, scores, self.table, budget, uniform=self.config.portable)


def select_fractions(model: PreTrainedModel, config: PruningConfig, scores: Scores) -> Selection:
    """Return what `model` keeps when the fractions of its layers, blocks, heads and neurons with the lowest scores go.

    Each stack of layers loses its own fractions, and keeps at least one layer, block, head and neuron; a decoder also
    keeps a head of cross attention, without which its output would not depend on the encoder.
    """
    infos = block_infos(model, config)
    layers: list[str] = []
    units: dict[str, tuple[int, ...]] = {}
    for stack in dict.fromkeys(block.name.partition(".")[0] for block in infos):
        stack_blocks = [block for block in infos if block.name.startswith(f"{stack}.")]
        stack_layers = list(dict.fromkeys(block.layer for block in stack_blocks))
        kept_layers = _keep_best(
            {name: scores.layers[name] for name in stack_layers}, config.fraction_for("layers", stack)
        )
        layers += [name for name in stack_layers if name in kept_layers]
        candidates = [block for block in stack_blocks if block.layer in kept_layers and block.units]
        errors = {block.name: float(scores.removal_errors(block.name, [0])[0]) for block in candidates}
        kept_blocks = _keep_best(errors, config.fraction_for("blocks", stack))
        if cross_attention := cross_attention_blocks(errors):
            best = max(sorted(cross_attention), key=errors.__getitem__)
            if best not in kept_blocks:
                kept_blocks = kept_blocks - {min(kept_blocks, key=errors.__getitem__)} | {best}
            candidates = [replace(b, min_units=max(1, b.min_units)) if b.name == best else b for b in candidates]
        units |= {block.name: tuple(range(block.units)) if block.name in kept_blocks else () for block in stack_blocks}
        for kind in ("heads", "neurons"):
            blocks = [block for block in candidates if block.kind == kind and block.name in kept_blocks]
            units |= _keep_best_units(blocks, config.fraction_for(kind, stack), scores, config.scope)
    return Selection(tuple(layers), units)


def _keep_best(scores: Mapping[str, float], fraction: float) -> set[str]:
    """Return the names that are kept when `fraction` of them, with the lowest scores, goes; at least one."""
    count = max(1, round(len(scores) * (1 - fraction)))
    return set(sorted(scores, key=lambda name: -scores[name])[:count])


def _keep_best_units(
    blocks: list[BlockInfo], fraction: float, scores: Scores, scope: str
) -> dict[str, tuple[int, ...]]:
    """Return what `blocks` keep when `fraction` of their units goes: of all, or with `scope="layer"` of each block."""
    if not fraction or not blocks:
        return {}
    groups = [blocks] if scope == "global" else [[block] for block in blocks]
    units = {}
    for group in groups:
        ranking = torch.cat([scores.units[block.name] for block in group]).argsort(descending=True, stable=True)
        owners = torch.arange(len(group)).repeat_interleave(torch.tensor([block.units for block in group]))
        kept_owners = owners[ranking[: max(1, round(len(ranking) * (1 - fraction)))].cpu()]
        for block, count in zip(group, kept_owners.bincount(minlength=len(group)).tolist(), strict=True):
            width = max(count, block.min_units)
            width = min(block.units, math.ceil(width / block.step) * block.step)
            units[block.name] = top_units(scores.units[block.name], width)
    return units
