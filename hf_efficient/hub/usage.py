"""Python code that loads a form of a compressed model, for the card and the screen."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from hf_efficient.measurement.report import STUDENT_FOLDER, CompressionReport
from hf_efficient.models import FAMILIES

# The name of each export's runtime, and the packages that it needs besides transformers and torch.
EXPORT_RUNTIMES = {"onnx": ("ONNX Runtime", "onnx onnxruntime"), "openvino": ("OpenVINO", "openvino")}
HALF_TYPES = ("bfloat16", "float16")


def quoted(text: str) -> str:
    """Return `text` as a Python string in double quotes: a name with a quote in it is no code."""
    return json.dumps(text, ensure_ascii=False)


def needs_remote_code(config: PreTrainedConfig) -> bool:
    """Whether a model with this config needs the code of this package, in its repository or imported."""
    return any(isinstance(config, family.pruned_config_class) for family in FAMILIES.values())


def generates_text(config: PreTrainedConfig) -> bool:
    """Whether the model with this config generates text."""
    return (config.architectures or [""])[0].endswith("ForConditionalGeneration")


def auto_class_name(config: PreTrainedConfig) -> str:
    """Return the name of the Auto class that loads the model with this config."""
    names = {
        cls.__name__: str(pruned._auto_class)
        for family in FAMILIES.values()
        for stock, pruned in family.pruned_classes.items()
        for cls in (stock, pruned)
    }
    architecture = (config.architectures or [""])[0]
    head = architecture.partition("For")[2]
    return names.get(architecture, f"AutoModelFor{head}" if head else "AutoModel")


def loading_code(report: CompressionReport, folder: Path, name: str | None = None) -> list[str]:
    """Return the lines, at most three, that load the recommended form of the model in `folder`.

    `name` is what the code calls that folder. Nothing if no form is recommended, or if it is the model that the one in
    the folder was made from, which is elsewhere.
    """
    role, name = report.recommended, str(folder) if name is None else name
    if role is None or (role == "teacher" and report.final.role != "teacher"):
        return []
    if role in EXPORT_RUNTIMES:
        if generates_text(AutoConfig.from_pretrained(folder)):
            return ["from hf_efficient import load_exported", f"model = load_exported({quoted(f'{name}/{role}')})"]
        return [
            "from transformers.exporters import ExportedModel",
            f'model = ExportedModel.from_pretrained({quoted(name)}, subfolder="{role}")',
        ]
    is_float = role not in ("quantized", "compiled")
    if is_float and (folder / STUDENT_FOLDER).is_dir() and report.final.role == "quantized":
        folder, name = folder / STUDENT_FOLDER, f"{name}/{STUDENT_FOLDER}"
    config = AutoConfig.from_pretrained(folder)
    auto = auto_class_name(config)
    options = ", trust_remote_code=True" if needs_remote_code(config) else ""
    imports = ["import torch"] if role in ("compiled", *HALF_TYPES) else []
    options += f", dtype=torch.{role}" if role in HALF_TYPES else ""
    model = f"{auto}.from_pretrained({quoted(name)}{options})"
    if role == "compiled":
        model = f"torch.compile({model}, dynamic=True)  # the first call compiles"
    return [*imports, f"from transformers import {auto}", f"model = {model}"]
