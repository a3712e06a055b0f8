"""Configuration of exports to other runtimes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_efficient.errors import UserError
from hf_efficient.field_checks import check_field_types

EXPORT_FORMATS = ("onnx", "openvino")
# Besides float32, which every format has.
FORMAT_QUANTIZATIONS = {"onnx": ("int8",), "openvino": ("int8", "int8_weight_only")}
# Quantizations that compute the ranges of activations from data, and whether they need it.
CALIBRATED = {("onnx", "int8"): False, ("openvino", "int8"): True}


@dataclass(frozen=True)
class ExportConfig:
    """Formats that a model is exported to, and how the exports are quantized.

    Raises UserError if a format is unknown or has no such quantization.
    """

    export: list[str] | None = field(
        default=None,
        metadata={
            "help": "Also export the model to these formats, each in a folder of its name: "
            f"{', '.join(EXPORT_FORMATS)}.",
            "nargs": "+",
        },
    )
    export_quantization: str = field(
        default="int8",
        metadata={"help": "Quantization of the exports: int8, int8_weight_only (OpenVINO only), or none for float32."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.export, str):
            raise UserError(f"export={self.export!r} must be a list: give [{self.export!r}]")
        check_field_types(self)
        for format in self.formats:
            check_export_format(format, self.quantization)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats, each once."""
        return tuple(dict.fromkeys(self.export or ()))

    @property
    def quantization(self) -> str | None:
        """The quantization of the exports; None: float32."""
        return None if self.export_quantization == "none" else self.export_quantization

    def uses_calibration(self, format: str) -> bool:
        """Whether the export to `format` computes the ranges of activations from calibration batches, if given."""
        return uses_calibration(format, self.quantization)

    def needs_calibration(self, format: str) -> bool:
        """Whether the export to `format` is not possible without calibration batches."""
        return needs_calibration(format, self.quantization)


def check_export_format(format: str, quantization: str | None) -> None:
    """Raise UserError if the format is unknown or has no such quantization."""
    if format not in EXPORT_FORMATS:
        raise UserError(f"format={format!r} is unknown: give one of {', '.join(EXPORT_FORMATS)}")
    if quantization is not None and quantization not in FORMAT_QUANTIZATIONS[format]:
        raise UserError(
            f"quantization={quantization!r} is not available for {format}: give one of "
            f"{', '.join(FORMAT_QUANTIZATIONS[format])}, or none for float32"
        )


def uses_calibration(format: str, quantization: str | None) -> bool:
    """Whether this export computes the ranges of activations from calibration batches, if they are given."""
    return (format, str(quantization)) in CALIBRATED


def needs_calibration(format: str, quantization: str | None) -> bool:
    """Whether this export is not possible without calibration batches."""
    return CALIBRATED.get((format, str(quantization)), False)
