"""Scoring and choosing for a config: from a model and data to what stays of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.models import family_of
from hf_efficient.models.structure import AttentionBlock
from hf_efficient.pruning.batches import Batch, example_count
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


def block_infos(model: PreTrainedModel, config: PruningConfig) -> list[BlockInfo]:
    """Return what choosing needs to know of every block of `model`."""
    facts = []
    for name, block in family_of(model).blocks(model).items():
        stack, _, short = name.split(".", 2)
        is_heads = isinstance(block, AttentionBlock)
        facts.append(
            BlockInfo(
                name=name,
                layer=block.layer,
                kind="heads" if is_heads else "neurons",
                units=block.units,
                step=1 if is_heads else config.multiple_of,
                shape_key=f"{stack}.{short}",
                least=math.ceil(config.share("keep_at_least", stack) * block.units),
            )
        )
    return facts


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
    """Return the scores of `model` by the criterion of `config` over `batches`."""
    return CRITERIA[config.criterion](model, logging.tqdm(batches, desc=f"scores by {config.criterion}"), loss)


class BudgetSelector:
    """Chooses shapes under budgets: costs are taken once, then each budget is answered in a moment."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: PruningConfig,
        cost_of: Callable[[Selection], float],
        table: CostTable | None = None,
    ) -> None:
        self.facts, self.config = block_infos(model, config), config
        self.table = table or measure_costs(self.facts, cost_of)

    def smallest(self, scores: Scores) -> float:
        """Return the cost in the table of the cheapest shape that is considered."""
        if self.config.scope == "layer":
            return self.table.total(keep_uniform_fraction(self.facts, scores, 0))
        return min_cost(self.facts, scores, self.table, self.config.portable)

    def within(self, budget: float, scores: Scores) -> Selection:
        """Return the selection that loses least among those whose cost in the table is at most `budget`."""
        if self.config.scope == "layer":
            return select_uniformly(self.facts, scores, self.table, budget)
        return select_within_budget(self.facts, scores, self.table, budget, uniform=self.config.portable)


def select_fractions(model: PreTrainedModel, config: PruningConfig, scores: Scores) -> Selection:
    """Return what stays when the lowest scored fractions of the layers, blocks, heads and neurons of `model` go.

    Each stack of layers loses its own fraction, and keeps at least one layer, block, head and neuron; a decoder one
    head of cross attention.
    """
    facts = block_infos(model, config)
    layers: list[str] = []
    units: dict[str, tuple[int, ...]] = {}
    for stack in dict.fromkeys(block.name.partition(".")[0] for block in facts):
        members = [block for block in facts if block.name.startswith(f"{stack}.")]
        names = list(dict.fromkeys(block.layer for block in members))
        kept = _best({name: scores.layers[name] for name in names}, config.share("layers", stack))
        layers += [name for name in names if name in kept]
        present = [block for block in members if block.layer in kept and block.units]
        losses = {block.name: float(scores.removal_errors(block.name, [0])[0]) for block in present}
        whole = _best(losses, config.share("blocks", stack))
        if crossing := cross_attention_blocks(losses):  # a decoder that does not look at its encoder writes anything
            best = max(sorted(crossing), key=losses.__getitem__)
            if best not in whole:
                whole = whole - {min(whole, key=losses.__getitem__)} | {best}
            present = [replace(b, least=max(1, b.least)) if b.name == best else b for b in present]
        units |= {block.name: tuple(range(block.units)) if block.name in whole else () for block in members}
        for kind in ("heads", "neurons"):
            blocks = [block for block in present if block.kind == kind and block.name in whole]
            units |= _best_units(blocks, config.share(kind, stack), scores, config.scope)
    return Selection(tuple(layers), units)


def _best(scores: Mapping[str, float], fraction: float) -> set[str]:
    """Return the names that are left when the lowest scored `fraction` of them goes, one at least."""
    count = max(1, round(len(scores) * (1 - fraction)))
    return set(sorted(scores, key=lambda name: -scores[name])[:count])


def _best_units(blocks: list[BlockInfo], fraction: float, scores: Scores, scope: str) -> dict[str, tuple[int, ...]]:
    """Return what stays of `blocks` when the lowest scored `fraction` of their units goes, together or of each."""
    if not fraction or not blocks:
        return {}
    groups = [blocks] if scope == "global" else [[block] for block in blocks]
    units = {}
    for group in groups:
        ranked = torch.cat([scores.units[block.name] for block in group]).argsort(descending=True, stable=True)
        owners = torch.arange(len(group)).repeat_interleave(torch.tensor([block.units for block in group]))
        kept = owners[ranked[: max(1, round(len(ranked) * (1 - fraction)))].cpu()]
        for block, count in zip(group, kept.bincount(minlength=len(group)).tolist(), strict=True):
            width = max(count, block.least)
            width = min(block.units, -(-width // block.step) * block.step)
            units[block.name] = top_units(scores.units[block.name], width)
    return units
