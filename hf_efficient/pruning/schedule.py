"""When and how much is removed while a model is trained."""

from __future__ import annotations


def cubic_fraction(step: int, begin: int, end: int, final: float, initial: float = 0.0) -> float:
    """Returns the fraction of connections to be gone at `step`: `initial` before `begin`, `final` from `end` on.

    In between it rises fast at first, while there is much that nobody misses, and slows down towards the end.

    Raises ValueError: `end` is before `begin`, or a fraction is outside [0, 1].
    Source: Zhu and Gupta 2017, "To prune, or not to prune: exploring the efficacy of pruning for model compression",
    eq. 1.
    """
    if end < begin:
        raise ValueError(f"end={end} is before begin={begin}: give the steps in order")
    for name, value in (("initial", initial), ("final", final)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} is not a fraction: give a number in [0, 1]")
    if step >= end:
        return final
    if step <= begin:
        return initial
    left = 1 - (step - begin) / (end - begin)
    return final + (initial - final) * left**3
