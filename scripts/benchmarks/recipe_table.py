"""The results of `recipe.py`: means over the seeds with paired intervals, as JSON, as a table and as a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from recipe_data import DATASETS
from sst2 import ends_of, format_share
from transformers import AutoConfig

from hf_efficient.measurement.environment import describe_environment
from hf_efficient.measurement.intervals import paired_interval
from hf_efficient.measurement.row_metrics import (
    Array,
    Statistic,
    classification_row_metrics,
    regression_row_metrics,
    token_classification_row_metrics,
)

NOT_TRAINED = "not trained"
COLOURS = ("#7a8291", "#0072b2", "#009e73")
Record: TypeAlias = dict[str, Any]


def write_results(cells: Path, folder: Path, baseline: str, curves: Sequence[str]) -> None:
    """Write recipe.json, recipe.md and recipe.png of all cells into `folder`.

    Each recipe is compared with the recipe `baseline` of the same cut and steps; the recipes `curves` are drawn.
    """
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(cells.glob("*.json"))]
    groups: dict[tuple[str, float, int, str], list[dict[str, Any]]] = {}
    for record in records:
        if "error" not in record:
            key = (record["dataset"], record["cut"], record["steps"], record["recipe"])
            groups.setdefault(key, []).append(record)
    references = {name: Reference(cells, name) for name in DATASETS if (cells / f"{name}.npz").exists()}
    rows = []
    order = list(DATASETS)
    for key in sorted(groups, key=lambda key: (order.index(key[0]), *key[1:])):
        dataset, cut, steps, _ = key
        rows.append(references[dataset].summarize(groups[key], groups.get((dataset, cut, steps, baseline))))
    result = {
        "teachers": {name: reference.describe() for name, reference in references.items()},
        "rows": rows,
        "errors": [record for record in records if "error" in record],
        "environment": describe_environment(),
    }
    (folder / "recipe.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (folder / "recipe.md").write_text(_to_markdown(result, baseline), encoding="utf-8")
    _draw(rows, curves, folder / "recipe.png")


class Reference:
    """The held-out rows of a dataset, with the teacher's predictions."""

    def __init__(self, cells: Path, name: str) -> None:
        self.cells, self.name, self.metric = cells, name, DATASETS[name].metric
        with np.load(cells / f"{name}.npz") as arrays:
            self.labels, self.predictions = arrays["labels"], arrays["predictions"]
        config = AutoConfig.from_pretrained(cells.parent / name / "teacher")
        self.class_names = [config.id2label[index] for index in range(config.num_labels)]
        self.rows = len(self.labels)
        self.teacher = self._statistic(self.predictions)

    def _statistic(self, predictions: Array) -> Statistic:
        """Return the main metric of predictions as a function of how often each row counts."""
        if self.labels.dtype.kind == "f":
            return regression_row_metrics(predictions, self.labels)[self.metric].statistic
        logits = np.eye(len(self.class_names), dtype=np.float32)[predictions]
        if self.labels.ndim == 1:
            return classification_row_metrics(logits, self.labels)[self.metric].statistic
        logits = logits[:, : self.labels.shape[1]]
        return token_classification_row_metrics(logits, self.labels, self.class_names)[self.metric].statistic

    def _value(self, statistic: Statistic) -> float:
        return float(statistic(np.ones((1, self.rows)))[0])

    def describe(self) -> dict[str, Any]:
        """Return the metric of the teacher on the held-out rows."""
        return {"metric": self.metric, "value": self._value(self.teacher), "rows": self.rows}

    def _load(self, record: dict[str, Any]) -> Array:
        with np.load(self.cells / record["predictions"]) as arrays:
            predictions: Array = arrays["predictions"]
        return predictions

    def _mean_share(self, records: Sequence[dict[str, Any]]) -> Statistic:
        """Return the mean over the records of the share of the teacher's metric that they keep."""
        students = [self._statistic(self._load(record)) for record in records]

        def share(weights: Array) -> Array:
            values = np.mean([student(weights) for student in students], axis=0)
            return values / self.teacher(weights)

        return share

    def _agreement(self, predictions: Array) -> float:
        if self.labels.dtype.kind == "f":
            return float(np.corrcoef(predictions, self.predictions)[0, 1])
        counted = self.labels != -100
        width = self.labels.shape[-1] if self.labels.ndim > 1 else None
        student, teacher = (
            values if width is None else values[:, :width] for values in (predictions, self.predictions)
        )
        return float((student == teacher)[counted].mean())

    def summarize(
        self, records: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]] | None
    ) -> dict[str, Any]:
        """Return the means over the seeds of one recipe, with intervals; the difference is to the same seeds."""
        share = self._mean_share(records)
        seeds = {record["seed"] for record in records}
        same = [record for record in baseline or () if record["seed"] in seeds]
        difference = interval = None
        if same and records[0]["recipe"] != same[0]["recipe"] and len(same) == len(records):
            other = self._mean_share(same)
            difference = self._value(share) - self._value(other)
            interval = paired_interval(lambda weights: share(weights) - other(weights), self.rows)
        first = records[0]
        values = [self._value(self._statistic(self._load(record))) for record in records]
        return {
            **{name: first[name] for name in ("dataset", "cut", "recipe", "steps")},
            "seeds": sorted(seeds),
            "metric": self.metric,
            "values": values,
            "kept": self._value(share),
            "kept_interval": ends_of(paired_interval(share, self.rows)),
            "agreement": statistics.mean(self._agreement(self._load(record)) for record in records),
            "difference": difference,
            "difference_interval": ends_of(interval),
            "minutes": statistics.mean(record["seconds"] for record in records) / 60,
        }


