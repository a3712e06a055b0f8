"""The structure of compressed models as bars: attention heads and feed-forward neurons of each layer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_efficient.measurement.canvas import LINE_HEIGHT, MUTED, Canvas, text_width
from hf_efficient.measurement.report_rows import ModelRow

TITLES = {"heads": "Attention heads per layer", "neurons": "Feed-forward neurons per layer"}
STACKS = ("encoder", "decoder")
# Inches.
GAP, AXIS_WIDTH, BARS_HEIGHT, TICKS_HEIGHT = 0.4, 0.45, 1.5, 0.5
LEGEND_SIZE, TICK_SIZE = 8.5, 8  # points
MAX_LEGEND_NAME = 24  # characters
MAX_TICKS = 26
STACK_GAP = 0.6  # in layers

Counts = dict[tuple[str, int], int]
LegendEntry = tuple[str, str, str, float]  # symbol, text, colour, distance from the left in inches


@dataclass(frozen=True)
class StructurePlot:
    """Structures to compare: by the name of a model, its colour and what each layer holds."""

    names: Sequence[str]
    colours: Sequence[str]
    structures: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, models: Sequence[ModelRow], colours: Mapping[str, str]) -> StructurePlot | None:
        """Return the plot of the structures that differ; None if there is nothing to compare.

        Models that share a structure are drawn once, under the name of the first.
        """
        distinct: dict[str, ModelRow] = {}
        for model in models:
            if model.structure:
                distinct.setdefault(json.dumps(model.structure, sort_keys=True), model)
        if not distinct or (len(distinct) == 1 and len(models) > 1):
            return None
        rows = list(distinct.values())
        structures = [row.structure or {} for row in rows]
        return cls([_shorten(row.name) for row in rows], [colours[row.role] for row in rows], structures)

    def height(self, width: float) -> float:
        """Return the height in inches that the plot takes at this width."""
        lines = max(len(self._legend_lines(kind, _panel_width(width))) for kind in TITLES)
        return 0.28 + LINE_HEIGHT * lines + 0.12 + BARS_HEIGHT + TICKS_HEIGHT

    def plot(self, canvas: Canvas, left: float, top: float, width: float) -> None:
        """Draw heads and neurons side by side."""
        panel_width = _panel_width(width)
        bars_top = top + self.height(width) - BARS_HEIGHT - TICKS_HEIGHT
        for index, kind in enumerate(TITLES):
            panel_left = left + index * (panel_width + GAP)
            canvas.write(panel_left, top, TITLES[kind], size=11, weight="bold")
            self._write_legend(canvas, kind, panel_left, top + 0.28, panel_width)
            axes = canvas.axes(panel_left + AXIS_WIDTH, bars_top, panel_width - AXIS_WIDTH, BARS_HEIGHT)
            self._plot_bars(axes, kind)

    def _legend_lines(self, kind: str, width: float) -> list[list[LegendEntry]]:
        """Return the lines of the legend, with the total of each model."""
        counts = [_count_units(structure, kind) for structure in self.structures]
        entries = [
            ("■", f"{name}: {sum(count.values()):,}", colour)
            for name, count, colour in zip(self.names, counts, self.colours, strict=True)
        ]
        layers = {layer for count in counts for layer in count}
        if any(not count.get(layer) for count in counts for layer in layers):
            entries.append(("✕", "removed", MUTED))
        lines: list[list[LegendEntry]] = [[]]
        position = 0.0
        for symbol, text, colour in entries:
            entry_width = 0.4 + text_width(text, LEGEND_SIZE)
            if lines[-1] and position + entry_width > width:
                lines.append([])
                position = 0.0
            lines[-1].append((symbol, text, colour, position))
            position += entry_width
        return lines

    def _write_legend(self, canvas: Canvas, kind: str, left: float, top: float, width: float) -> None:
        for number, line in enumerate(self._legend_lines(kind, width)):
            for symbol, text, colour, position in line:
                line_top = top + number * LINE_HEIGHT
                canvas.write(left + position, line_top, symbol, size=LEGEND_SIZE, color=colour)
                canvas.write(left + position + 0.16, line_top, text, size=LEGEND_SIZE, color=MUTED)

    def _plot_bars(self, axes: Any, kind: str) -> None:
        """Draw a group of bars for each layer, and a cross where a model has nothing left in it."""
        counts = [_count_units(structure, kind) for structure in self.structures]
        layers = sorted({layer for each in counts for layer in each}, key=_stack_order)
        stacks = list(dict.fromkeys(stack for stack, _ in layers))
        places = [index + STACK_GAP * stacks.index(layer[0]) for index, layer in enumerate(layers)]
        bar_width = 0.8 / len(counts)
        for index, (count, colour) in enumerate(zip(counts, self.colours, strict=True)):
            centres = [place + (index - (len(counts) - 1) / 2) * bar_width for place in places]
            axes.bar(centres, [count.get(layer, 0) for layer in layers], bar_width * 0.92, color=colour)
            for centre, layer in zip(centres, layers, strict=True):
                if not count.get(layer):
                    axes.text(centre, 0, "✕", color=colour, size=LEGEND_SIZE, ha="center", va="bottom")
        step = math.ceil(len(layers) / MAX_TICKS)
        axes.set_xticks(places[::step], [number for _, number in layers][::step])
        axes.set_xlim(-0.6, (places[-1] if places else 0) + 0.6)
        axes.set_ylim(0, 1.05 * max([1, *(number for count in counts for number in count.values())]))
        axes.locator_params(axis="y", nbins=4, integer=True, steps=[1, 2, 3, 4, 5, 6, 8, 10])
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.tick_params(labelsize=TICK_SIZE, colors=MUTED, length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(MUTED)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
        for stack in stacks:
            within = [place for place, layer in zip(places, layers, strict=True) if layer[0] == stack]
            axes.annotate(
                f"{stack} layer" if len(stacks) > 1 else "layer",
                ((within[0] + within[-1]) / 2, 0),
                (0, -18),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                va="top",
                size=TICK_SIZE,
                color=MUTED,
            )


def _panel_width(width: float) -> float:
    return (width - GAP) / 2


def _count_units(structure: Mapping[str, Any], kind: str) -> Counts:
    """Return the number of heads or neurons of each layer, by stack and index in the unpruned model."""
    return {
        (stack, layer["source"]): sum(len(units) if kind == "heads" else units for units in layer[kind].values())
        for stack, layers in structure.items()
        for layer in layers
    }


def _stack_order(layer: tuple[str, int]) -> tuple[int, str, int]:
    stack, index = layer
    return STACKS.index(stack) if stack in STACKS else len(STACKS), stack, index


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_LEGEND_NAME else f"{name[: MAX_LEGEND_NAME - 1]}…"
