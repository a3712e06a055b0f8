"""Builders of a model's variants: in float, in int8, compiled or exported, each built by one call."""

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
from hf_efficient.exporters.config import EXPORT_FORMATS, needs_calibration, uses_calibration
from hf_efficient.exporters.export import export
from hf_efficient.exporters.runtime_models import load_exported
from hf_efficient.functions import quantize
from hf_efficient.measurement.runtimes import Inputs, check_runtime
from hf_efficient.models import is_quantized
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.variants.compiled import compile_variant
from hf_efficient.variants.config import VARIANTS

Forward = Callable[..., Any]
Calibration = Iterable[Mapping[str, torch.Tensor]] | None


@dataclass(frozen=True)
class ModelVariant:
    """A model in one variant: `forward` runs it where that is not the model itself, such as its compiled form."""

    model: nn.Module
    forward: Forward | None = None

    @property
    def runner(self) -> Forward:
        """What to call with a batch: `forward`, or the model."""
        return self.model if self.forward is None else self.forward  # a compiled module has no truth value


Builder = Callable[[PreTrainedModel, Inputs, Calibration, Path], ModelVariant | None]


def _converted(dtype: torch.dtype) -> Builder:
    """Return the builder of a copy in this data type."""

    def build(model: PreTrainedModel, inputs: Inputs, calibration: Calibration, directory: Path) -> ModelVariant:
        return ModelVariant(copy.deepcopy(model).to(dtype))

    return build


float32 = _converted(torch.float32)
bfloat16 = _converted(torch.bfloat16)
float16 = _converted(torch.float16)


def int8(model: PreTrainedModel, inputs: Inputs, calibration: Calibration, directory: Path) -> ModelVariant:
    """Return `model` with int8 weights and activations, in fixed ranges if there are calibration batches."""
    scheme = "int8_dynamic" if calibration is None else "int8_static"
    return ModelVariant(quantize(model, QuantizationConfig(scheme), calibration))


def int8_compiled(
    model: PreTrainedModel, inputs: Inputs, calibration: Calibration, directory: Path
) -> ModelVariant | None:
    """Return the int8 variant under torch.compile, None where it cannot be compiled."""
    quantized = int8(model, inputs, calibration, directory).model
    forward = compile_variant(quantized, inputs)
    return None if forward is None else ModelVariant(quantized, forward)


def _int8(scheme: str) -> Builder:
    """Return the builder of an int8 scheme that needs no calibration; with batches its weights are rounded better."""

    def build(model: PreTrainedModel, inputs: Inputs, calibration: Calibration, directory: Path) -> ModelVariant:
        return ModelVariant(quantize(model, QuantizationConfig(scheme), calibration))

    return build


int8_dynamic = _int8("int8_dynamic")
int8_weight_only = _int8("int8_weight_only")


def _exported(format: str, quantization: str | None) -> Builder:
    """Return the builder of an export to `format`, written into a subdirectory of that name and loaded again."""

    def build(model: PreTrainedModel, inputs: Inputs, calibration: Calibration, directory: Path) -> ModelVariant:
        batches = calibration if uses_calibration(format, quantization) else None
        export(model, directory / format, format, quantization, batches)
        return ModelVariant(load_exported(directory / format, quantization, full_precision=quantization is None))

    return build


onnx = _exported("onnx", None)
onnx_int8 = _exported("onnx", "int8")
openvino = _exported("openvino", None)
openvino_int8 = _exported("openvino", "int8")
openvino_int8_weight_only = _exported("openvino", "int8_weight_only")


def check_not_quantized(model: PreTrainedModel, name: str) -> None:
    """Raise UserError if the model called `name` is quantized already: it has no other variants."""
    if is_quantized(model):
        raise UserError(f"{name} is quantized already: leave out --variants, or give its float model")


def check_variants(variants: Sequence[str], data: DataConfig) -> None:
    """Raise UserError if a variant is unknown, or cannot be built with the packages and the data at hand."""
    for variant in variants:
        if variant not in VARIANTS:
            raise UserError(f"variant {variant!r} is unknown: give one of {', '.join(VARIANTS)}")
        format, _, quantization = variant.partition("_")
        if format not in EXPORT_FORMATS:
            continue
        check_runtime(format)
        if needs_calibration(format, quantization) and not has_calibration_data(data):
            raise UserError(
                f"variant {variant} needs calibration data that no metric is measured on: give --train_file next to "
                "--validation_file, or --dataset_name"
            )


def has_calibration_data(data: DataConfig) -> bool:
    """Whether `data` names training data besides the data that is evaluated."""
    has_evaluation_data = data.dataset_name or data.validation_file or data.test_file or not data.train_file
    return bool(has_evaluation_data and (data.train_file or data.dataset_name))
