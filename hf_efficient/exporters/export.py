"""Models for other runtimes: ONNX Runtime and OpenVINO, in float or in 8 bits, checked against torch."""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.exporters.config import check_export_format, needs_calibration
from hf_efficient.exporters.inputs import calibration_inputs, component_inputs, generates_text, sample_export_inputs
from hf_efficient.exporters.runtime_models import (
    load_exported,
    quantization_title,
)
from hf_efficient.measurement.runtimes import check_runtime, suppress_output
from hf_efficient.models import family_of, is_quantized
from hf_efficient.models.family import stock_fields
from hf_efficient.quantization.int8 import needs_reduced_range

EXPORTERS = {"onnx": "OnnxExporter", "openvino": "OpenVINOExporter"}
MAX_RELATIVE_DIFFERENCE = 1e-3
CHECKED_DECODE_STEPS = 6


@dataclass(frozen=True)
class ExportResult:
    """An exported model in a folder; `difference` is the largest from torch, as a share of torch's largest answer."""

    format: str
    quantization: str | None
    folder: str
    difference: float

    def describe(self) -> str:
        """Return what was done, for a report."""
        form = quantization_title(self.quantization)
        return f"exported to {self.format} ({form}), within {self.difference:.1e} of torch's largest answer"


def export(
    model: PreTrainedModel,
    directory: str | os.PathLike[str],
    format: str = "onnx",
    quantization: str | None = None,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
) -> ExportResult:
    """Write `model` into `directory` as `transformers.exporters.ExportedModel.from_pretrained` loads it.

    | argument | meaning |
    | --- | --- |
    | format | "onnx" or "openvino" |
    | quantization | None: float32; "int8"; for OpenVINO also "int8_weight_only" |
    | calibration | batches of the user's data, (batch, tokens), that the ranges of OpenVINO's int8 come from |

    In 8 bits ONNX Runtime finds the range of activations as they come, OpenVINO has it fixed by `calibration`. Any
    batch size and length can be run. Uneven shapes need no code of ours there: the folder's config is that of the
    stock class. What was written is loaded again and compared with torch.

    A model that writes text becomes three graphs, which `hf_efficient.load_exported` puts together again to generate.

    The folder is made, or replaced where it holds an earlier export. The model stays as it is.

    Raises ValueError: the format or its quantization is unknown or not installed, calibration data is missing, the
    model is quantized already, or the folder holds something else. Raises TypeError: its family is unknown. Raises
    RuntimeError: in float32 it answers otherwise than torch.
    """
    check_export(model, format, quantization)
    folder = _check_export_dir(directory)
    if needs_calibration(format, quantization) and calibration is None:
        raise UserError(
            "OpenVINO's int8 fixes the ranges of activations in advance: give `calibration`, batches of your data, or "
            "quantization='int8_weight_only'"
        )
    # Runtimes lack kernels for half precision, and the user's model may be training.
    model = copy.deepcopy(model).float().eval()
    beside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    samples = component_inputs(model, sample_export_inputs(model, 2, 16))
    with suppress_output():
        data = calibration_inputs(model, calibration, list(samples)) if calibration is not None else {}
        exporter = getattr(transformers.exporters, EXPORTERS[format])()
        components = {
            name: exporter.export(part, dict(inputs), _exporter_config(format, model, quantization, data.get(name)))
            for name, (part, inputs) in samples.items()
        }
        exported = transformers.exporters.ExportedModel(
            {name: each.components["model"] for name, each in components.items()},
            next(iter(components.values())).export_format,
            config=_stock_config(model),
            generation_config=model.generation_config if generates_text(model) else None,
        )
        exported.save_pretrained(beside)
        differs = _max_relative_difference(model, load_exported(beside, full_precision=True))
    found = ExportResult(format, quantization, str(folder), differs)
    if quantization is None and not found.difference <= MAX_RELATIVE_DIFFERENCE:
        raise RuntimeError(
            f"the {format} form in {beside} differs from torch by {found.difference:.1e} of its largest answer: do "
            "not use it, and report the versions of torch, transformers and the runtime"
        )
    if folder.exists():
        shutil.rmtree(folder)
    beside.replace(folder)
    return found


