"""When, and how much of a model, is removed during training."""

from __future__ import annotations

from dataclasses import dataclass

from hf_efficient.errors import UserError
from hf_efficient.pruning.config import PruningConfig


def cubic_fraction(step: int, begin: int, end: int, final: float, initial: float = 0.0) -> float:
    """Return the fraction of connections to be removed at `step`: `initial` until `begin`, `final` from `end` on.

    In between it grows fast at first, while many connections are redundant, and slowly towards the end.

    Raises UserError if `end` is before `begin`, or a fraction is outside [0, 1].
    Source: Zhu and Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression",
    eq. 1.
    """
    if end < begin:
        raise UserError(f"end={end} is before begin={begin}: give the steps in order")
    for name, value in (("initial", initial), ("final", final)):
        if not 0 <= value <= 1:
            raise UserError(f"{name}={value} is not a fraction: give a number in [0, 1]")
    if step >= end:
        return final
    if step <= begin:
        return initial
    remaining = 1 - (step - begin) / (end - begin)
    return final + (initial - final) * remaining**3


@dataclass(frozen=True)
class Phase:
    """One of the training runs that a pruning consists of.

    | field | meaning |
    | --- | --- |
    | number | names the folder of the run; from 1 on, the round of pruning that is done before it |
    | epoch_fraction | fraction of the epochs that it trains for |
    | closes_gates | whether gates close during it |
    """

    number: int
    epoch_fraction: float
    closes_gates: bool = False


def plan_phases(config: PruningConfig) -> list[Phase]:
    """Return the training runs that `config` requests.

    | config | runs |
    | --- | --- |
    | rounds=n | n times: prune, train |
    | ramp=f | train while gates close, for a fraction f of the epochs; prune; train |
    | rewind | train, then n times: prune, rewind, train |
    """
    if config.ramp:
        return [Phase(0, config.ramp, closes_gates=True), Phase(1, 1 - config.ramp)]
    first = 0 if config.rewind else 1
    numbers = range(first, config.rounds + 1)
    return [Phase(number, 1 / len(numbers)) for number in numbers]
