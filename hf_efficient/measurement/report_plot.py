"""The picture of a compression report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_efficient.measurement.formatting import format_number

if TYPE_CHECKING:
    from hf_efficient.measurement.report import CompressionReport, ModelRow


def plot_bars(figure: Any, report: CompressionReport) -> None:
    panels: list[tuple[str, list[float | None], str]] = [
        (report.metric or "metric", [m.metrics.get(report.metric or "") for m in report.models], "{:.4f}"),
        ("latency, ms", [m.latency_ms.p50 if m.latency_ms else None for m in report.models], "{:.1f}"),
        ("size, MB", [m.bytes_on_disk / 1e6 if m.bytes_on_disk else None for m in report.models], "{:.1f}"),
    ]
    names = [model.name for model in report.models]
    colours = [f"C{index}" for index in range(len(names))]
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, values, form) in zip(axes, panels, strict=True):
        bars = axis.barh(names, [value or 0 for value in values], color=colours)
        axis.bar_label(bars, [format_number(value, form) for value in values], padding=3)
        axis.set_title(title)
        axis.margins(x=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle(report.dataset or "")


def plot_structures(figure: Any, shapes: Sequence[ModelRow]) -> None:
    """Draw heads and neurons that each layer of the unpruned network still has, one group of bars a model."""
    axes = figure.subplots(1, 2)
    for axis, kind in zip(axes, ("heads", "neurons"), strict=True):
        for index, model in enumerate(shapes):
            counts: dict[str, int] = {}
            for stack, layers in (model.structure or {}).items():
                for layer in layers:
                    total = sum(len(u) if kind == "heads" else u for u in layer[kind].values())
                    counts[
                        f"{stack} {layer['source']}" if len(model.structure or {}) > 1 else str(layer["source"])
                    ] = total
            if index == 0:
                labels = list(counts)
            heights = [counts.get(label, 0) for label in labels]
            width = 0.8 / len(shapes)
            places = [place + (index - (len(shapes) - 1) / 2) * width for place in range(len(labels))]
            axis.bar(places, heights, width, label=model.name)
        named = any(" " in label for label in labels)
        axis.set_xticks(range(len(labels)), labels, rotation=30 if named else 0, ha="right" if named else "center")
        axis.set_xlabel("layer of the teacher")
        axis.set_title("attention heads kept" if kind == "heads" else "feed-forward neurons kept")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(shapes), frameon=False)
