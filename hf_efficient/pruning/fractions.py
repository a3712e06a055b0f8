"""Fractions to remove, given as a number or as text with one for each stack of layers."""

from __future__ import annotations

from collections.abc import Mapping

from hf_efficient.errors import UserError

ALL_STACKS = ""


def parse_fractions(name: str, value: float | str | None) -> dict[str, float]:
    """Return the fractions in the field `name` by stack, for `ALL_STACKS` where no stack is named.

    Raises UserError if `value` is neither a number in [0, 1) nor a text such as "encoder=0.25,decoder=0.5".
    """
    if value is None:
        return {}
    fractions: dict[str, float] = {}
    for part in str(value).split(","):
        stack, _, number = part.strip().rpartition("=")
        try:
            fraction = float(number)
        except ValueError:
            fraction = -1.0
        if not 0 <= fraction < 1 or stack in fractions:
            raise UserError(
                f"{name}={value!r} is not a fraction: give a number in [0, 1), or one for each stack, such as "
                "'encoder=0.25,decoder=0.5'"
            )
        fractions[stack] = fraction
    return fractions


def format_fractions(fractions: Mapping[str, float]) -> float | str:
    """Return the value that `parse_fractions` reads as `fractions`."""
    if fractions.keys() == {ALL_STACKS}:
        return fractions[ALL_STACKS]
    return ",".join(f"{stack}={fraction!r}" if stack else repr(fraction) for stack, fraction in fractions.items())
