"""Python code that loads a compressed model and runs it on an example, for its card."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedConfig

from hf_efficient.hub.files import REPOSITORY_NAME_COMMENT
from hf_efficient.hub.sentence_snippets import sentence_export_snippet, sentence_snippet
from hf_efficient.hub.usage import auto_class_name, generates_text, needs_remote_code, quoted, sentence_class
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.models.inputs import task_head_of


def required_packages(config: PreTrainedConfig, folder: Path) -> list[str]:
    """Return the packages that loading the model in `folder` needs."""
    libraries = ["sentence-transformers"] if sentence_class(config, folder) else []
    return [*libraries, "transformers", "torch", *(["torchao"] if uses_torchao(config) else [])]


def uses_torchao(config: PreTrainedConfig) -> bool:
    """Whether the weights of the model are tensors of torchao."""
    return getattr(config, "quantization_config", None) is not None


def example_text(config: PreTrainedConfig) -> str:
    """Return the text of the usage examples."""
    if generates_text(config):
        return "A text to translate or summarize."
    return "A text to classify." if "Classification" in (config.architectures or [""])[0] else "A text."


def usage_snippet(config: PreTrainedConfig, report: CompressionReport, folder: Path) -> str:
    """Return Python code that loads the model and, for common heads, runs it."""
    if sentence_class(config, folder) is not None:
        return sentence_snippet(config, folder)
    remote = ", trust_remote_code=True" if needs_remote_code(config) else ""
    auto, compiles = auto_class_name(config), report.recommended == "compiled"
    lines = ["import torch"] if compiles else []
    lines += [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f"name = {quoted(folder.resolve().name)}{REPOSITORY_NAME_COMMENT}",
        f"tokenizer = AutoTokenizer.from_pretrained(name{remote})",
        f"model = {auto}.from_pretrained(name{remote}).eval()",
    ]
    if compiles:
        lines += ["model = torch.compile(model, dynamic=True)  # the first call compiles"]
    if generates_text(config):
        lines += [
            f'inputs = tokenizer("{example_text(config)}", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))",
        ]
    if task_head_of((config.architectures or [""])[0]) == "SequenceClassification":
        lines += [
            f'inputs = tokenizer("{example_text(config)}", return_tensors="pt")',
            "print(model.config.id2label[model(**inputs).logits.argmax(-1).item()])",
        ]
    return "\n".join(lines)


def export_snippet(config: PreTrainedConfig, folder: Path, export_folder: str) -> str:
    """Return Python code that loads the export in `export_folder` and runs it, after that of `usage_snippet`."""
    if sentence_class(config, folder) is not None:
        return sentence_export_snippet(config, folder, export_folder)
    if generates_text(config):
        lines = [
            "from hf_efficient import load_exported",
            "",
            f'model = load_exported("{export_folder}")  # a local folder, with the encoder and two decoder graphs',
            f'ids = model.generate(**tokenizer("{example_text(config)}", return_tensors="pt"))',
            "print(tokenizer.decode(ids[0], skip_special_tokens=True))",
        ]
    else:
        lines = [
            "from transformers.exporters import ExportedModel",
            "",
            f'model = ExportedModel.from_pretrained(name, subfolder="{export_folder}")',
            f'print(model(**tokenizer("{example_text(config)}", return_tensors="pt")))',
        ]
    return "\n".join(lines)