def _to_markdown(result: dict[str, Any], baseline: str) -> str:
    lines = ["# Recipes", ""]
    lines += [
        f"Teacher of {name}: {teacher['metric']} {teacher['value']:.4f} on {teacher['rows']:,} held-out rows."
        for name, teacher in result["teachers"].items()
    ]
    columns = ["data", "cut", "recipe", "steps", "seeds", "value", "kept (95% interval)", "agreement"]
    columns += [f"points more than '{baseline}'", "minutes"]
    lines += ["", "| " + " | ".join(columns) + " |", "| --- | ---: | --- " + "| ---: " * (len(columns) - 3) + "|"]
    for row in result["rows"]:
        cells = [row["dataset"], f"{row['cut']:g}x", row["recipe"], f"{row['steps']:,}", str(len(row["seeds"]))]
        cells += [f"{statistics.mean(row['values']):.4f}", format_share(row["kept"], row["kept_interval"])]
        cells += [f"{row['agreement']:.3f}", _points(row["difference"], row["difference_interval"])]
        cells += [f"{row['minutes']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"{error['dataset']}, {error['recipe']}: {error['error']}" for error in result["errors"])]
    return "\n".join(lines).rstrip() + "\n"


def _points(value: float | None, ends: list[float] | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:+.1f}" + ("" if ends is None else f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})")


def _draw(rows: Sequence[dict[str, Any]], recipes: Sequence[str], path: Path) -> None:
    """Draw the share that is kept against the steps, a panel a dataset and cut; not trained is at 0 steps."""
    panels: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        panels.setdefault((row["dataset"], row["cut"]), []).append(row)
    shown = {key: group for key, group in panels.items() if len({row["steps"] for row in group}) >= 3}
    if not shown:
        return
    figure = Figure(figsize=(4.2 * len(shown), 3.8), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, ((dataset, cut), group) in zip(axes, shown.items(), strict=True):
        for recipe, colour in zip(recipes, COLOURS, strict=False):
            points = [row for row in group if row["recipe"] in (recipe, NOT_TRAINED)]
            if len(points) < 2:  # not trained by this recipe
                continue
            points.sort(key=lambda row: row["steps"])
            kept = np.array([100 * row["kept"] for row in points])
            ends = 100 * np.array([row["kept_interval"] or [row["kept"]] * 2 for row in points]).reshape(-1, 2)
            style = {"color": colour, "marker": "o", "capsize": 2, "label": recipe}
            axis.errorbar([row["steps"] for row in points], kept, np.abs(ends.T - kept), **style)
        axis.set_xscale("symlog", linthresh=100)
        steps = sorted({row["steps"] for row in group})
        axis.set_xticks(steps, [f"{number:,}" for number in steps])
        axis.minorticks_off()
        axis.set_title(f"{dataset}, {cut:g}x fewer operations", size=10)
        axis.set_xlabel("steps")
        axis.legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("% of the teacher's metric kept")
    figure.savefig(path, dpi=140)
