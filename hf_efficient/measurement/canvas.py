"""A matplotlib figure that is laid out in inches from its upper left corner."""

from __future__ import annotations

from typing import Any

DPI = 140
TEXT, MUTED = "#1f2430", "#6b7280"
HINTING = 1.05  # drawn text is a little wider than computed, because glyphs are moved to whole pixels
LINE_HEIGHT = 0.18  # inches, for text of up to 10 points


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width of the longest line of `text` in inches, `size` being that of the font in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight=weight)
    widths = (text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in text.split("\n"))
    return HINTING * max(widths) / 72


class Canvas:
    """A figure of `width` x `height` inches; `left` and `top` are distances from its upper left corner in inches."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure: Any = Figure(figsize=(width, height), dpi=DPI, facecolor="white")

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Return new axes at this place."""
        place = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def write(self, left: float, top: float, text: str, **style: Any) -> None:
        """Write `text` with its upper edge at `top`; `style` is passed to matplotlib."""
        style = {"color": TEXT, "linespacing": 1.2, "va": "top", "parse_math": False, **style}
        self.figure.text(left / self.width, 1 - top / self.height, text, **style)
