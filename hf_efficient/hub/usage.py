"""Python code that loads a form of a compressed model, for the card and the screen."""

from __future__ import annotations

import os
from pathlib import Path

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from hf_efficient.measurement.report import STUDENT_FOLDER, CompressionReport
from hf_efficient.models import FAMILIES
from hf_efficient.models.inputs import score_activation, task_head_of
from hf_efficient.models.sentence_files import MODULES_FILE

# The name of each export's runtime, and the packages that it needs besides transformers and torch.
EXPORT_RUNTIMES = {"onnx": ("ONNX Runtime", "onnx onnxruntime"), "openvino": ("OpenVINO", "openvino")}
HALF_TYPES = ("bfloat16", "float16")


def quoted(text: str) -> str:
    """Return `text` as a Python string in double quotes on one line: a name with a quote in it is no code."""
    body = repr(f'{text}"')[1:-2].replace('"', '\\"')  # repr escapes what cannot be printed
    return f'"{body}"'


def read_config(folder: str | os.PathLike[str]) -> PreTrainedConfig:
    """Return the config of the model in `folder`. Code there is not run: a class of its own gives a plain config."""
    values, _ = PreTrainedConfig.get_config_dict(folder)
    if values.get("model_type") in CONFIG_MAPPING:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return PreTrainedConfig.from_dict(values)


def is_pruned(config: PreTrainedConfig) -> bool:
    """Whether a model with this config has classes of this package, which are in its repository too."""
    return any(isinstance(config, family.pruned_config_class) for family in FAMILIES.values())


def needs_remote_code(config: PreTrainedConfig) -> bool:
    """Whether a model with this config needs code in its repository."""
    return is_pruned(config) or bool(getattr(config, "auto_map", None))


def generates_text(config: PreTrainedConfig) -> bool:
    """Whether the model with this config generates text."""
    return task_head_of((config.architectures or [""])[0]) == "ConditionalGeneration"


def auto_class_name(config: PreTrainedConfig) -> str:
    """Return the name of the Auto class that loads the model with this config, one that Transformers has."""
    names = {
        cls.__name__: str(pruned._auto_class)
        for family in FAMILIES.values()
        for stock, pruned in family.pruned_classes.items()
        for cls in (stock, pruned)
    }
    architecture = (config.architectures or [""])[0]
    head = task_head_of(architecture)
    auto_map = getattr(config, "auto_map", None) or {}
    names |= {str(path).rpartition(".")[2]: auto for auto, path in auto_map.items() if auto.startswith("AutoModel")}
    name = names.get(architecture, f"AutoModelFor{head}")
    return name if architecture and hasattr(transformers, name) else "AutoModel"


def sentence_class(config: PreTrainedConfig, folder: Path) -> str | None:
    """Return the class of sentence-transformers that loads the model in `folder`; None if it is another model."""
    if score_activation(config) is not None:
        return "CrossEncoder"
    return "SentenceTransformer" if (folder / MODULES_FILE).is_file() else None


def loading_code(report: CompressionReport, folder: Path, name: str | None = None) -> list[str]:
    """Return the lines, at most three, that load the recommended form of the model in `folder`.

    `name` is what the code calls that folder. Nothing if no form is recommended, or if it is the model that the one in
    the folder was made from, which is elsewhere.
    """
    role, name = report.recommended, str(folder) if name is None else name
    if role is None or (role == "teacher" and report.final.role != "teacher"):
        return []
    loader = sentence_class(read_config(folder), folder)
    if role in EXPORT_RUNTIMES:
        if loader is not None:
            model = f"{loader}({quoted(f'{name}/{role}')}, trust_remote_code=True)"
            return [f"from sentence_transformers import {loader}", f"model = {model}"]
        if generates_text(read_config(folder)):
            return ["from hf_efficient import load_exported", f"model = load_exported({quoted(f'{name}/{role}')})"]
        return [
            "from transformers.exporters import ExportedModel",
            f'model = ExportedModel.from_pretrained({quoted(name)}, subfolder="{role}")',
        ]
    is_float = role not in ("quantized", "compiled")
    if is_float and (folder / STUDENT_FOLDER).is_dir() and report.final.role == "quantized":
        folder, name = folder / STUDENT_FOLDER, f"{name}/{STUDENT_FOLDER}"
    config = read_config(folder)
    if loader is not None and role != "compiled":
        return _sentence_code(loader, config, name, role)
    auto = auto_class_name(config)
    options = ", trust_remote_code=True" if needs_remote_code(config) else ""
    imports = ["import torch"] if role in ("compiled", *HALF_TYPES) else []
    options += f", dtype=torch.{role}" if role in HALF_TYPES else ""
    model = f"{auto}.from_pretrained({quoted(name)}{options})"
    if role == "compiled":
        model = f"torch.compile({model}, dynamic=True)  # the first call compiles"
    return [*imports, f"from transformers import {auto}", f"model = {model}"]


def _sentence_code(loader: str, config: PreTrainedConfig, name: str, role: str) -> list[str]:
    """Return the code that loads an embedder or reranker by a class of sentence-transformers."""
    options = ", trust_remote_code=True" if needs_remote_code(config) else ""
    options += f', model_kwargs={{"dtype": "{role}"}}' if role in HALF_TYPES else ""
    return [f"from sentence_transformers import {loader}", f"model = {loader}({quoted(name)}{options})"]
