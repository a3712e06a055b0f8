"""Python code that loads a compressed model and runs it on an example, for its card."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedConfig

from hf_efficient.hub.files import REPOSITORY_NAME_COMMENT
from hf_efficient.hub.usage import auto_class_name, generates_text, is_embedder, needs_remote_code, quoted
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.models.inputs import score_activation, task_head_of


def library_of(config: PreTrainedConfig, folder: Path) -> str:
    """Return the library that the model in `folder` is loaded with."""
    return "sentence-transformers" if is_cross_encoder(config) or is_embedder(folder) else "transformers"


def required_packages(config: PreTrainedConfig, folder: Path) -> list[str]:
    """Return the packages that loading the model in `folder` needs."""
    libraries = dict.fromkeys((library_of(config, folder), "transformers", "torch"))
    return [*libraries, *(["torchao"] if uses_torchao(config) else [])]


def is_cross_encoder(config: PreTrainedConfig) -> bool:
    """Whether the model is a reranker of sentence-transformers, with one score."""
    return score_activation(config) is not None


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
    name = f"name = {quoted(folder.resolve().name)}{REPOSITORY_NAME_COMMENT}"
    remote = ", trust_remote_code=True" if needs_remote_code(config) else ""
    if is_cross_encoder(config):
        lines = [
            "from sentence_transformers import CrossEncoder",
            "",
            name,
            f"model = CrossEncoder(name{remote})",
            'print(model.predict([("a query", "a document"), ("a query", "another document")]))',
        ]
        return "\n".join(lines)
    if is_embedder(folder):
        lines = [
            "from sentence_transformers import SentenceTransformer",
            "",
            name,
            f"model = SentenceTransformer(name{remote})",
            'embeddings = model.encode(["A text.", "Another text."])',
            "print(model.similarity(embeddings, embeddings))",
        ]
        return "\n".join(lines)
    auto, compiles = auto_class_name(config), report.recommended == "compiled"
    lines = ["import torch"] if compiles else []
    lines += [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        name,
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
