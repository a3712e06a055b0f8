"""Export to ONNX Runtime and OpenVINO, in float32 or int8, with a check against torch."""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.exporters.config import check_export_format, needs_calibration
from hf_efficient.exporters.inputs import calibration_inputs, component_inputs, generates_text, sample_export_inputs
from hf_efficient.exporters.runtime_models import load_exported, quantization_title
from hf_efficient.measurement.runtimes import check_runtime, suppress_output
from hf_efficient.models import class_for, family_of, is_quantized
from hf_efficient.models.family import stock_fields
from hf_efficient.quantization.int8 import needs_reduced_range

EXPORTERS = {"onnx": "OnnxExporter", "openvino": "OpenVINOExporter"}
# What quantization needs besides the packages of the runtime.
QUANTIZER_PACKAGES = {"openvino": ("nncf",)}
MAX_RELATIVE_DIFFERENCE = 1e-3
CHECKED_DECODE_STEPS = 6


@dataclass(frozen=True)
class ExportResult:
    """An exported model in a folder.

    `difference` is the largest absolute difference from torch's outputs, relative to the largest of them.
    """

    format: str
    quantization: str | None
    folder: str
    difference: float

    def describe(self) -> str:
        """Return one line on the export, for a report."""
        title = quantization_title(self.quantization)
        return f"exported to {self.format} ({title}); outputs differ from torch by at most {self.difference:.2%}"


def export(
    model: PreTrainedModel,
    directory: str | os.PathLike[str],
    format: str = "onnx",
    quantization: str | None = None,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
) -> ExportResult:
    """Export `model` into `directory`, which `transformers.exporters.ExportedModel.from_pretrained` loads.

    | argument | meaning |
    | --- | --- |
    | format | "onnx" or "openvino" |
    | quantization | None: float32; "int8"; for OpenVINO also "int8_weight_only" |
    | calibration | batches of training data, (batch, tokens); OpenVINO's int8 computes activation ranges from them |

    With int8, ONNX Runtime computes the range of activations at run time; OpenVINO fixes it from `calibration`. The
    export runs with any batch size and length. Pruned models need no code of this package there: the folder has the
    config of the stock class. The export is loaded again and compared with torch.

    A model that generates text is exported as three graphs; `hf_efficient.load_exported` loads all three and returns
    a model with `generate`.

    The folder is created, or replaced if it holds an earlier export. `model` is not changed.

    Raises UserError if the format or quantization is unknown or its packages are not installed, calibration batches
    are missing, the model is quantized already, or the folder holds other files; UnsupportedModelError if the family
    of the model is unknown; RuntimeError if outputs in float32 differ from torch's.
    """
    check_export(model, format, quantization)
    folder = _check_export_dir(directory)
    if needs_calibration(format, quantization) and calibration is None:
        raise UserError(
            "OpenVINO's int8 computes activation ranges from data: give `calibration`, batches of your data, or "
            "quantization='int8_weight_only'"
        )
    # Runtimes lack kernels for half precision, and the user's model may be training.
    model = copy.deepcopy(model).float().eval()
    temporary_dir = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(temporary_dir, ignore_errors=True)
    samples = component_inputs(model, sample_export_inputs(model, 2, 16))
    with suppress_output():
        batches = {} if calibration is None else calibration_inputs(model, calibration, list(samples))
        exporter = getattr(transformers.exporters, EXPORTERS[format])()
        components = {
            name: exporter.export(
                component, dict(inputs), _exporter_config(format, model, quantization, batches.get(name))
            )
            for name, (component, inputs) in samples.items()
        }
        exported_model = transformers.exporters.ExportedModel(
            {name: exported.components["model"] for name, exported in components.items()},
            next(iter(components.values())).export_format,
            config=_stock_config(model),
            generation_config=model.generation_config if generates_text(model) else None,
        )
        exported_model.save_pretrained(temporary_dir)
        difference = _max_relative_difference(model, load_exported(temporary_dir, full_precision=True))
    if quantization is None and not difference <= MAX_RELATIVE_DIFFERENCE:  # NaN is refused too
        raise RuntimeError(
            f"the {format} export in {temporary_dir} differs from torch by {difference:.2%} of the largest output: do "
            "not use it, and report the versions of torch, transformers and the runtime"
        )
    if folder.exists():
        shutil.rmtree(folder)
    temporary_dir.replace(folder)
    return ExportResult(format, quantization, str(folder), difference)


