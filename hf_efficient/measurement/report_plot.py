"""The picture of a compression report: bars for quality, speed and size, and the structure of each layer."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_efficient.measurement.canvas import LINE_HEIGHT, MUTED, TEXT, Canvas, text_width
from hf_efficient.measurement.formatting import (
    NOT_MEASURED,
    format_bytes,
    format_duration_ms,
    format_metric,
    format_range,
    format_ratio,
    format_retained,
)
from hf_efficient.measurement.report_rows import LOWER_IS_BETTER, ModelRow
from hf_efficient.measurement.structure_plot import StructurePlot
from hf_efficient.measurement.training_curve import TrainingPoint
from hf_efficient.measurement.training_curve_plot import CURVE_HEIGHT, plot_training_curve

# Colours of Okabe and Ito, which readers with colour blindness can tell apart.
ROLE_COLOURS = {
    "teacher": "#7a8291",
    "student": "#0072b2",
    "quantized": "#009e73",
    "compiled": "#e69f00",
    "onnx": "#cc79a7",
    "openvino": "#d55e00",
}
OTHER_COLOURS = ("#0072b2", "#009e73", "#e69f00", "#cc79a7", "#d55e00", "#56b4e9", "#a39400", "#7a5195")
METRIC_TITLES = {
    "accuracy": "Accuracy",
    "f1": "F1",
    "exact_match": "Exact match",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "perplexity": "Perplexity",
    "sacrebleu": "sacreBLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}
# Inches.
MARGIN, GAP = 0.3, 0.3
PANEL_WIDTH, PANEL_HEADER = 3.0, 0.6
BAR_HEIGHT, LABEL_GAP = 0.3, 0.07
# Points.
NAME_SIZE, NOTE_SIZE, LABEL_SIZE = 10, 8.5, 10
NAME_CHARACTERS, MAX_NAME_LINES = 26, 4
CAPTION_CHARACTERS = 15  # an inch


@dataclass(frozen=True)
class Panel:
    """One measurement: its heading, how to read it from a row, and the two texts next to its bar."""

    title: str
    note: str
    value: Callable[[ModelRow], float | None]
    label: Callable[[float], str]
    comparison: Callable[[ModelRow], str]


def plot_report(
    models: Sequence[ModelRow],
    metric: str | None,
    title: str,
    conditions: str,
    curve: Sequence[TrainingPoint] = (),
) -> Any:
    """Return a matplotlib figure of `models`: bars for each measurement, and the structure where it is known.

    | argument | meaning |
    | --- | --- |
    | models | the rows of the report; the teacher is drawn first |
    | metric | the metric of the first panel; None leaves that panel out |
    | title | the text above all panels |
    | conditions | the caption below them |
    | curve | agreement with the teacher during training; drawn below the structure if there is any |

    All positions are in inches and text is measured, so that neither many models nor long names overlap.
    """
    models = sorted(models, key=lambda model: model.role != "teacher")
    colours = role_colours([model.role for model in models])
    names = ["\n".join(_wrap_name(model.name)) for model in models]
    runtimes = [model.latency_ms.runtime if model.latency_ms else "" for model in models]
    panels = _panels(models, metric)
    structure = StructurePlot.of(models, colours)

    widths = [text_width(name, NAME_SIZE) for name in names] + [text_width(text, NOTE_SIZE) for text in runtimes]
    name_width = max([0.6, *widths]) + 0.12
    row_height = 0.32 + LINE_HEIGHT * max([1, *(name.count("\n") + 1 for name in names)])
    content_width = name_width + len(panels) * PANEL_WIDTH + (len(panels) - 1) * GAP
    caption = textwrap.wrap(conditions, int(content_width * CAPTION_CHARACTERS))
    top = MARGIN + 0.45 + PANEL_HEADER
    bars_height = row_height * max(1, len(models))
    structure_height = 0.35 + structure.height(content_width) if structure else 0.0
    curve_top = top + bars_height + structure_height + 0.2
    caption_top = curve_top + (CURVE_HEIGHT if curve else 0.0)

    canvas = Canvas(content_width + 2 * MARGIN, caption_top + LINE_HEIGHT * len(caption) + MARGIN)
    canvas.write(MARGIN, MARGIN, title, size=14, weight="bold")
    for index, panel in enumerate(panels):
        left = MARGIN + name_width + index * (PANEL_WIDTH + GAP)
        canvas.write(left, MARGIN + 0.45, panel.title, size=11, weight="bold")
        canvas.write(left, MARGIN + 0.68, panel.note, size=NOTE_SIZE, color=MUTED)
        axes = canvas.axes(left, top, PANEL_WIDTH, bars_height)
        _plot_bars(axes, panel, models, [colours[model.role] for model in models], row_height)
    for index, (name, runtime) in enumerate(zip(names, runtimes, strict=True)):
        lines = name.count("\n") + 1
        height = LINE_HEIGHT * (lines + bool(runtime))
        name_top = top + (index + 0.5) * row_height - height / 2
        right = MARGIN + name_width - 0.12
        canvas.write(right, name_top, name, ha="right", size=NAME_SIZE)
        canvas.write(right, name_top + LINE_HEIGHT * lines, runtime, ha="right", size=NOTE_SIZE, color=MUTED)
    if structure:
        structure.plot(canvas, MARGIN, top + bars_height + 0.35, content_width)
    if curve:
        plot_training_curve(canvas, curve, MARGIN, curve_top, content_width)
    canvas.write(MARGIN, caption_top, "\n".join(caption), size=NOTE_SIZE, color=MUTED)
    return canvas.figure


def role_colours(roles: Sequence[str]) -> dict[str, str]:
    """Return a colour for each of `roles`; the roles of a compression have the same colour in every picture."""
    colours = {role: ROLE_COLOURS[role] for role in roles if role in ROLE_COLOURS}
    unused = [colour for colour in OTHER_COLOURS if colour not in colours.values()] or list(OTHER_COLOURS)
    others = [role for role in dict.fromkeys(roles) if role not in colours]
    return {**colours, **{role: unused[index % len(unused)] for index, role in enumerate(others)}}


def _panels(models: Sequence[ModelRow], metric: str | None) -> list[Panel]:
    latency = next((model.latency_ms for model in models if model.latency_ms), None)
    generation = next((model.generation_ms for model in models if model.generation_ms), None)
    panels = []
    if metric is not None:
        panels.append(
            Panel(
                METRIC_TITLES.get(metric, metric[:1].upper() + metric[1:].replace("_", " ")),
                "lower is better" if metric in LOWER_IS_BETTER else "higher is better",
                lambda model: model.metrics.get(metric),
                format_metric,
                lambda model: _describe_retained(model, metric),
            )
        )
    panels.append(
        Panel(
            _with_unit("Latency", models, lambda model: model.median_latency_ms, format_duration_ms),
            f"{f'batch {latency.batch_size} x {latency.sequence_length} tokens, ' if latency else ''}lower is better",
            lambda model: model.median_latency_ms,
            format_duration_ms,
            lambda model: _compare(model.ratios.speedup, "faster", "slower", "same speed"),
        )
    )
    if generation is not None:
        panels.append(
            Panel(
                _with_unit("Generation", models, lambda model: model.generation_duration_ms, format_duration_ms),
                f"batch {generation.batch_size}, {generation.new_tokens} new tokens, lower is better",
                lambda model: model.generation_duration_ms,
                format_duration_ms,
                lambda model: _compare(model.ratios.generation, "faster", "slower", "same speed"),
            )
        )
    panels.append(
        Panel(
            _with_unit("Size on disk", models, lambda model: model.bytes_on_disk, format_bytes),
            "lower is better",
            lambda model: model.bytes_on_disk,
            format_bytes,
            lambda model: _compare(model.ratios.size, "smaller", "larger", "same size"),
        )
    )
    return panels


def _with_unit(
    title: str,
    models: Sequence[ModelRow],
    value: Callable[[ModelRow], float | None],
    label: Callable[[float], str],
) -> str:
    """Return `title` with the unit of the labels, "Latency (ms)", where it is the same for all."""
    values = [number for number in map(value, models) if number is not None]
    units = {label(number).rpartition(" ")[2] for number in values}
    return f"{title} ({units.pop()})" if len(units) == 1 else title


def _describe_retained(model: ModelRow, metric: str) -> str:
    """Return "98.7% kept", with its interval in a second line, or "-0.42" where it is no share of the teacher's.

    Empty for NaN and the teacher.
    """
    ratios, interval = model.ratios, model.retained_intervals.get(metric)
    text = format_retained(ratios.metric_retained, ratios.metric_difference)
    if ratios.metric_retained is None:
        return text if ratios.metric_difference and math.isfinite(ratios.metric_difference) else ""
    if ratios.metric_retained <= 0:
        return ""
    return f"{text} kept" + ("" if interval is None else f"\n{format_range(interval.low, interval.high)}")


def _compare(ratio: float | None, better: str, worse: str, same: str) -> str:
    """Return a ratio to the teacher in words, "2.05x faster"."""
    if not ratio:
        return ""
    text = format_ratio(max(ratio, 1 / ratio))
    return same if text == "1.00x" else f"{text} {better if ratio > 1 else worse}"


def _plot_bars(axes: Any, panel: Panel, models: Sequence[ModelRow], colours: Sequence[str], row_height: float) -> None:
    """Draw a bar for each of `models` into `axes`, PANEL_WIDTH inches wide, with its labels to the right of it."""
    values = [panel.value(model) for model in models]
    has_teacher = any(model.role == "teacher" for model in models)
    labels = [NOT_MEASURED if value is None else panel.label(value) for value in values]
    comparisons = [
        "" if value is None or model.role == "teacher" or not has_teacher else panel.comparison(model)
        for value, model in zip(values, models, strict=True)
    ]
    lengths = [value if value is not None and math.isfinite(value) else 0.0 for value in values]
    label_widths = [text_width(label, LABEL_SIZE, weight="bold") for label in labels]
    axes.barh(range(len(models)), lengths, height=BAR_HEIGHT / row_height, color=colours)
    spaces = [
        width + text_width(comparison, NOTE_SIZE) + 3 * LABEL_GAP
        for width, comparison in zip(label_widths, comparisons, strict=True)
    ]
    ends = [length / (1 - space / PANEL_WIDTH) for length, space in zip(lengths, spaces, strict=True)]
    axes.set_xlim(min([0.0, *lengths]), max([0.0, *ends]) or 1.0)
    axes.set_ylim(max(1, len(models)) - 0.5, -0.5)
    axes.set_axis_off()
    axes.axvline(0, color=MUTED, linewidth=0.8)
    for index, (value, label, comparison) in enumerate(zip(values, labels, comparisons, strict=True)):
        style = {"color": MUTED, "style": "italic"} if value is None else {"color": TEXT, "weight": "bold"}
        end = max(0.0, lengths[index])
        _annotate(axes, end, index, LABEL_GAP, label, size=LABEL_SIZE, **style)
        _annotate(axes, end, index, 2 * LABEL_GAP + label_widths[index], comparison, size=NOTE_SIZE, color=MUTED)


def _annotate(axes: Any, x: float, y: float, shift: float, text: str, **style: Any) -> None:
    """Write `text` so many inches to the right of a point."""
    axes.annotate(text, (x, y), (72 * shift, 0), textcoords="offset points", va="center", **style)


def _wrap_name(name: str) -> list[str]:
    return textwrap.wrap(name, NAME_CHARACTERS, max_lines=MAX_NAME_LINES, placeholder=" …") or [""]
