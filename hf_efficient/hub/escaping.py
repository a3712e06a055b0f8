"""Names that a user gave as texts of a model card: they have no meaning in HTML or Markdown."""

from __future__ import annotations

import dataclasses
import html
import re

from hf_efficient.measurement.report import CompressionReport


def escape_markdown(text: str) -> str:
    """Return `text` on one line and without the meaning that its characters have in HTML and Markdown."""
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def escape_names(report: CompressionReport) -> CompressionReport:
    """Return `report` with the names that a user gave as texts of a card: of dataset, metric, models and stages."""
    models = [
        dataclasses.replace(
            row,
            name=escape_markdown(row.name),
            metrics={escape_markdown(key): value for key, value in row.metrics.items()},
        )
        for row in report.models
    ]
    return dataclasses.replace(
        report,
        dataset=None if report.dataset is None else escape_markdown(report.dataset),
        metric=None if report.metric is None else escape_markdown(report.metric),
        models=models,
        stages=[escape_markdown(stage) for stage in report.stages],
    )
