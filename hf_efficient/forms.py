"""The forms that a model can be run in, each made in one call: in float, in 8 bits, compiled or exported."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.data import DataConfig
from hf_efficient.exported import load_exported
from hf_efficient.exporting import FORMATS, export, needs_calibration
from hf_efficient.measurement.runtimes import Inputs, check_runtime
from hf_efficient.models import is_quantized
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.int8 import compiled
from hf_efficient.quantizing import quantize

Call = Callable[..., Any]
Calibration = Iterable[Mapping[str, torch.Tensor]] | None


@dataclass(frozen=True)
class Formed:
    """A model in one of its forms, and what runs it where that is not the model itself."""

    model: nn.Module
    call: Call | None = None


def _in_dtype(dtype: torch.dtype) -> Callable[..., Formed]:
    return lambda model, *_: Formed(copy.deepcopy(model).to(dtype))


def _in_int8(compiles: bool, scheme: str) -> Callable[..., Formed | None]:
    def make(model: PreTrainedModel, inputs: Inputs, *_: Any) -> Formed | None:
        quantized = quantize(model, QuantizationConfig(scheme))
        if not compiles:
            return Formed(quantized)
        call = compiled(quantized, inputs)
        return None if call is None else Formed(quantized, call)

    return make


def _exported(format: str, quantization: str | None) -> Callable[..., Formed]:
    def make(model: PreTrainedModel, inputs: Inputs, calibration: Calibration, folder: Path) -> Formed:
        needed = calibration if needs_calibration(format, quantization) else None
        export(model, folder / format, format, quantization, needed)
        return Formed(load_exported(folder / format, quantization, exact=quantization is None))

    return make


FORMS: dict[str, Callable[..., Formed | None]] = {
    "float32": _in_dtype(torch.float32),
    "bfloat16": _in_dtype(torch.bfloat16),
    "int8": _in_int8(False, "int8_dynamic"),
    "int8_compiled": _in_int8(True, "int8_dynamic"),
    "int8_weight_only": _in_int8(False, "int8_weight_only"),
    "onnx": _exported("onnx", None),
    "onnx_int8": _exported("onnx", "int8"),
    "openvino": _exported("openvino", None),
    "openvino_int8": _exported("openvino", "int8"),
    "openvino_int8_weight_only": _exported("openvino", "int8_weight_only"),
}


def check_model(model: PreTrainedModel, name: str) -> None:
    """Raises ValueError: the model called `name` is quantized, and has but one form."""
    if is_quantized(model):
        raise ValueError(f"{name} is quantized already: leave out --forms, or give its float form")


def check_forms(forms: Sequence[str], data: DataConfig) -> None:
    """Refuses forms that are unknown or cannot be made, before any is made."""
    for form in forms:
        if form not in FORMS:
            raise ValueError(f"form {form!r} is unknown: give one of {', '.join(FORMS)}")
        format, _, quantization = form.partition("_")
        if format in FORMATS:
            check_runtime(format)
            judged = data.dataset_name or data.validation_file or data.test_file or not data.train_file
            if needs_calibration(format, quantization) and not (judged and (data.train_file or data.dataset_name)):
                raise ValueError(
                    f"{form} fixes the ranges of activations on data that nothing is judged on: give --train_file "
                    "beside --validation_file, or --dataset_name"
                )