def check_export(model: PreTrainedModel, format: str, quantization: str | None) -> None:
    """Check that `export` can export `model` to this format.

    Raises UserError if the format or quantization is unknown or its packages are not installed, or the model is
    quantized already; UnsupportedModelError if its family is unknown.
    """
    check_export_format(format, quantization)
    check_runtime(format)
    if quantization is not None:
        missing = [package for package in QUANTIZER_PACKAGES.get(format, ()) if find_spec(package) is None]
        if missing:
            raise UserError(
                f"quantization={quantization!r} of {format} needs {', '.join(missing)}, which is not installed: pip "
                f"install 'hf_efficient[{format}]'"
            )
    if is_quantized(model):
        raise UserError("the model is quantized already: export the float model, which the runtime quantizes itself")
    _stock_config(model)


def _check_export_dir(directory: str | os.PathLike[str]) -> Path:
    """Return the folder to write. Raise UserError if it holds other files than an export."""
    folder = Path(directory).resolve()
    manifest = folder / transformers.exporters.base.EXPORT_MANIFEST_FILE
    if folder.is_dir() and any(folder.iterdir()) and not manifest.exists():
        raise UserError(f"{str(directory)!r} holds other files than an export: give a folder of its own, such as onnx")
    return folder


def _exporter_config(format: str, model: PreTrainedModel, quantization: str | None, batches: list[Any] | None) -> Any:
    """Return the config of Transformers' exporter to `format`."""
    quantizer: Any = None
    if format == "onnx":
        dynamic = transformers.exporters.OnnxRuntimeDynamicConfig(
            per_channel=True, reduce_range=needs_reduced_range(model.device)
        )
        quantizer = transformers.exporters.OnnxRuntimeQuantizer(dynamic) if quantization else None
        return transformers.exporters.OnnxConfig(dynamic=True, quantizer=quantizer)
    if quantization == "int8":
        static = transformers.exporters.NNCFQuantizationConfig(subset_size=len(batches or ()))
        quantizer = transformers.exporters.NNCFOpenVINOQuantizer(static, calibration_dataset=batches)
    elif quantization:
        quantizer = transformers.exporters.NNCFOpenVINOQuantizer(transformers.exporters.NNCFWeightCompressionConfig())
    # A cache inside the model would be shared by all calls that generate at the same time.
    return transformers.exporters.OpenVINOConfig(dynamic=True, quantizer=quantizer, stateful=False)


def _stock_config(model: PreTrainedModel) -> Any:
    """Return the config of the stock class, which loads without this package."""
    family = family_of(model)
    config = family.config_class(**stock_fields(model.config))
    config.architectures = [class_for(model, config).__name__]
    return config


def _max_relative_difference(model: PreTrainedModel, loaded: nn.Module) -> float:
    """Return the largest absolute difference of the outputs, relative to the largest of torch's outputs."""
    inputs = sample_export_inputs(model, 3, 11)
    with torch.no_grad():
        expected, exported = _output_tensors(model, inputs), _output_tensors(loaded, inputs)
    pairs = [
        (exported[name].float().cpu(), value.float().cpu()) for name, value in expected.items() if name in exported
    ]
    largest = max((float(value.abs().max()) for _, value in pairs), default=0.0)
    if not largest:
        return math.nan
    return max(float((output - value).abs().max()) for output, value in pairs) / largest


def _output_tensors(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the outputs of `model`: of one that generates text, the logits of a prefill and several decode steps."""
    if not generates_text(model):
        return {n: v for n, v in model(**inputs).items() if torch.is_tensor(v) and v.is_floating_point()}
    ids = inputs["decoder_input_ids"]
    encoder_inputs = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
    # Several steps, since a cache that the runtime overwrites is still right after one.
    steps = [model(**encoder_inputs, decoder_input_ids=ids[:, :-1], use_cache=True)]
    for _ in range(CHECKED_DECODE_STEPS):
        cache = steps[-1].past_key_values
        steps.append(model(**encoder_inputs, decoder_input_ids=ids[:, -1:], past_key_values=cache))
    return {f"logits {number}": outputs.logits for number, outputs in enumerate(steps)}
