"""Models that are there already, side by side: `hf-efficient measure`."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_efficient.data import DataConfig, find_columns, label_numbers, load_splits, tokenize
from hf_efficient.exported import load_exported
from hf_efficient.exporting import CALIBRATION_SAMPLES, FORMATS, export, needs_calibration
from hf_efficient.measurement.comparison import compare, model_inputs
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.measurement.runtime import environment
from hf_efficient.measurement.runtimes import Inputs, check_runtime
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.int8 import compiled
from hf_efficient.quantizing import quantize
from hf_efficient.tasks import Task, infer_task


def measure_models(
    names: list[str],
    data: DataConfig,
    batch_size: int,
    sequence_length: int,
    trust_remote_code: bool = False,
    forms: Sequence[str] = (),
) -> CompressionReport:
    """Returns the report on models that are there already: the first is the one that the others are compared with.

    Each is measured as it is, or in each of `forms`, the names in `FORMS`. Metrics are measured when `data` names any.

    Raises ValueError: the models are for different tasks, a form is unknown, or calibration needs training data.
    """
    check_forms(forms, data)
    configs = [AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code) for name in names]
    tasks = [infer_task(config, labels_are_numbers=False) for config in configs]
    if len({task.name for task in tasks}) > 1:
        raise ValueError(f"the models are for different tasks: {', '.join(task.name for task in tasks)}")
    task = tasks[0]
    wanted: Sequence[str | None] = forms or [None]
    splits = _splits(data) if data.named else None
    models: dict[str, nn.Module] = {}
    metrics: dict[str, dict[str, float]] = {}
    titles: dict[str, str] = {}
    calls: dict[str, Call] = {}
    inputs: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for name, config in zip(names, configs, strict=True):
            title = Path(name).name if Path(name).exists() else name
            model = task.auto_class.from_pretrained(name, trust_remote_code=trust_remote_code).eval()
            inputs = inputs or model_inputs(model, batch_size, sequence_length)
            ready, tokenizer = None, None
            if splits is not None:
                tokenizer = AutoTokenizer.from_pretrained(name)
                ready = _tokenized(splits, config, tokenizer, task, data)
            calibration = _batches(ready["train"], tokenizer) if ready else None
            for form in wanted:
                role = f"student {len(models)}" if models else "teacher"
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                made = Formed(model) if form is None else FORMS[form](model, inputs, calibration, folder)
                if made is None:
                    continue
                models[role] = made.model
                titles[role] = title if form is None else f"{title} {form}" if len(names) > 1 else form
                if made.call is not None:
                    calls[role] = made.call
                if ready:
                    metrics[role] = evaluate_model(made.call or made.model, ready["evaluation"], tokenizer, task)
        rows = compare(models, inputs, metrics=metrics, metric=task.metric, names=titles, compiled=calls)
    return CompressionReport(
        task=task.pipeline,
        dataset=data.label if splits else None,
        metric=task.metric if splits else None,
        models=rows,
        environment=environment(),
    )


# ---- the forms of a model -------------------------------------------------------------------------------------------

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
        return Formed(load_exported(folder / format, quantization))

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


def check_forms(forms: Sequence[str], data: DataConfig) -> None:
    """Refuses forms that are unknown or cannot be made, before any is made."""
    for form in forms:
        if form not in FORMS:
            raise ValueError(f"form {form!r} is unknown: give one of {', '.join(FORMS)}")
        format, _, quantization = form.partition("_")
        if format in FORMATS:
            check_runtime(format)
            if needs_calibration(format, quantization) and not (data.train_file or data.dataset_name):
                raise ValueError(
                    f"{form} fixes the ranges of activations on data that nothing is judged on: give --train_file or "
                    "--dataset_name"
                )


def _splits(data: DataConfig) -> DatasetDict:
    """Returns the rows to measure on, and those to calibrate on."""
    file = data.test_file or data.validation_file or data.train_file
    if file:
        data = dataclasses.replace(data, train_file=data.train_file or file, validation_file=file)
    return load_splits(data, seed=0)


def _tokenized(
    splits: DatasetDict, config: Any, tokenizer: PreTrainedTokenizerBase, task: Task, data: DataConfig
) -> DatasetDict:
    columns = find_columns(splits, task, data)
    classifies = columns.label is not None and task.name != "regression"
    numbers = label_numbers(splits, str(columns.label), config) if classifies else None
    few = splits["train"].select(range(min(len(splits["train"]), CALIBRATION_SAMPLES)))
    both = DatasetDict(train=few, evaluation=splits["evaluation"])
    return tokenize(both, columns, numbers, tokenizer, data.max_length)


def _batches(data: Any, tokenizer: PreTrainedTokenizerBase | None, batch_size: int = 32) -> Any:
    return torch.utils.data.DataLoader(data, batch_size=batch_size, collate_fn=DataCollatorWithPadding(tokenizer))


def evaluate_model(
    model: Call, data: Any, tokenizer: PreTrainedTokenizerBase | None, task: Task, batch_size: int = 32
) -> dict[str, float]:
    """Returns the task's metrics of `model`, in its own precision, on tokenized `data`."""
    logits, labels = [], []
    with torch.inference_mode():
        for batch in _batches(data, tokenizer, batch_size):
            labels.append(batch.pop("labels"))
            logits.append(model(**batch).logits.float().cpu())
    return task.compute_metrics(EvalPrediction(torch.cat(logits).numpy(), torch.cat(labels).numpy()))
