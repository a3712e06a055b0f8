"""Pruning asked for as one config: score, choose, cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.models import family_of
from hf_efficient.models.structure import AttentionBlock
from hf_efficient.pruning.budget import (
    BlockFacts,
    CostTable,
    Scores,
    Selection,
    choose,
    keep_best,
    measure_costs,
    smallest_cost,
)
from hf_efficient.pruning.importance import CRITERIA, Batch, Loss, example_loss

TARGETS = ("target_speedup", "target_flops", "target_size")
FRACTIONS = ("heads", "neurons", "layers")


@dataclass(frozen=True)
class PruningConfig:
    """What to remove: a target that is reached by the cheapest loss, or explicit fractions.

    Raises ValueError: a field is out of its range, or the fields contradict each other.
    """

    target_speedup: float | None = field(
        default=None, metadata={"help": "Latency of the teacher divided by the student's, measured here: 2 halves it."}
    )
    target_flops: float | None = field(
        default=None, metadata={"help": "Floating point operations of the teacher divided by the student's."}
    )
    target_size: float | None = field(
        default=None, metadata={"help": "Parameters of the teacher divided by the student's."}
    )
    heads: float | None = field(
        default=None, metadata={"help": "Fraction of all attention heads to remove, in [0, 1)."}
    )
    neurons: float | None = field(
        default=None, metadata={"help": "Fraction of all feed-forward neurons to remove, in [0, 1)."}
    )
    layers: float | None = field(default=None, metadata={"help": "Fraction of the layers to remove, in [0, 1)."})
    criterion: str = field(default="fisher", metadata={"help": f"How units are scored: one of {', '.join(CRITERIA)}."})
    rounds: int = field(
        default=1,
        metadata={"help": "Prune in this many steps of equal ratio, with an equal share of training after each."},
    )
    scoring_samples: int = field(default=2048, metadata={"help": "Training examples that the criterion looks at."})
    multiple_of: int = field(
        default=8, metadata={"help": "Feed-forward widths are multiples of this, which matrix hardware likes."}
    )
    portable: bool = field(
        default=False,
        metadata={"help": "Only shapes that the stock class of the model can hold: loads without any code of ours."},
    )
    latency_batch_size: int = field(default=1, metadata={"help": "Batch size at which latency is measured."})
    latency_sequence_length: int = field(
        default=128, metadata={"help": "Tokens an example where latency is measured."}
    )

    def __post_init__(self) -> None:
        for name in TARGETS:
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ValueError(
                    f"{name}={value} asks for a larger model: give a ratio of at least 1, such as 2 to halve"
                )
        for name in FRACTIONS:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name}={value} is not a fraction to remove: give a number in [0, 1)")
        for name in ("rounds", "scoring_samples", "multiple_of", "latency_batch_size", "latency_sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion={self.criterion!r} is unknown: give one of {', '.join(CRITERIA)}")
        targets = [name for name in TARGETS if getattr(self, name) is not None]
        fractions = [name for name in FRACTIONS if getattr(self, name) is not None]
        if len(targets) > 1 or (targets and fractions):
            raise ValueError(
                f"{', '.join(targets + fractions)} cannot be asked for together: give one target or fractions"
            )
        if self.portable and (self.heads or self.neurons):
            raise ValueError(
                "portable=True keeps shapes that a stock class holds, which fractions of heads or neurons are not: "
                "give a target, or only layers"
            )

    @property
    def target(self) -> tuple[str, float] | None:
        """The (name, ratio) of the target, if there is one."""
        return next(((name, getattr(self, name)) for name in TARGETS if getattr(self, name) is not None), None)

    def step(self, number: int) -> PruningConfig:
        """Returns what round `number`, counted from 1, of `rounds` asks for: the same ratio in every round.

        Targets count from the unpruned model, fractions from what the round before left.
        """
        changes = {
            name: 1 - (1 - getattr(self, name)) ** (1 / self.rounds) for name in FRACTIONS if getattr(self, name)
        }
        if self.target is not None:
            changes = {self.target[0]: self.target[1] ** (number / self.rounds)}
        return replace(self, **changes, rounds=1)

    @property
    def active(self) -> bool:
        """Whether anything is to be removed."""
        return self.target is not None or any(getattr(self, name) for name in FRACTIONS)


def block_facts(model: PreTrainedModel, config: PruningConfig) -> list[BlockFacts]:
    """Returns what choosing needs to know of every block of `model`."""
    facts = []
    for name, block in family_of(model).blocks(model).items():
        stack, _, short = name.split(".", 2)
        is_heads = isinstance(block, AttentionBlock)
        facts.append(
            BlockFacts(
                name=name,
                layer=block.layer,
                kind="heads" if is_heads else "neurons",
                units=block.units,
                step=1 if is_heads else config.multiple_of,
                shape_key=f"{stack}.{short}",
            )
        )
    return facts


def score(
    model: PreTrainedModel, config: PruningConfig, dataloader: Iterable[Batch], loss: Loss = example_loss
) -> Scores:
    """Returns the scores of `model` by the criterion of `config`, over `scoring_samples` examples of `dataloader`."""

    def batches() -> Iterable[Batch]:
        left = config.scoring_samples
        for batch in logging.tqdm(dataloader, desc=f"scores by {config.criterion}"):
            tensors = {name: value[:left].to(model.device) for name, value in batch.items() if torch.is_tensor(value)}
            yield tensors
            left -= next(iter(tensors.values())).shape[0]
            if left <= 0:
                return

    return CRITERIA[config.criterion](model, batches(), loss)


class BudgetedChoice:
    """Chooses shapes under budgets: scores and costs are taken once, then each budget is answered in a moment."""

    def __init__(
        self, model: PreTrainedModel, config: PruningConfig, scores: Scores, cost_of: Callable[[Selection], float]
    ) -> None:
        self.facts, self.scores, self.uniform = block_facts(model, config), scores, config.portable
        self.table: CostTable = measure_costs(self.facts, cost_of)

    @property
    def smallest(self) -> float:
        """The cost in the table of the cheapest shape that is considered."""
        return smallest_cost(self.facts, self.scores, self.table, self.uniform)

    def within(self, budget: float) -> Selection:
        """Returns the selection that loses least among those whose cost in the table is at most `budget`."""
        return choose(self.facts, self.scores, self.table, budget, uniform=self.uniform)


def select_fractions(model: PreTrainedModel, config: PruningConfig, scores: Scores) -> Selection:
    """Returns what stays when the lowest scored fractions of the layers, heads and neurons of `model` go."""
    facts = block_facts(model, config)
    layers = tuple(dict.fromkeys(block.layer for block in facts))
    if config.layers:
        count = max(1, round(len(layers) * (1 - config.layers)))
        kept = sorted(layers, key=lambda layer: -scores.layers[layer])[:count]
        layers = tuple(layer for layer in layers if layer in kept)
    units = {block.name: tuple(range(block.units)) if block.layer in layers else () for block in facts}
    for kind, fraction in (("heads", config.heads), ("neurons", config.neurons)):
        blocks = [block for block in facts if block.kind == kind and block.layer in layers]
        if not fraction or not blocks:
            continue
        ranked = torch.cat([scores.units[block.name] for block in blocks]).sort(descending=True).values
        lowest = ranked[max(1, round(len(ranked) * (1 - fraction))) - 1]
        for block in blocks:
            width = int((scores.units[block.name] >= lowest).sum())
            width = min(block.units, -(-width // block.step) * block.step)
            units[block.name] = keep_best(scores.units[block.name], width)
    return Selection(layers, units)
