"""Numbers as text, for tables, pictures and model cards: three significant digits in a suitable unit.

Every function on a number returns "not measured" for None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

NOT_MEASURED = "not measured"

Units = Sequence[tuple[float, str]]

BYTE_UNITS: Units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
FLOP_UNITS: Units = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1, "FLOP"))
COUNT_UNITS: Units = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1, ""))
SECOND_UNITS: Units = ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"))
JOULE_UNITS: Units = ((1e6, "MJ"), (1e3, "kJ"), (1, "J"), (1e-3, "mJ"), (1e-6, "µJ"))
WATT_HOUR_UNITS: Units = ((1e6, "MWh"), (1e3, "kWh"), (1, "Wh"), (1e-3, "mWh"))
JOULES_PER_WATT_HOUR = 3600


def printable(text: str) -> str:
    """Return `text` with escapes in place of characters that a terminal acts on or cannot show."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def format_number(value: float | None, digits: int = 3) -> str:
    """Return `value` with so many significant digits and without an exponent: "0.0123", "1.20", "45,700"."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return str(value)
    rounded = _round(value, digits)
    exponent = math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded:,.{max(0, digits - 1 - exponent) if rounded else 0}f}"


def format_bytes(size: float | None) -> str:
    """Return a size in bytes as "412 kB" or "36.2 MB"; units are powers of 1,000."""
    return _format_in_unit(size, BYTE_UNITS, in_full=True)


def format_flops(flops: float | None) -> str:
    """Return a number of floating point operations as "3.10 MFLOP" or "1.24 GFLOP"."""
    return _format_in_unit(flops, FLOP_UNITS, in_full=True)


def format_count(count: float | None) -> str:
    """Return a number of parameters as "33.1 k", "22.7 M" or "1.24 B", those below a thousand in full."""
    return _format_in_unit(count, COUNT_UNITS, in_full=True)


def format_seconds(seconds: float | None) -> str:
    """Return a duration as "420 ms", "3.20 s", "2.50 min" or "1.25 h"."""
    return _format_in_unit(seconds, SECOND_UNITS)


def format_duration_ms(milliseconds: float | None) -> str:
    """Return a duration given in milliseconds as `format_seconds` does."""
    return format_seconds(None if milliseconds is None else milliseconds / 1e3)


def format_joules(joules: float | None) -> str:
    """Return an energy as "340 mJ" or "12.0 J"."""
    return _format_in_unit(joules, JOULE_UNITS)


def format_watt_hours(joules: float | None) -> str:
    """Return an energy given in joules as "12.0 Wh" or "1.24 kWh"."""
    return _format_in_unit(None if joules is None else joules / JOULES_PER_WATT_HOUR, WATT_HOUR_UNITS)


def format_ratio(ratio: float | None) -> str:
    """Return a ratio as "2.50x"."""
    return NOT_MEASURED if ratio is None else f"{format_number(ratio)}x"


def format_percent(fraction: float | None) -> str:
    """Return a fraction as "98.7%"."""
    return NOT_MEASURED if fraction is None else f"{fraction:.1%}"


def format_metric(value: float | None) -> str:
    """Return the value of a metric with four decimals up to 1, "0.9060", and with four digits beyond it, "35.72"."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.4f}" if abs(value) <= 1 else format_number(value, digits=4)


def format_range(low: float, high: float) -> str:
    """Return an interval of fractions as "97.6 to 100.5", in percent."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def format_retained(fraction: float | None, difference: float | None) -> str:
    """Return how much of a metric is kept as "98.7%", or "-0.4200" where it is no share of the teacher's."""
    if fraction is None and difference is not None:
        return f"{difference:+.4f}" if abs(difference) <= 1 else f"{difference:+.2f}"
    return format_percent(fraction)


def _format_in_unit(value: float | None, units: Units, in_full: bool = False) -> str:
    """Return `value` in the largest of `units` of which it is at least 1, as it reads when rounded.

    `units` are sorted from large to small. `in_full` writes integers below 1,000 without decimals.
    """
    if value is None:
        return NOT_MEASURED
    smallest = units[-1] if value else next(pair for pair in units if pair[0] == 1)
    factor, unit = next((pair for pair in units if abs(_round(value / pair[0])) >= 1), smallest)
    number = f"{value:.0f}" if in_full and factor == 1 else format_number(value / factor)
    return f"{number} {unit}".strip()


def _round(value: float, digits: int = 3) -> float:
    return float(f"{value:.{digits - 1}e}")
