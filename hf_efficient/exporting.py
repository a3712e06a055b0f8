"""Models for other runtimes: ONNX Runtime and OpenVINO, in float or in 8 bits, checked against torch."""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.exported import DECODE, ENCODER, PREFILL, complete, empty_cache, form_name, load_exported, shifted
from hf_efficient.measurement.comparison import model_inputs
from hf_efficient.measurement.runtimes import PACKAGES, check_runtime, quiet
from hf_efficient.models import family_of, is_quantized
from hf_efficient.models.structure import stock_fields
from hf_efficient.quantization.int8 import reduces_range

FORMATS = tuple(PACKAGES)
EXPORTERS = {"onnx": "OnnxExporter", "openvino": "OpenVINOExporter"}
QUANTIZATIONS = {"onnx": ("int8",), "openvino": ("int8", "int8_weight_only")}
MOST_DIFFERENCE = 1e-3
CHOICES = 4
STEPS = 6
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
        if isinstance(self.export, str):
            raise ValueError(f"export={self.export!r} must be a list: give [{self.export!r}]")
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

    A model that writes text becomes three graphs, which `hf_efficient.load_exported` puts together again to generate.

    The folder is made, or replaced where it holds an earlier export. The model stays as it is.

    Raises ValueError: the format or its quantization is unknown or not installed, calibration data is missing, the
    model is quantized already, or the folder holds something else. Raises TypeError: its family is unknown. Raises
    RuntimeError: in float32 it answers otherwise than torch.
    """
    check_export(model, format, quantization)
    folder = _own_folder(directory)
    if needs_calibration(format, quantization) and calibration is None:
        raise ValueError(
            "OpenVINO's int8 fixes the ranges of activations in advance: give `calibration`, batches of your data, or "
            "quantization='int8_weight_only'"
        )
    # Runtimes lack kernels for half precision, and the user's model may be training.
    model = copy.deepcopy(model).float().eval()
    beside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    samples = _calls(model, _inputs(model, 2, 16))
    with quiet():
        data = _calibration(model, calibration, list(samples)) if calibration is not None else {}
        exporter = getattr(transformers.exporters, EXPORTERS[format])()
        components = {
            name: exporter.export(part, dict(inputs), _config(format, model, quantization, data.get(name)))
            for name, (part, inputs) in samples.items()
        }
        exported = transformers.exporters.ExportedModel(
            {name: each.components["model"] for name, each in components.items()},
            next(iter(components.values())).export_format,
            config=_stock_config(model),
            generation_config=model.generation_config if _writes(model) else None,
        )
        exported.save_pretrained(beside)
        differs = _difference(model, load_exported(beside, exact=True))
    found = Exported(format, quantization, str(folder), differs)
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
    _stock_config(model)


def _own_folder(directory: str | os.PathLike[str]) -> Path:
    """Returns the folder to write. Raises ValueError: it holds what no export of ours left there."""
    folder = Path(directory).resolve()
    manifest = folder / transformers.exporters.base.EXPORT_MANIFEST_FILE
    if folder.is_dir() and any(folder.iterdir()) and not manifest.exists():
        raise ValueError(
            f"{str(directory)!r} holds other files than an export: name a folder of its own, such as onnx"
        )
    return folder


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


def _inputs(model: PreTrainedModel, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """Returns what a tokenizer gives the model, (batch, tokens): types of tokens too where it knows several.

    Where one of several texts is chosen, they are (batch, choices, tokens).
    """
    inputs = model_inputs(model, batch_size, length)
    inputs["attention_mask"][-1, ..., length // 2 :] = 0
    if (getattr(model.config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if "For" in type(model).__name__ and not _writes(model):
        inputs.pop("decoder_input_ids", None)  # these heads make what the decoder reads by themselves
    if type(model).__name__.endswith("ForMultipleChoice"):
        return {name: value.repeat(1, CHOICES, 1) for name, value in inputs.items()}
    return inputs


def _calls(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    """Returns the parts that `model` is exported as, by name, and what each is called with to answer `batch`."""
    if not _writes(model):
        return {"model": (model, dict(batch))}
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ids = batch["decoder_input_ids"]
    with torch.no_grad():
        read = {"attention_mask": batch["attention_mask"], "encoder_outputs": model.get_encoder()(**texts)}
        past = model(**read, decoder_input_ids=ids[:, :-1], past_key_values=empty_cache(), use_cache=True)
    goes_on = {"decoder_input_ids": ids[:, -1:], "past_key_values": past.past_key_values}
    begins = {"decoder_input_ids": ids[:, :-1], "past_key_values": empty_cache()}
    return {
        ENCODER: (model.get_encoder(), texts),
        PREFILL: (model, {**read, **begins, "use_cache": True}),
        DECODE: (model, {**read, **goes_on, "use_cache": True}),
    }


def _writes(model: Any) -> bool:
    return bool(getattr(model, "can_generate", bool)())


def _config(format: str, model: PreTrainedModel, quantization: str | None, data: list[Any] | None) -> Any:
    """Returns the config of an exporter of Transformers."""
    quantizer: Any = None
    if format == "onnx":
        dynamic = transformers.exporters.OnnxRuntimeDynamicConfig(
            per_channel=True, reduce_range=reduces_range(model.device)
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


def enough(batches: Iterable[Mapping[str, torch.Tensor]]) -> list[Mapping[str, torch.Tensor]]:
    """Returns the first batches, as many as calibration looks at."""
    found: list[Mapping[str, torch.Tensor]] = []
    for batch in batches:
        found.append(batch)
        if sum(len(each["input_ids"]) for each in found) >= CALIBRATION_SAMPLES:
            break
    return found


def _calibration(
    model: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]], parts: list[str]
) -> dict[str, list[Any]]:
    """Returns, for each of `parts`, what it is called with for a few batches. Raises ValueError: there is none."""
    found: dict[str, list[Any]] = {name: [] for name in parts}
    names = list(_inputs(model, 1, 2))
    for batch in enough(batches):
        known = dict(batch)
        if _writes(model) and "decoder_input_ids" not in known:
            if "labels" not in known:
                raise ValueError(
                    f"calibration needs labels, what is to be written; the batches have {', '.join(batch)}"
                )
            known["decoder_input_ids"] = shifted(known["labels"], model.config)
        known = {name: value.to(model.device) for name, value in complete(known, names).items()}
        for name, (_, inputs) in _calls(model, known).items():
            found[name].append(inputs)
    if not any(found.values()):
        raise ValueError("the calibration data is empty: at least one batch is needed")
    return found


def _stock_config(model: PreTrainedModel) -> Any:
    """Returns the config of the stock class, which any reader of the folder knows."""
    family = family_of(model)
    config = family.config_class(**stock_fields(model.config))
    config.architectures = [family.class_for(type(model), config).__name__]
    return config


def _difference(model: PreTrainedModel, loaded: nn.Module) -> float:
    """Returns the largest difference of the answers, as a share of the largest answer."""
    inputs = _inputs(model, 3, 11)
    with torch.no_grad():
        expected, found = _answers(model, inputs), _answers(loaded, inputs)
    pairs = [(found[name].float().cpu(), value.float().cpu()) for name, value in expected.items() if name in found]
    largest = max((float(value.abs().max()) for _, value in pairs), default=0.0)
    return max(float((other - value).abs().max()) for other, value in pairs) / largest if largest else math.nan


def _answers(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors that `model` answers; one that writes also goes on from its cache."""
    if not _writes(model):
        return {n: v for n, v in model(**inputs).items() if torch.is_tensor(v) and v.is_floating_point()}
    ids = inputs["decoder_input_ids"]
    texts = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
    begun = model(**texts, decoder_input_ids=ids[:, :-1], use_cache=True)
    # Once more what the cache holds at each step: too short a check hides a cache that is written over.
    further = [begun]
    for _ in range(STEPS):
        further.append(model(**texts, decoder_input_ids=ids[:, -1:], past_key_values=further[-1].past_key_values))
    return {f"logits {number}": outputs.logits for number, outputs in enumerate(further)}
