"""Export to ONNX Runtime and OpenVINO, in float32 or int8, with a check against torch."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.data.label_names import complete_label_names
from hf_efficient.errors import UserError
from hf_efficient.exporters.checks import batch_difference, max_relative_difference, padded_batch, relative_speed
from hf_efficient.exporters.config import check_export_format, needs_calibration, uses_calibration
from hf_efficient.exporters.inputs import (
    calibration_inputs,
    complete_batch,
    component_inputs,
    generates_text,
    sample_export_inputs,
    take_calibration_batches,
)
from hf_efficient.exporters.runtime_models import load_exported, quantization_title
from hf_efficient.exporters.signal_stack import ordinary_signal_stack
from hf_efficient.field_checks import check_argument
from hf_efficient.files.replacing import replacing
from hf_efficient.measurement.runtimes import check_runtime, suppress_output
from hf_efficient.models import class_for, family_of, is_quantized
from hf_efficient.models.family import stock_fields
from hf_efficient.models.inputs import common_sizes
from hf_efficient.models.sentence_modules import embed_in_forward
from hf_efficient.registry import Registry

logger = logging.get_logger(__name__)
EXPORTERS = {"onnx": "OnnxExporter", "openvino": "OpenVINOExporter"}
# What changes the converted graph, by the quantization.
ONNX_QUANTIZERS: Registry[Any] = Registry(
    {
        "none": "hf_efficient.exporters.onnx_int8:OnnxFloatRewriter",
        "int8": "hf_efficient.exporters.onnx_int8:OnnxInt8Quantizer",
    }
)
# What quantization needs besides the packages of the runtime.
QUANTIZER_PACKAGES = {"openvino": ("nncf",)}
MAX_RELATIVE_DIFFERENCE = 1e-3
# A few activations that are rounded differently change outputs by less; one range for a whole batch by more.
MAX_BATCH_DIFFERENCE = 1e-2


@dataclass(frozen=True)
class ExportResult:
    """An exported model in a folder.

    | attribute | meaning |
    | --- | --- |
    | difference | largest absolute difference from torch's outputs, relative to the largest of them |
    | batch_difference | the same of a text alone and in a padded batch, both in the exported model |
    | speed | how many times as fast as the float model in torch on this machine; None: float32, or not on a CPU |
    """

    format: str
    quantization: str | None
    folder: str
    difference: float
    batch_difference: float
    speed: float | None = None

    def describe(self) -> str:
        """Return one line on the export, for a report."""
        title = quantization_title(self.quantization)
        text = f"exported to {self.format} ({title}); outputs differ from torch by at most {self.difference:.2%}"
        if self.batch_difference > MAX_BATCH_DIFFERENCE:
            text += f", and between a text alone and in a batch by up to {self.batch_difference:.2%}"
        return text


@ordinary_signal_stack()
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
    | calibration | batches of training data, (batch, tokens); int8 computes activation ranges from them |

    Without `calibration`, ONNX Runtime's int8 computes a scale for each token at run time, which is slower; OpenVINO's
    int8 needs it. The export runs with any batch size and length. Pruned models need no code of this package there:
    the folder has the config of the stock class. The export is loaded again and compared with torch; there is a
    warning if it is quantized and slower than the float model on this machine.

    A sentence embedder has the outputs `last_hidden_state` and `sentence_embedding`: pooling, dense layers and
    normalization are in the graph. A model that generates text is exported as three graphs;
    `hf_efficient.load_exported` loads all three and returns a model with `generate`.

    The folder is created, or replaced if it holds an earlier export. `model` is not changed.

    Raises UserError if the format or quantization is unknown or its packages are not installed, calibration batches
    are missing, the model is quantized already, or the folder holds other files; UnsupportedModelError if the family
    of the model is unknown; RuntimeError if outputs in float32 differ from torch's.
    """
    check_argument("model", model, PreTrainedModel, "a model of Transformers, as from_pretrained returns it")
    check_argument("directory", directory, (str, os.PathLike), "a path")
    check_export(model, format, quantization)
    folder = _check_export_dir(directory)
    if needs_calibration(format, quantization) and calibration is None:
        raise UserError(
            "OpenVINO's int8 computes activation ranges from data: give `calibration`, batches of your data, or "
            "quantization='int8_weight_only'"
        )
    # Runtimes lack kernels for half precision, and the user's model may be training.
    model = copy.deepcopy(model).float().eval()
    embed_in_forward(model)
    complete_label_names(model.config)
    samples = component_inputs(model, sample_export_inputs(model, 2, 16))
    batches, by_component = [], {}
    with replacing(folder) as temporary_dir, suppress_output():
        if calibration is not None and uses_calibration(format, quantization):
            batches = [complete_batch(model, batch) for batch in take_calibration_batches(calibration)]
            by_component = calibration_inputs(model, batches, list(samples))
        exporter = getattr(transformers.exporters, EXPORTERS[format])()
        components = {
            name: exporter.export(
                component, dict(inputs), _exporter_config(format, model, quantization, by_component.get(name))
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
        _add_common_sizes(temporary_dir, exported_model.config)
        loaded = load_exported(temporary_dir, full_precision=True)
        difference = max_relative_difference(model, loaded)
        if quantization is None and not difference <= MAX_RELATIVE_DIFFERENCE:  # NaN is refused too
            raise RuntimeError(
                f"the {format} export for {folder} differs from torch by {difference:.2%} of the largest output and "
                "is not kept: report the versions of torch, transformers and the runtime"
            )
    in_batch = batch_difference(loaded, batches[0] if batches else padded_batch(model))
    is_timed = quantization is not None and model.device.type == "cpu"
    speed = relative_speed(model, load_exported(folder)) if is_timed else None
    result = ExportResult(format, quantization, str(folder), difference, in_batch, speed)
    warn_if_slow(result)
    return result


def warn_if_slow(result: ExportResult) -> None:
    """Log a warning if the export is slower than the float model on this machine."""
    if result.speed is not None and result.speed < 1:
        logger.warning(
            f"the {result.format} export ({quantization_title(result.quantization)}) is smaller, but slower on this "
            f"machine: it takes {1 / result.speed:.2f} times as long as the float model in torch"
        )


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
        quantizer = ONNX_QUANTIZERS[quantization or "none"](batches)
        return transformers.exporters.OnnxConfig(dynamic=True, quantizer=quantizer)
    if quantization == "int8":
        static = transformers.exporters.NNCFQuantizationConfig(subset_size=len(batches or ()))
        quantizer = transformers.exporters.NNCFOpenVINOQuantizer(static, calibration_dataset=batches)
    elif quantization:
        quantizer = transformers.exporters.NNCFOpenVINOQuantizer(transformers.exporters.NNCFWeightCompressionConfig())
    # A cache inside the model would be shared by all calls that generate at the same time.
    return transformers.exporters.OpenVINOConfig(dynamic=True, quantizer=quantizer, stateful=False)


def _add_common_sizes(folder: Path, config: Any) -> None:
    """Write the sizes in `config.json` under the names that servers read too, which some architectures do not use."""
    path = folder / "config.json"
    path.write_text(
        json.dumps({**common_sizes(config), **json.loads(path.read_text("utf-8"))}, indent=2) + "\n", "utf-8"
    )


def _stock_config(model: PreTrainedModel) -> Any:
    """Return the config of the stock class, which loads without this package."""
    family = family_of(model)
    config = family.config_class(**stock_fields(model.config))
    config.architectures = [class_for(model, config).__name__]
    return config
