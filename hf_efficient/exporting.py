"""Models for other runtimes: ONNX Runtime and OpenVINO, in float or in 8 bits, checked against torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, exporters

from hf_efficient.measurement.comparison import model_inputs
from hf_efficient.measurement.runtimes import PACKAGES, check_runtime, quiet
from hf_efficient.models import family_of, is_quantized
from hf_efficient.models.structure import stock_fields
from hf_efficient.quantization.int8 import reduces_range

FORMATS = tuple(PACKAGES)
QUANTIZATIONS = {"onnx": ("int8",), "openvino": ("int8", "int8_weight_only")}
MOST_DIFFERENCE = 1e-3
CALIBRATION_BATCHES = 64


@dataclass(frozen=True)
class Exported:
    """An exported model in a folder; `difference` is the largest from torch, as a share of torch's largest answer."""

    format: str
    quantization: str | None
    folder: str
    difference: float

    def describe(self) -> str:
        """Returns what was done, for a report."""
        form = (self.quantization or "float32").replace("_", " ")
        return f"exported to {self.format} ({form}), within {self.difference:.1e} of torch's largest answer"


def export(
    model: PreTrainedModel,
    directory: str | os.PathLike[str],
    format: str = "onnx",
    quantization: str | None = None,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
) -> Exported:
    """Writes `model` into `directory` as `transformers.exporters.ExportedModel.from_pretrained` loads it.

    | argument | meaning |
    | --- | --- |
    | format | "onnx" or "openvino" |
    | quantization | None: float32; "int8"; for OpenVINO also "int8_weight_only" |
    | calibration | batches of the user's data, (batch, tokens), that the ranges of OpenVINO's int8 come from |

    In 8 bits ONNX Runtime finds the range of activations as they come, OpenVINO has it fixed by `calibration`. Any
    batch size and length can be run. Uneven shapes need no code of ours there: the folder's config is that of the
    stock class. What was written is loaded again and compared with torch.

    Raises ValueError: the format or its quantization is unknown or not installed, calibration data is missing, or the
    model is quantized already or writes text. Raises RuntimeError: in float32 it answers otherwise than torch.
    """
    check_export(model, format, quantization)
    if (format, quantization) == ("openvino", "int8") and calibration is None:
        raise ValueError(
            "OpenVINO's int8 fixes the ranges of activations in advance: give `calibration`, batches of your data, or "
            "quantization='int8_weight_only'"
        )
    model = model.eval()
    inputs = _inputs(model, 2, 16)
    with quiet():
        exporter, config = _exporter(format, model, quantization, calibration, list(inputs))
        exported = exporter.export(model, dict(inputs), config)
        exported.config = _stock_config(model)
        exported.save_pretrained(directory)
        # Left to itself OpenVINO computes in bfloat16 where it can, which would hide what the export did.
        exact: dict[str, Any] = {"config": {"INFERENCE_PRECISION_HINT": "f32"}} if format == "openvino" else {}
        loaded = exporters.ExportedModel.from_pretrained(directory, **exact)
    found = Exported(format, quantization, str(directory), _difference(model, loaded))
    if quantization is None and not found.difference <= MOST_DIFFERENCE:
        raise RuntimeError(
            f"the {format} form in {directory} differs from torch by {found.difference:.1e} of its largest answer: do "
            "not use it, and report the versions of torch, transformers and the runtime"
        )
    return found


def check_export(model: PreTrainedModel, format: str, quantization: str | None) -> None:
    """Refuses what cannot work before any of the work is done; see `export`."""
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown: give one of {', '.join(FORMATS)}")
    if quantization is not None and quantization not in QUANTIZATIONS[format]:
        raise ValueError(
            f"quantization={quantization!r} is unknown for {format}: give one of {', '.join(QUANTIZATIONS[format])}, "
            "or none for float32"
        )
    check_runtime(format)
    if is_quantized(model):
        raise ValueError("the model is quantized already: export its float form, which the runtime quantizes itself")
    if model.can_generate():
        raise ValueError(f"{type(model).__name__} writes text, which is not exported: give a model with another head")


class ExportedModule(nn.Module):
    """An exported model in the place of a module, for whoever evaluates or times modules; it has no parameters."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        super().__init__()
        with quiet():
            self.exported = exporters.ExportedModel.from_pretrained(directory)
        self.config = self.exported.config
        self.bytes_on_disk = sum(
            path.stat().st_size
            for path in Path(directory).iterdir()
            if path.suffix in (".onnx", ".data", ".bin", ".xml")
        )

    def forward(self, **inputs: torch.Tensor) -> Any:
        """Returns what the model that was exported answers; without a loss."""
        return self.exported(**{name: value for name, value in inputs.items() if name != "labels"})


def _inputs(model: PreTrainedModel, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """Returns what a tokenizer gives the model, (batch, tokens): types of tokens too where it knows several."""
    inputs = model_inputs(model, batch_size, length)
    inputs["attention_mask"][-1, length // 2 :] = 0
    if (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    return inputs


def _exporter(
    format: str, model: PreTrainedModel, quantization: str | None, calibration: Any, names: list[str]
) -> tuple[Any, Any]:
    """Returns the exporter of Transformers and its config."""
    if format == "onnx":
        dynamic = exporters.OnnxRuntimeDynamicConfig(per_channel=True, reduce_range=reduces_range(model.device))
        quantizer: Any = exporters.OnnxRuntimeQuantizer(dynamic) if quantization else None
        return exporters.OnnxExporter(), exporters.OnnxConfig(dynamic=True, quantizer=quantizer)
    quantizer = None
    if quantization == "int8":
        data = _calibration(model, calibration, names)
        quantizer = exporters.NNCFOpenVINOQuantizer(
            exporters.NNCFQuantizationConfig(subset_size=len(data)), calibration_dataset=data
        )
    elif quantization:
        quantizer = exporters.NNCFOpenVINOQuantizer(exporters.NNCFWeightCompressionConfig())
    return exporters.OpenVINOExporter(), exporters.OpenVINOConfig(dynamic=True, quantizer=quantizer)


def _calibration(model: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]], names: list[str]) -> list[Any]:
    """Returns a few batches with just the inputs `names`. Raises ValueError: there is none."""
    found = []
    for batch, _ in zip(batches, range(CALIBRATION_BATCHES), strict=False):
        known = {name: value.to(model.device) for name, value in batch.items() if name in names}
        for name in names:
            if name not in known:
                fill = torch.ones_like if name == "attention_mask" else torch.zeros_like
                known[name] = fill(known["input_ids"])
        found.append(known)
    if not found:
        raise ValueError("the calibration data is empty: at least one batch is needed")
    return found


def _stock_config(model: PreTrainedModel) -> Any:
    """Returns the config of the stock class, which any reader of the folder knows."""
    family = family_of(model)
    config = family.config_class(**stock_fields(model.config))
    config.architectures = [family.class_for(type(model), config).__name__]
    return config


def _difference(model: PreTrainedModel, loaded: Any) -> float:
    inputs = _inputs(model, 3, 11)
    with torch.no_grad():
        expected, found = model(**inputs), loaded(**inputs)
    largest = differs = 0.0
    for name, value in expected.items():
        if torch.is_tensor(value) and value.is_floating_point():
            largest = max(largest, float(value.abs().max()))
            differs = max(differs, float((value.cpu() - found[name].float().cpu()).abs().max()))
    return differs / largest if largest else math.nan
