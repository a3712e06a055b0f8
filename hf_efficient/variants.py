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

from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.exporters.config import EXPORT_FORMATS, needs_calibration
from hf_efficient.exporters.export import export
from hf_efficient.exporters.runtime_models import load_exported
from hf_efficient.functions import quantize
from hf_efficient.measurement.runtimes import Inputs, check_runtime
from hf_efficient.models import is_quantized
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.int8 import compile_model

Call = Callable[..., Any]
Calibration = Iterable[Mapping[str, torch.Tensor]] | None


@dataclass(frozen=True)
class ModelVariant:
    """A model in one of its forms, and what runs it where that is not the model itself."""

    model: nn.Module
    forward: Call | None = None


def _float_variant(dtype: torch.dtype) -> Callable[..., ModelVariant]:
    return lambda model, *_: ModelVariant(copy.deepcopy(model).to(dtype))


def _int8_variant(compiles: bool, scheme: str) -> Callable[..., ModelVariant | None]:
    def make(model: PreTrainedModel, inputs: Inputs, *_: Any) -> ModelVariant | None:
        quantized = quantize(model, QuantizationConfig(scheme))
        if not compiles:
            return ModelVariant(quantized)
        call = compile_model(quantized, inputs)
        return None if call is None else ModelVariant(quantized, call)

    return make


def _exported_variant(format: str, quantization: str | None) -> Callable[..., ModelVariant]:
    def make(model: PreTrainedModel, inputs: Inputs, calibration: Calibration, folder: Path) -> ModelVariant:
        needed = calibration if needs_calibration(format, quantization) else None
        export(model, folder / format, format, quantization, needed)
        return ModelVariant(load_exported(folder / format, quantization, full_precision=quantization is None))

    return make


VARIANTS: dict[str, Callable[..., ModelVariant | None]] = {
    "float32": _float_variant(torch.float32),
    "bfloat16": _float_variant(torch.bfloat16),
    "int8": _int8_variant(False, "int8_dynamic"),
    "int8_compiled": _int8_variant(True, "int8_dynamic"),
    "int8_weight_only": _int8_variant(False, "int8_weight_only"),
    "onnx": _exported_variant("onnx", None),
    "onnx_int8": _exported_variant("onnx", "int8"),
    "openvino": _exported_variant("openvino", None),
    "openvino_int8": _exported_variant("openvino", "int8"),
    "openvino_int8_weight_only": _exported_variant("openvino", "int8_weight_only"),
}


def check_not_quantized(model: PreTrainedModel, name: str) -> None:
    """Raises ValueError: the model called `name` is quantized, and has but one form."""
    if is_quantized(model):
        raise UserError(f"{name} is quantized already: leave out --forms, or give its float form")


def check_variants(forms: Sequence[str], data: DataConfig) -> None:
    """Check forms that are unknown or cannot be made, before any is made."""
    for form in forms:
        if form not in VARIANTS:
            raise UserError(f"form {form!r} is unknown: give one of {', '.join(VARIANTS)}")
        format, _, quantization = form.partition("_")
        if format in EXPORT_FORMATS:
            check_runtime(format)
            judged = data.dataset_name or data.validation_file or data.test_file or not data.train_file
            if needs_calibration(format, quantization) and not (judged and (data.train_file or data.dataset_name)):
                raise UserError(
                    f"{form} fixes the ranges of activations on data that nothing is judged on: give --train_file "
                    "beside --validation_file, or --dataset_name"
                )