def check_export(model: PreTrainedModel, format: str, quantization: str | None) -> None:
    """Check what cannot work before any of the work is done; see `export`."""
    check_export_format(format, quantization)
    check_runtime(format)
    if is_quantized(model):
        raise UserError("the model is quantized already: export its float form, which the runtime quantizes itself")
    _stock_config(model)


def _check_export_dir(directory: str | os.PathLike[str]) -> Path:
    """Return the folder to write. Raises ValueError: it holds what no export of ours left there."""
    folder = Path(directory).resolve()
    manifest = folder / transformers.exporters.base.EXPORT_MANIFEST_FILE
    if folder.is_dir() and any(folder.iterdir()) and not manifest.exists():
        raise UserError(f"{str(directory)!r} holds other files than an export: name a folder of its own, such as onnx")
    return folder


def _exporter_config(format: str, model: PreTrainedModel, quantization: str | None, data: list[Any] | None) -> Any:
    """Return the config of an exporter of Transformers."""
    quantizer: Any = None
    if format == "onnx":
        dynamic = transformers.exporters.OnnxRuntimeDynamicConfig(
            per_channel=True, reduce_range=needs_reduced_range(model.device)
        )
        quantizer = transformers.exporters.OnnxRuntimeQuantizer(dynamic) if quantization else None
        return transformers.exporters.OnnxConfig(dynamic=True, quantizer=quantizer)
    if quantization == "int8":
        static = transformers.exporters.NNCFQuantizationConfig(subset_size=len(data or ()))
        quantizer = transformers.exporters.NNCFOpenVINOQuantizer(static, calibration_dataset=data)
    elif quantization:
        quantizer = transformers.exporters.NNCFOpenVINOQuantizer(transformers.exporters.NNCFWeightCompressionConfig())
    # A cache kept inside would be shared by all who generate at the same time.
    return transformers.exporters.OpenVINOConfig(dynamic=True, quantizer=quantizer, stateful=False)


def _stock_config(model: PreTrainedModel) -> Any:
    """Return the config of the stock class, which any reader of the folder knows."""
    family = family_of(model)
    config = family.config_class(**stock_fields(model.config))
    config.architectures = [family.class_for(type(model), config).__name__]
    return config


def _max_relative_difference(model: PreTrainedModel, loaded: nn.Module) -> float:
    """Return the largest difference of the answers, as a share of the largest answer."""
    inputs = sample_export_inputs(model, 3, 11)
    with torch.no_grad():
        expected, found = _output_tensors(model, inputs), _output_tensors(loaded, inputs)
    pairs = [(found[name].float().cpu(), value.float().cpu()) for name, value in expected.items() if name in found]
    largest = max((float(value.abs().max()) for _, value in pairs), default=0.0)
    return max(float((other - value).abs().max()) for other, value in pairs) / largest if largest else math.nan


def _output_tensors(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors that `model` answers; one that writes also goes on from its cache."""
    if not generates_text(model):
        return {n: v for n, v in model(**inputs).items() if torch.is_tensor(v) and v.is_floating_point()}
    ids = inputs["decoder_input_ids"]
    texts = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
    begun = model(**texts, decoder_input_ids=ids[:, :-1], use_cache=True)
    # Once more what the cache holds at each step: too short a check hides a cache that is written over.
    further = [begun]
    for _ in range(CHECKED_DECODE_STEPS):
        further.append(model(**texts, decoder_input_ids=ids[:, -1:], past_key_values=further[-1].past_key_values))
    return {f"logits {number}": outputs.logits for number, outputs in enumerate(further)}
