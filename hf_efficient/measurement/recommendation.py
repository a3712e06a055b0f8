"""Which form of a compressed model to use on the machine that measured it, and whether its targets were met."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_efficient.measurement.formatting import format_ratio
from hf_efficient.measurement.report_rows import LOWER_IS_BETTER, ModelRow

# A form is as good as the float student if its metric is at most so much worse: one point of a metric up to 1, one
# percent of a larger one.
MAX_METRIC_LOSS = 0.01
# Latencies that differ by less are equal.
LATENCY_TOLERANCE = 0.03
# A target is missed if the ratio that was reached is smaller by more than this fraction.
TARGET_TOLERANCE = 0.02
# By field of `PruningConfig`: the field of `Ratios` that it is compared with, and its name.
TARGETS = {
    "target_speedup": ("speedup", "speed-up"),
    "target_generation_speedup": ("generation", "generation speed-up"),
    "target_flops": ("flops", "fewer operations"),
    "target_size": ("size", "smaller size"),
}


@dataclass(frozen=True)
class Target:
    """A target of pruning, as a ratio of teacher to student, and what the model in the role `role` reached."""

    name: str
    asked: float
    reached: float | None
    role: str

    @property
    def is_missed(self) -> bool:
        """Whether less was reached than asked, by more than `TARGET_TOLERANCE`."""
        return self.reached is not None and self.reached < (1 - TARGET_TOLERANCE) * self.asked

    def describe(self) -> str:
        """Return "2x speed-up asked, 1.89x reached"."""
        reached = "not measured" if self.reached is None else f"{format_ratio(self.reached)} reached"
        return f"{self.asked:g}x {TARGETS[f'target_{self.name}'][1]} asked, {reached}"


def list_targets(
    models: Sequence[ModelRow], pruning: Mapping[str, Any], recommended: ModelRow | None
) -> tuple[Target, ...]:
    """Return the targets in the settings of `pruning` beside what was reached.

    That is the ratio of the float student; for the speed-up that of the model that `latency_runtime` names: the
    quantized one, or with "fastest" the recommended one.
    """
    if not any(pruning.get(name) for name in TARGETS):
        return ()
    rows = {model.role: model for model in models}
    counted = {"int8": rows.get("quantized"), "fastest": recommended}.get(str(pruning.get("latency_runtime")))
    targets = []
    for field, (ratio, _) in TARGETS.items():
        row = counted if field == "target_speedup" and counted is not None else rows.get("student")
        if pruning.get(field) and row is not None:
            name = field.removeprefix("target_")
            targets.append(Target(name, pruning[field], getattr(row.ratios, ratio), row.role))
    return tuple(targets)


def student_forms(models: Sequence[ModelRow]) -> list[ModelRow]:
    """Return the float student, or the first model where there is none, and the other forms of that model after it.

    Teachers, and students that are other models, are no forms of it.
    """
    reference = next((model for model in models if model.role == "student"), models[0])
    others = [model for model in models if model is not reference and not re.match(r"(teacher|student)\b", model.role)]
    return [reference, *others]


def recommend(models: Sequence[ModelRow], metric: str | None) -> ModelRow | None:
    """Return the form of the student to use on the machine where `models` were measured; None: no form of a student.

    It is the fastest of the float student and of those that are no slower, and whose metric is no more than
    `MAX_METRIC_LOSS` worse. Text generation counts where it was timed. Of forms that are equally fast, up to
    `LATENCY_TOLERANCE`, it is the smallest, and of equally large ones the first.
    """
    if not models:
        return None
    reference, *others = student_forms(models)
    if not others and reference.role == "teacher":
        return None
    speeds = {reference.role: 1.0}
    for form in others:
        speed = relative_speed(form, reference)
        if speed is not None and speed >= 1 and _keeps_metric(form, reference, metric):
            speeds[form.role] = speed
    fastest = max(speeds.values())
    equal = [form for form in (reference, *others) if speeds.get(form.role, 0.0) * (1 + LATENCY_TOLERANCE) >= fastest]
    return min(equal, key=lambda form: math.inf if form.bytes_on_disk is None else form.bytes_on_disk)


def relative_speed(form: ModelRow, reference: ModelRow) -> float | None:
    """Return how many times as fast as `reference` a model is; None if that was not measured.

    The time is that of generation if `reference` generates text, else of a forward pass.
    """
    if reference.generation_ms is not None:
        duration, reference_duration = form.generation_duration_ms, reference.generation_duration_ms
    else:
        duration, reference_duration = form.median_latency_ms, reference.median_latency_ms
    return reference_duration / duration if duration and reference_duration else None


def is_slower(form: ModelRow, reference: ModelRow) -> bool:
    """Whether `form` was measured to take longer than `reference`, the float student."""
    speed = relative_speed(form, reference)
    return speed is not None and speed < 1


def describe_use(form: ModelRow, reference: ModelRow, recommended: ModelRow | None) -> str:
    """Return "recommended", "smaller, not faster here", or nothing."""
    if form is recommended:
        return "recommended"
    if not is_slower(form, reference):
        return ""
    is_smaller = form.bytes_on_disk is not None and form.bytes_on_disk < (reference.bytes_on_disk or 0)
    return "smaller, not faster here" if is_smaller else "not faster here"


def _keeps_metric(form: ModelRow, reference: ModelRow, metric: str | None) -> bool:
    """Whether the metric of `form` is about that of `reference`; true where it was not measured."""
    value, expected = form.metrics.get(metric or ""), reference.metrics.get(metric or "")
    if expected is None or (value is None and not form.metrics):
        return True
    if value is None:
        return False
    loss = value - expected if metric in LOWER_IS_BETTER else expected - value
    return loss <= MAX_METRIC_LOSS * max(1.0, abs(expected))
