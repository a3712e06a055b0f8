"""Configuration of exports to other runtimes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_efficient.errors import UserError
from hf_efficient.measurement.runtimes import RUNTIME_PACKAGES

EXPORT_FORMATS = tuple(RUNTIME_PACKAGES)
FORMAT_QUANTIZATIONS = {"onnx": ("int8",), "openvino": ("int8", "int8_weight_only")}


@dataclass(frozen=True)
class ExportConfig:
    """For which runtimes a model is written besides, and in which form.

    Raises ValueError: a runtime or a form is unknown, or no runtime knows the form.
    """

    export: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Also write the model for these runtimes, in folders of their names: {', '.join(EXPORT_FORMATS)}.",
            "nargs": "+",
        },
    )
    export_quantization: str = field(
        default="int8",
        metadata={"help": "Form of the exports: int8; int8_weight_only (OpenVINO alone); none: float32."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.export, str):
            raise UserError(f"export={self.export!r} must be a list: give [{self.export!r}]")
        for format in self.formats:
            check_export_format(format, self.quantization)

    @property
    def formats(self) -> tuple[str, ...]:
        """The runtimes, each once."""
        return tuple(dict.fromkeys(self.export or ()))

    @property
    def quantization(self) -> str | None:
        """The quantization that `export` is given."""
        return None if self.export_quantization == "none" else self.export_quantization

    def needs_calibration(self, format: str) -> bool:
        """Whether the export to `format` finds the ranges of activations on data."""
        return needs_calibration(format, self.quantization)


def check_export_format(format: str, quantization: str | None) -> None:
    """Raises ValueError: there is no such format, or not in that form."""
    if format not in EXPORT_FORMATS:
        raise UserError(f"format={format!r} is unknown: give one of {', '.join(EXPORT_FORMATS)}")
    if quantization is not None and quantization not in FORMAT_QUANTIZATIONS[format]:
        raise UserError(
            f"quantization={quantization!r} is unknown for {format}: give one of {', '.join(FORMAT_QUANTIZATIONS[format])}, "
            "or none for float32"
        )


def needs_calibration(format: str, quantization: str | None) -> bool:
    """Whether that form finds the ranges of activations on data, before it is run."""
    return (format, quantization) == ("openvino", "int8")
