"""When and how much is removed while a model is trained."""

from __future__ import annotations

from dataclasses import dataclass

from hf_efficient.errors import UserError
from hf_efficient.pruning.config import PruningConfig


def cubic_fraction(step: int, begin: int, end: int, final: float, initial: float = 0.0) -> float:
    """Return the fraction of connections to be gone at `step`: `initial` before `begin`, `final` from `end` on.

    In between it rises fast at first, while there is much that nobody misses, and slows down towards the end.

    Raises ValueError: `end` is before `begin`, or a fraction is outside [0, 1].
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
    left = 1 - (step - begin) / (end - begin)
    return final + (initial - final) * left**3


@dataclass(frozen=True)
class Phase:
    """A stock training run among those that make up pruning.

    `number` names its folder and, from 1 on, is the round of pruning that comes before it; `share` is its part of the
    epochs; with `ramps`, gates close while it lasts.
    """

    number: int
    epoch_fraction: float
    closes_gates: bool = False


def plan_phases(config: PruningConfig) -> list[Phase]:
    """Return the training runs that `config` asks for.

    | config | runs |
    | --- | --- |
    | rounds=n | prune, train, n times |
    | ramp=f | train with closing gates for a fraction f of the epochs, cut, train |
    | rewind | train, then n times: prune, go back, train |
    """
    if config.ramp:
        return [Phase(0, config.ramp, closes_gates=True), Phase(1, 1 - config.ramp)]
    first = 0 if config.rewind else 1
    runs = range(first, config.rounds + 1)
    return [Phase(number, 1 / len(runs)) for number in runs]
