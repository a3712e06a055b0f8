"""Names that a user gave as texts of a model card: they have no meaning in HTML or Markdown."""

from __future__ import annotations

import html
import re

from hf_efficient.measurement.formatting import printable
from hf_efficient.measurement.report import CompressionReport


def escape_markdown(text: str) -> str:
    """Return `text` on one line and without the meaning that its characters have in HTML and Markdown."""
    line = html.escape(printable(" ".join(text.split())), quote=False)
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", line)


def escape_names(report: CompressionReport) -> CompressionReport:
    """Return `report` with the names that a user gave as texts of a card: of dataset, metric, models and stages."""
    return report.with_names(escape_markdown)
