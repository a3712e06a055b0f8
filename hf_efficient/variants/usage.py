"""Python code that makes a variant of a model, for the screen."""

from __future__ import annotations

from collections.abc import Callable

from hf_efficient.exporters.config import EXPORT_FORMATS, uses_calibration
from hf_efficient.hub.usage import quoted

CALIBRATION = "batches"  # what the code calls batches of training data


def variant_code(variant: str, name: str, auto: str, is_calibrated: bool) -> list[str]:
    """Return the lines, at most three, that make the variant of the model called `name`, loaded by the class `auto`.

    `is_calibrated` tells whether an int8 variant was calibrated; the code then refers to `batches` of training data.
    """
    format, _, quantization = variant.partition("_")
    if format in EXPORT_FORMATS:
        return _export_code(format, quantization, name, auto, is_calibrated)
    return _CODES[variant](
        f"{auto}.from_pretrained({quoted(name)}", auto, f", calibration={CALIBRATION}" * is_calibrated
    )


def _float_code(dtype: str) -> Callable[[str, str, str], list[str]]:
    def code(load: str, auto: str, calibration: str) -> list[str]:
        return ["import torch", f"from transformers import {auto}", f"model = {load}, dtype=torch.{dtype})"]

    return code


def _int8_code(load: str, auto: str, calibration: str) -> list[str]:
    return [
        f"from transformers import {auto}",
        "from hf_efficient import quantize",
        f"model = quantize({load}){calibration})",
    ]


def _compiled_code(load: str, auto: str, calibration: str) -> list[str]:
    return [
        "import torch, transformers, hf_efficient",
        f"model = hf_efficient.quantize(transformers.{load}){calibration})",
        "model = torch.compile(model, dynamic=True)  # the first call compiles",
    ]


def _scheme_code(scheme: str) -> Callable[[str, str, str], list[str]]:
    def code(load: str, auto: str, calibration: str) -> list[str]:
        return [
            f"from transformers import {auto}",
            "from hf_efficient import QuantizationConfig, quantize",
            f'model = quantize({load}), QuantizationConfig("{scheme}"){calibration})',
        ]

    return code


def _export_code(format: str, quantization: str, name: str, auto: str, is_calibrated: bool) -> list[str]:
    takes_calibration = is_calibrated and uses_calibration(format, quantization or None)
    calibration = f", calibration={CALIBRATION}" if takes_calibration else ""
    precision = f', quantization="{quantization}"' if quantization else ""
    model = f"transformers.{auto}.from_pretrained({quoted(name)})"
    return [
        "import transformers, hf_efficient",
        f'hf_efficient.export({model}, "exported", format="{format}"{precision}{calibration})',
        'model = hf_efficient.load_exported("exported")',
    ]


_CODES = {
    "float32": _float_code("float32"),
    "bfloat16": _float_code("bfloat16"),
    "float16": _float_code("float16"),
    "int8": _int8_code,
    "int8_compiled": _compiled_code,
    "int8_dynamic": _scheme_code("int8_dynamic"),
    "int8_weight_only": _scheme_code("int8_weight_only"),
}
