"""Settings of a training that save memory or time, and all combinations of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hf_efficient.errors import UserError

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
ON_OFF = {"off": False, "on": True}
PRECISIONS = ("fp32", "bf16")
ATTENTIONS = ("sdpa", "eager")
ACCUMULATIONS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Setting:
    """One way to train: what saves memory, and whether a teacher is trained from.

    | field | meaning |
    | --- | --- |
    | checkpointing | activation (gradient) checkpointing |
    | accumulation | micro-batches of one step of the optimizer |
    | precision | fp32, or bf16 autocast |
    | attention | the implementation of attention in transformers |
    | distillation | whether a teacher runs too |
    """

    checkpointing: bool = False
    accumulation: int = 1
    precision: str = "fp32"
    attention: str = "sdpa"
    distillation: bool = False

    def describe(self) -> str:
        """Return the setting in words."""
        checkpointing = "with" if self.checkpointing else "without"
        distillation = "with" if self.distillation else "without"
        return (
            f"{checkpointing} checkpointing, accumulation {self.accumulation}, {self.precision}, {self.attention} "
            f"attention, {distillation} distillation"
        )


def setting_grid(
    batch_size: int,
    checkpointing: Sequence[bool] = (False, True),
    accumulation: Sequence[int] = ACCUMULATIONS,
    precision: Sequence[str] = PRECISIONS,
    attention: Sequence[str] = ATTENTIONS,
    distillation: Sequence[bool] = (False, True),
) -> tuple[Setting, ...]:
    """Return all combinations of the settings; accumulation varies fastest.

    Numbers of accumulation steps that do not divide `batch_size` are left out.

    Raises UserError if the batch is empty, an accumulation is below 1, or none divides the batch.
    """
    if batch_size < 1 or min(accumulation) < 1:
        raise UserError(f"train_batch_size={batch_size} and accumulation={_join(accumulation)} must be at least 1")
    dividing = [steps for steps in accumulation if batch_size % steps == 0]
    if not dividing:
        raise UserError(
            f"accumulation={_join(accumulation)} does not divide train_batch_size={batch_size}: give a divisor of it"
        )
    combinations = itertools.product(distillation, precision, attention, checkpointing, dividing)
    settings = (Setting(saves, steps, name, kind, distils) for distils, name, kind, saves, steps in combinations)
    return tuple(dict.fromkeys(settings))


def parse_budget(text: str) -> int:
    """Return the bytes of an amount of memory such as "8GB" or "500 MiB".

    Raises UserError if `text` is not a positive number with a unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip(), re.IGNORECASE)
    unit = UNITS.get(match[2].upper()) if match is not None else None
    if match is None or unit is None or not float(match[1]):
        raise UserError(
            f"memory_budget={text!r} is not an amount of memory: give a positive number and a unit (KB, MB, GB, TB, "
            "KiB, MiB, GiB or TiB), such as 8GB, 500MB or 8GiB"
        )
    return int(float(match[1]) * unit)


def _join(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
