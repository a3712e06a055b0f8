"""What a folder gives to the Hub: the files that may leave it, and those made of them for readers in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import transformers
import yaml
from huggingface_hub import ModelCardData, metadata_load
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import logging

from hf_efficient.distillation.distiller import PROJECTIONS_NAME
from hf_efficient.errors import UserError
from hf_efficient.pruning.callbacks import GATES_NAME

logger = logging.get_logger(__name__)

RepoFiles = dict[str, "Path | bytes"]

# Pickles, what only resuming needs, and what names this machine; `_*` and hidden ones stay too.
EXCLUDED_PATTERNS = (
    "checkpoint-*",
    "*.partial",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.pkl",
    "*.pickle",
    "trainer_state.json",
    GATES_NAME,
    PROJECTIONS_NAME,
    "events.out.tfevents.*",
)
TOKENIZER_PATTERNS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
PIPELINE_TAGS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForConditionalGeneration": "text2text-generation",
    "ForMultipleChoice": "multiple-choice",
}
# How a card says, behind the name that it loads, what that name is: a push puts the repository there.
REPOSITORY_NAME_COMMENT = "  # this repository, or a folder with its files"


def collect_files(folder: Path) -> RepoFiles:
    """Return the files that are pushed, by their paths in the repository.

    Raises ValueError: what others need to load the model is missing.
    """
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is not a folder: give one that `hf-efficient compress` wrote")
    contents: RepoFiles = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _is_allowed(path.relative_to(folder), path)
    }
    _check_loadable(folder, contents)
    return contents


def _is_allowed(path: Path, file: Path) -> bool:
    weights_of_openvino = path.suffix == ".bin" and file.with_suffix(".xml").exists()
    barred = [
        part
        for part in path.parts
        if part.startswith(("_", ".")) or any(fnmatch(part, no) for no in EXCLUDED_PATTERNS)
    ]
    return not barred or (weights_of_openvino and barred == [path.name])


def _check_loadable(folder: Path, contents: RepoFiles) -> None:
    """Raises ValueError: `from_pretrained` would miss a file."""
    if "config.json" not in contents:
        raise UserError(f"{str(folder)!r} has no config.json: give a folder that save_pretrained wrote a model into")
    index = read_json(contents.get("model.safetensors.index.json"))
    weights = set(index.get("weight_map", {}).values()) or {"model.safetensors"}
    if lost := sorted(weights - contents.keys()):
        raise UserError(
            f"{str(folder)!r} lacks {', '.join(lost)}, the weights: save the model again by save_pretrained, which "
            "writes safetensors (pickles such as pytorch_model.bin are never pushed)"
        )
    needed = {
        file
        for name in ("config.json", "tokenizer_config.json")
        for file in _remote_code_files(read_json(contents.get(name)))
    }
    checked: set[str] = set()
    while needed - checked:
        file = (needed - checked).pop()
        if file not in contents:
            raise UserError(
                f"{str(folder)!r} lacks {file}, code that its config.json needs: nobody else could load the model; "
                "save it again by save_pretrained"
            )
        checked.add(file)
        needed |= {f"{name.replace('.', '/')}.py" for name in get_relative_imports(str(contents[file]))}


def _remote_code_files(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files of code that `config` names, but for those of other repositories."""
    for value in config.get("auto_map", {}).values():
        for name in value if isinstance(value, list) else [value]:
            if name and "--" not in name:
                yield f"{name.rpartition('.')[0].replace('.', '/')}.py"


def read_json(content: Path | bytes | None) -> dict[str, Any]:
    if content is None:
        return {}
    read = json.loads(content if isinstance(content, bytes) else content.read_text(encoding="utf-8"))
    return read if isinstance(read, dict) else {}


def file_size_bytes(content: Path | bytes) -> int:
    """Return how much is pushed."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def find_stale_files(held: set[str], contents: RepoFiles) -> list[str]:
    """Return the paths in a repository that an earlier push left: weights and exports that are there no more."""
    manifest = transformers.exporters.base.EXPORT_MANIFEST_FILE
    exports = [path.removesuffix(manifest) for path in held if path.endswith(f"/{manifest}")]
    return sorted(
        path
        for path in held - contents.keys()
        if path.startswith(tuple(exports)) or fnmatch(path, "model*.safetensors*")
    )


def minimal_card(contents: RepoFiles, text: str) -> str:
    """Return a card that says `text` of the model in `contents`, where nothing was measured."""
    data = ModelCardData(library_name="transformers", tags=["hf_efficient"], pipeline_tag=pipeline_tag(contents))
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n"


def card_metadata(contents: RepoFiles) -> dict[str, Any]:
    """Return the metadata of the folder's card. Raises ValueError: they are no YAML."""
    card = contents.get("README.md")
    try:
        return (metadata_load(card) if isinstance(card, Path) else None) or {}
    except yaml.YAMLError as error:
        raise UserError(f"README.md begins with metadata that is no YAML, mend it: {error}") from error


def pipeline_tag(contents: RepoFiles) -> str | None:
    """Return the task that the card tells, or the class."""
    named = str((read_json(contents["config.json"]).get("architectures") or [""])[0])
    return card_metadata(contents).get("pipeline_tag") or next(
        (pipeline for head, pipeline in PIPELINE_TAGS.items() if named.endswith(head)), None
    )
