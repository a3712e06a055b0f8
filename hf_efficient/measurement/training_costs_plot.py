"""The costs of training as a picture: memory against speed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_efficient.measurement.training_costs import TrainingCost, TrainingCosts

PICTURE_NAME = "training_costs.png"
COLOURS = {False: "C1", True: "C0"}
LINES = {"sdpa": "-", "eager": ":"}
PANEL = (5.6, 3.6)


def plot_costs(costs: TrainingCosts, folder: str | os.PathLike[str], budget: int | None = None) -> Path:
    """Draw peak memory against samples a second as `training_costs.png` in `folder`, and returns its path.

    A panel for each precision, with and without distillation. A line joins the accumulations of one setting, which
    are written beside the points; its colour tells checkpointing, its dashes attention, a ring what is recommended.
    """
    from matplotlib.figure import Figure

    precisions = list(dict.fromkeys(row.setting.precision for row in costs.settings)) or ["fp32"]
    taught = list(dict.fromkeys(row.setting.distillation for row in costs.settings)) or [False]
    size = (PANEL[0] * len(taught), 1 + PANEL[1] * len(precisions))
    figure: Any = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(precisions), len(taught), squeeze=False, sharex=True, sharey=True)
    recommended = costs.recommended(budget)
    labelled: dict[str, Any] = {}
    for precision, line_of_panels in zip(precisions, panels, strict=True):
        for distillation, axis in zip(taught, line_of_panels, strict=True):
            here = [
                row
                for row in costs.settings
                if (row.setting.precision, row.setting.distillation) == (precision, distillation)
            ]
            labelled |= _plot_panel(axis, here, recommended, budget)
            axis.set_title(f"{precision}, {'with' if distillation else 'without'} distillation")
            axis.spines[["top", "right"]].set_visible(False)
            axis.margins(0.12)
            axis.grid(alpha=0.3)
    for axis in panels[-1]:
        axis.set_xlabel("peak memory, GB")
    for axis in panels[:, 0]:
        axis.set_ylabel("samples/s")
    figure.suptitle(
        f"{costs.model}, batch {costs.batch_size} x {costs.sequence_length}; numbers: steps of accumulation"
    )
    if labelled:
        figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=3, frameon=False)
    path = Path(folder) / PICTURE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial.png")
    figure.savefig(beside, dpi=140)
    return beside.replace(path)


def _plot_panel(
    axis: Any, rows: Sequence[TrainingCost], recommended: Sequence[TrainingCost], budget: int | None
) -> dict[str, Any]:
    """Draw the settings of one panel, and returns what the legend names."""
    lines: dict[tuple[bool, str], list[tuple[float, float, TrainingCost]]] = {}
    for row in rows:
        if row.peak_memory_bytes is not None and row.samples_per_second is not None:
            point = (row.peak_memory_bytes / 1e9, row.samples_per_second, row)
            lines.setdefault((row.setting.checkpointing, row.setting.attention), []).append(point)
    labelled: dict[str, Any] = {}
    for (checkpointing, attention), points in lines.items():
        points.sort(key=lambda point: point[2].setting.accumulation)
        memory, rates = [point[0] for point in points], [point[1] for point in points]
        colour = COLOURS[checkpointing]
        name = f"{'checkpointing' if checkpointing else 'no checkpointing'}, {attention}"
        fill = colour if attention == "sdpa" else "white"
        (labelled[name],) = axis.plot(memory, rates, "o", ls=LINES.get(attention, "--"), color=colour, mfc=fill)
        for x, y, row in points:
            place = (0, 6) if attention == "sdpa" else (0, -13)
            axis.annotate(str(row.setting.accumulation), (x, y), place, textcoords="offset points", ha="center")
            if row in recommended:
                style = {"s": 220, "facecolors": "none", "edgecolors": "black"}
                labelled["recommended"] = axis.scatter([x], [y], **style)
    if budget is not None:
        labelled["budget"] = axis.axvline(budget / 1e9, color="grey", linestyle="--", linewidth=1)
    return labelled
