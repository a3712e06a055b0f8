"""Models for other runtimes: ONNX Runtime and OpenVINO, in float or in 8 bits, checked against torch."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, exporters

from hf_efficient.measurement.comparison import model_inputs
from hf_efficient.measurement.cost import folder_bytes
from hf_efficient.measurement.runtimes import PACKAGES, TITLES, check_runtime, quiet
from hf_efficient.models import family_of, is_quantized
from hf_efficient.models.structure import stock_fields
from hf_efficient.quantization.int8 import reduces_range

FORMATS = tuple(PACKAGES)
QUANTIZATIONS = {"onnx": ("int8",), "openvino": ("int8", "int8_weight_only")}
MOST_DIFFERENCE = 1e-3
CHOICES = 4
CALIBRATION_SAMPLES = 300  # what NNCF takes by default


@dataclass(frozen=True)
class ExportConfig:
    """For which runtimes a model is written besides, and in which form.

    Raises ValueError: a runtime or a form is unknown, or no runtime knows the form.
    """

    export: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Also write the model for these runtimes, in folders of their names: {', '.join(FORMATS)}.",
            "nargs": "+",
        },
    )
    export_quantization: str = field(
        default="int8",
        metadata={"help": "Form of the exports: int8; int8_weight_only (OpenVINO alone); none: float32."},
    )

    def __post_init__(self) -> None:
        for format in self.formats:
            check_form(format, self.form)

    @property
    def formats(self) -> tuple[str, ...]:
        """The runtimes, each once."""
        return tuple(dict.fromkeys(self.export or ()))

    @property
    def form(self) -> str | None:
        """The quantization that `export` is given."""
        return None if self.export_quantization == "none" else self.export_quantization

    def needs_calibration(self, format: str) -> bool:
        """Whether the export to `format` finds the ranges of activations on data."""
        return needs_calibration(format, self.form)


@dataclass(frozen=True)
class Exported:
    """An exported model in a folder; `difference` is the largest from torch, as a share of torch's largest answer."""

    format: str
    quantization: str | None
    folder: str
    difference: float

    def describe(self) -> str:
        """Returns what was done, for a report."""
        form = form_name(self.quantization)
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
    if needs_calibration(format, quantization) and calibration is None:
        raise ValueError(
            "OpenVINO's int8 fixes the ranges of activations in advance: give `calibration`, batches of your data, or "
            "quantization='int8_weight_only'"
        )
    model = model.eval()
    inputs = _inputs(model, 2, 16)
    folder = Path(directory)
    beside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    with quiet():
        exporter, config = _exporter(format, model, quantization, calibration, list(inputs))
        exported = exporter.export(model, dict(inputs), config)
        exported.config = _stock_config(model)
        exported.save_pretrained(beside)
        # Left to itself OpenVINO computes in bfloat16 where it can, which would hide what the export did.
        exact: dict[str, Any] = {"config": {"INFERENCE_PRECISION_HINT": "f32"}} if format == "openvino" else {}
        loaded = exporters.ExportedModel.from_pretrained(beside, **exact)
    found = Exported(format, quantization, str(folder), _difference(model, loaded))
    if quantization is None and not found.difference <= MOST_DIFFERENCE:
        raise RuntimeError(
            f"the {format} form in {beside} differs from torch by {found.difference:.1e} of its largest answer: do "
            "not use it, and report the versions of torch, transformers and the runtime"
        )
    if folder.exists():
        shutil.rmtree(folder)
    beside.replace(folder)
    return found


def check_export(model: PreTrainedModel, format: str, quantization: str | None) -> None:
    """Refuses what cannot work before any of the work is done; see `export`."""
    check_form(format, quantization)
    check_runtime(format)
    if is_quantized(model):
        raise ValueError("the model is quantized already: export its float form, which the runtime quantizes itself")
    if model.can_generate():
        raise ValueError(f"{type(model).__name__} writes text, which is not exported: give a model with another head")


def check_form(format: str, quantization: str | None) -> None:
    """Raises ValueError: there is no such format, or not in that form."""
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown: give one of {', '.join(FORMATS)}")
    if quantization is not None and quantization not in QUANTIZATIONS[format]:
        raise ValueError(
            f"quantization={quantization!r} is unknown for {format}: give one of {', '.join(QUANTIZATIONS[format])}, "
            "or none for float32"
        )


def needs_calibration(format: str, quantization: str | None) -> bool:
    """Whether that form finds the ranges of activations on data, before it is run."""
    return (format, quantization) == ("openvino", "int8")


def form_name(quantization: str | None) -> str:
    """Returns what to call a quantization in a table."""
    return (quantization or "float32").replace("_", " ")


class ExportedModule(nn.Module):
    """An exported model in the place of a module, for whoever evaluates or times modules; it has no parameters.

    It runs on as many threads as torch has now, and otherwise as `ExportedModel.from_pretrained` loads it.
    """

    def __init__(self, directory: str | os.PathLike[str], format: str, quantization: str | None) -> None:
        super().__init__()
        with quiet():
            self.exported = exporters.ExportedModel.from_pretrained(directory, **_threads(format))
        self.config = self.exported.config
        self.bytes_on_disk = folder_bytes(Path(directory))
        self.runtime = f"{TITLES.get(format, format)} {form_name(quantization)}"
        self.title = f"{format} {form_name(quantization)}"

    def forward(self, **inputs: torch.Tensor) -> Any:
        """Returns what the model that was exported answers; where labels are given, with a loss that is no number.

        A loss is not exported, and `Trainer` evaluates no model without one.
        """
        labelled = any(name == "labels" or name.endswith("_positions") for name in inputs)
        outputs = self.exported(**_complete(inputs, self._names))
        if labelled:
            outputs["loss"] = torch.tensor(math.nan)
        return outputs

    @property
    def _names(self) -> Any:
        return next(iter(self.exported.components.values())).metadata.kwargs


def _threads(format: str) -> dict[str, Any]:
    if format == "openvino":
        return {"config": {"INFERENCE_NUM_THREADS": torch.get_num_threads()}}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return {"session_options": options}


def _inputs(model: PreTrainedModel, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """Returns what a tokenizer gives the model, (batch, tokens): types of tokens too where it knows several.

    Where one of several texts is chosen, they are (batch, choices, tokens).
    """
    inputs = model_inputs(model, batch_size, length)
    inputs["attention_mask"][-1, length // 2 :] = 0
    if (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if type(model).__name__.endswith("ForMultipleChoice"):
        return {name: value.unsqueeze(1).repeat(1, CHOICES, 1) for name, value in inputs.items()}
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
    found: list[Any] = []
    samples = 0
    for batch in batches:
        if samples >= CALIBRATION_SAMPLES:
            break
        samples += len(batch["input_ids"])
        found.append({name: value.to(model.device) for name, value in _complete(batch, names).items()})
    if not found:
        raise ValueError("the calibration data is empty: at least one batch is needed")
    return found


def _complete(batch: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Returns just the inputs `names`, as the model would take those that are not there: no padding, one segment."""
    absent = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}
    return {name: batch[name] if name in batch else absent[name](batch["input_ids"]) for name in names}


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
