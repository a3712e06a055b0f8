"""The picture of training costs: peak memory against speed, setting by setting."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_efficient.files.replacing import replacing
from hf_efficient.measurement.canvas import LINE_HEIGHT, MUTED, TEXT, Canvas, text_width
from hf_efficient.measurement.formatting import format_bytes
from hf_efficient.measurement.training_costs import TrainingCost, TrainingCosts

PICTURE_NAME = "training_costs.png"
COLOURS = {False: "#d55e00", True: "#0072b2"}  # by checkpointing
LINE_STYLES = {"sdpa": "-", "eager": ":"}
FASTEST = "fastest"
CAPTION_CHARACTERS = 15  # an inch
# Inches.
MARGIN, GAP = 0.3, 0.35
PANEL_WIDTH, PANEL_HEIGHT = 4.6, 2.7
PANEL_HEADER, Y_LABELS, X_LABELS, LEGEND_LINE = 0.32, 0.5, 0.55, 0.24


def plot_costs(costs: TrainingCosts, folder: str | os.PathLike[str], budget: int | None = None) -> Path:
    """Draw peak memory against samples per second as `training_costs.png` in `folder`, and return its path.

    There is a panel for each precision, with and without distillation. A line joins the settings that differ in
    accumulation only; the number of accumulation steps is next to each point. The fastest settings within `budget`
    bytes are circled.
    """
    precisions = list(dict.fromkeys(row.setting.precision for row in costs.settings)) or ["fp32"]
    distillations = list(dict.fromkeys(row.setting.distillation for row in costs.settings)) or [False]
    rows = [row for row in costs.settings if row.peak_memory_bytes is not None and row.samples_per_second is not None]
    recommended = costs.recommended(budget)

    content_width = len(distillations) * (Y_LABELS + PANEL_WIDTH) + (len(distillations) - 1) * GAP
    caption = textwrap.wrap(
        "Numbers: accumulation steps of one optimizer step. " + costs.step_conditions(),
        int(content_width * CAPTION_CHARACTERS),
    )
    legend = _legend(rows, recommended, budget)
    legend_columns = max(1, int(content_width / (0.75 + max((text_width(name, 9) for name in legend), default=0.0))))
    legend_height = LEGEND_LINE * -(-len(legend) // legend_columns)
    panel_top = MARGIN + 0.5
    row_height = PANEL_HEADER + PANEL_HEIGHT + X_LABELS
    legend_top = panel_top + row_height * len(precisions)
    caption_top = legend_top + legend_height + 0.15
    canvas = Canvas(content_width + 2 * MARGIN, caption_top + LINE_HEIGHT * len(caption) + MARGIN)
    canvas.write(MARGIN, MARGIN, f"Training {costs.model}: speed and peak memory", size=14, weight="bold")
    limits = _limits(rows, budget)
    for line, precision in enumerate(precisions):
        for column, distillation in enumerate(distillations):
            left = MARGIN + column * (Y_LABELS + PANEL_WIDTH + GAP)
            top = panel_top + line * row_height
            title = f"{precision}, {'with' if distillation else 'without'} distillation"
            canvas.write(left, top, title, size=11, weight="bold")
            axes = canvas.axes(left + Y_LABELS, top + PANEL_HEADER, PANEL_WIDTH, PANEL_HEIGHT)
            panel_rows = [
                row for row in rows if (row.setting.precision, row.setting.distillation) == (precision, distillation)
            ]
            _plot_panel(axes, panel_rows, recommended, budget, limits)
    if legend:
        canvas.figure.legend(
            legend.values(),
            legend.keys(),
            loc="upper left",
            bbox_to_anchor=(MARGIN / canvas.width, 1 - legend_top / canvas.height),
            ncols=legend_columns,
            frameon=False,
            fontsize=9,
            labelcolor=TEXT,
            borderpad=0,
            borderaxespad=0,
        )
    canvas.write(MARGIN, caption_top, "\n".join(caption), size=8.5, color=MUTED)

    path = Path(folder) / PICTURE_NAME
    with replacing(path) as temporary:
        canvas.figure.savefig(temporary)
    return path


def _limits(rows: Sequence[TrainingCost], budget: int | None) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ranges of memory in GB and of samples per second that all panels share."""
    memory = [(row.peak_memory_bytes or 0) / 1e9 for row in rows] or [0.0, 1.0]
    rates = [row.samples_per_second or 0.0 for row in rows] or [0.0, 1.0]
    # A budget far beyond all settings would leave no room for them.
    if budget is not None and budget / 1e9 <= 2 * max(memory):
        memory.append(budget / 1e9)
    margin = 0.12 * (max(memory) - min(memory)) or 0.1 * max(memory)
    return (min(memory) - margin, max(memory) + margin), (0.0, 1.2 * max(rates))


def _plot_panel(
    axes: Any,
    rows: Sequence[TrainingCost],
    recommended: Sequence[TrainingCost],
    budget: int | None,
    limits: tuple[tuple[float, float], tuple[float, float]],
) -> None:
    lines: dict[tuple[bool, str], list[TrainingCost]] = {}
    for row in rows:
        lines.setdefault((row.setting.checkpointing, row.setting.attention), []).append(row)
    for (checkpointing, attention), line in lines.items():
        line.sort(key=lambda row: row.setting.accumulation)
        points = [((row.peak_memory_bytes or 0) / 1e9, row.samples_per_second or 0.0) for row in line]
        axes.plot(*zip(*points, strict=True), **_line_style(checkpointing, attention))
        for point, row in zip(points, line, strict=True):
            is_recommended = row in recommended
            if is_recommended:
                axes.scatter(*zip(point, strict=True), s=170, facecolors="none", edgecolors=TEXT)
            distance = 11 if is_recommended else 6
            above = attention == "sdpa"
            axes.annotate(
                str(row.setting.accumulation),
                point,
                (0, distance if above else -distance),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                size=8.5,
                color=COLOURS[checkpointing],
            )
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])
    if budget is not None:
        axes.axvline(budget / 1e9, color=MUTED, linestyle="--", linewidth=1)
    if not rows:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED, style="italic")
    axes.set_xlabel("peak memory (GB)", size=9, color=MUTED)
    axes.set_ylabel("samples per second", size=9, color=MUTED)
    axes.tick_params(labelsize=8.5, colors=MUTED, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def _line_style(checkpointing: bool, attention: str) -> dict[str, Any]:
    colour = COLOURS[checkpointing]
    return {
        "color": colour,
        "linestyle": LINE_STYLES.get(attention, "--"),
        "marker": "o",
        "markerfacecolor": colour if attention == "sdpa" else "white",
    }


def _legend(rows: Sequence[TrainingCost], recommended: Sequence[TrainingCost], budget: int | None) -> dict[str, Any]:
    """Return what stands for each name in the legend."""
    from matplotlib.lines import Line2D

    legend = {}
    for row in rows:
        name = f"{'with' if row.setting.checkpointing else 'without'} checkpointing, {row.setting.attention} attention"
        legend[name] = Line2D([], [], **_line_style(row.setting.checkpointing, row.setting.attention))
    if any(row in rows for row in recommended):
        circle: dict[str, Any] = {
            "linestyle": "",
            "marker": "o",
            "markersize": 11,
            "markerfacecolor": "none",
            "markeredgecolor": TEXT,
        }
        legend[FASTEST if budget is None else f"{FASTEST} within the budget"] = Line2D([], [], **circle)
    if budget is not None:
        legend[f"budget, {format_bytes(budget)}"] = Line2D([], [], color=MUTED, linestyle="--", linewidth=1)
    return legend
