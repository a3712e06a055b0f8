"""The panel of a report's picture with the course of the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_efficient.measurement.canvas import MUTED, Canvas
from hf_efficient.measurement.training_curve import TrainingPoint

AGREEMENT_COLOUR, LOSS_COLOUR = "#0072b2", "#e69f00"
# Inches.
CURVE_HEIGHT, HEADER, AXIS_LABELS, SIDE = 2.5, 0.35, 0.65, 0.75
LABEL_SIZE = 8.5


def plot_training_curve(canvas: Canvas, curve: Sequence[TrainingPoint], left: float, top: float, width: float) -> None:
    """Draw agreement with the teacher, and the loss where it is known, against the steps of all rounds in a row."""
    canvas.write(left, top, "Agreement with the teacher on held-out training rows", size=11, weight="bold")
    height = CURVE_HEIGHT - HEADER - AXIS_LABELS
    axes = canvas.axes(left + SIDE, top + HEADER, width - 2 * SIDE, height)
    loss_axes = axes.twinx()
    start = 0
    for number in dict.fromkeys(point.round for point in curve):
        points = [point for point in curve if point.round == number]
        steps = [start + point.step for point in points]
        axes.plot(steps, [point.agreement for point in points], "o-", color=AGREEMENT_COLOUR, markersize=3)
        known = [(step, point.loss) for step, point in zip(steps, points, strict=True) if point.loss is not None]
        loss_axes.plot(*(zip(*known, strict=True) if known else ([], [])), "--", color=LOSS_COLOUR)
        if start:
            axes.axvline(start, color=MUTED, linewidth=0.8)  # the next round of pruning
        start = steps[-1]
    axes.set_xlabel("steps", size=LABEL_SIZE, color=MUTED)
    _label(axes, "agreement", AGREEMENT_COLOUR)
    _label(loss_axes, "loss", LOSS_COLOUR)
    if all(point.loss is None for point in curve):
        loss_axes.set_axis_off()


def _label(axes: Any, name: str, colour: str) -> None:
    axes.set_ylabel(name, size=LABEL_SIZE, color=colour)
    axes.tick_params(labelsize=LABEL_SIZE, colors=MUTED)
    axes.locator_params(axis="y", nbins=4)
    axes.spines["top"].set_visible(False)
