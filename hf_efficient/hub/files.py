"""Files of a folder that are pushed to the Hub."""

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
from hf_efficient.models.inputs import task_head_of
from hf_efficient.pruning.callbacks import GATES_NAME

logger = logging.get_logger(__name__)

RepoFiles = dict[str, "Path | bytes"]

# What a model repository holds. Anything else stays here: pickles, files of resuming, logs, credentials, notes.
ALLOWED_SUFFIXES = (
    *(".safetensors", ".onnx", ".onnx_data", ".data", ".xml"),
    *(".json", ".txt", ".jinja", ".model", ".vocab", ".spm", ".bpe", ".md", ".py", ".png"),
)
# `*` stands for anything; so are `_*`, hidden files and links.
EXCLUDED_PATTERNS = (
    "checkpoint-*",
    "*.partial*",
    "trainer_state.json",
    "*credential*",
    "*secret*",
    "*token.*",
    "*password*",
    "*private*",
    "*service*account*",
    "client_*.json",
    GATES_NAME,
    PROJECTIONS_NAME,
)
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.spm",
)
PIPELINE_TAGS = {
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "QuestionAnswering": "question-answering",
    "MaskedLM": "fill-mask",
    "ConditionalGeneration": "text2text-generation",
    "MultipleChoice": "multiple-choice",
}
# Follows the name that the card's snippet loads; a push replaces the name by that of the repository.
REPOSITORY_NAME_COMMENT = "  # this repository, or a folder with its files"


def collect_files(folder: Path) -> RepoFiles:
    """Return the files to push, by their paths in the repository.

    Raises UserError if a file that `from_pretrained` needs is missing, or the metadata of the card is not valid YAML.
    """
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is not a folder: give a folder that `hf-efficient compress` wrote")
    contents: RepoFiles = {}
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        if not file.is_file() or _is_own(path):
            continue
        if file.is_symlink() or not file.resolve().is_relative_to(folder.resolve()):
            logger.warning(f"{file} is not pushed: it is a link, or in a folder that is one")
        elif _is_allowed(path, file):
            contents[path.as_posix()] = file
        else:
            logger.info(f"{file} is not pushed: it is no file of a model")
    _check_loadable(folder, contents)
    card_metadata(contents)  # the Hub refuses a card whose metadata cannot be read
    return contents


def _is_own(path: Path) -> bool:
    """Whether the file at `path` within its folder is hidden or of a run, which never is pushed."""
    is_hidden = any(part.startswith(("_", ".")) for part in path.parts)
    return is_hidden or any(fnmatch(part.lower(), pattern) for part in path.parts for pattern in EXCLUDED_PATTERNS)


def _is_allowed(path: Path, file: Path) -> bool:
    """Whether `file`, at `path` within its folder, is a file of a model."""
    is_openvino_weights = path.suffix == ".bin" and file.with_suffix(".xml").exists()
    return path.name == "LICENSE" or path.suffix.lower() in ALLOWED_SUFFIXES or is_openvino_weights


def _check_loadable(folder: Path, contents: RepoFiles) -> None:
    """Raise UserError if a file that `from_pretrained` needs is missing."""
    if "config.json" not in contents:
        raise UserError(f"{str(folder)!r} has no config.json: give a folder in which save_pretrained saved a model")
    index = read_json(contents.get("model.safetensors.index.json"))
    weights = set(index.get("weight_map", {}).values()) or {"model.safetensors"}
    if missing := sorted(weights - contents.keys()):
        raise UserError(
            f"{str(folder)!r} lacks the weights {', '.join(missing)}: save the model again with save_pretrained, "
            "which writes safetensors (pickles such as pytorch_model.bin are not pushed)"
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
                f"{str(folder)!r} lacks {file}, code that its config.json refers to and that loading the model needs: "
                "save it again with save_pretrained"
            )
        checked.add(file)
        needed |= {f"{name.replace('.', '/')}.py" for name in get_relative_imports(str(contents[file]))}


def _remote_code_files(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the code files that `config` refers to, without those of other repositories."""
    for value in config.get("auto_map", {}).values():
        for name in value if isinstance(value, list) else [value]:
            if name and "--" not in name:
                yield f"{name.rpartition('.')[0].replace('.', '/')}.py"


def read_json(content: Path | bytes | None) -> dict[str, Any]:
    """Return the JSON object in `content`; an empty one if there is none. Raises UserError if it is not JSON."""
    if content is None:
        return {}
    try:
        value = json.loads(content if isinstance(content, bytes) else content.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        where = "a file" if isinstance(content, bytes) else str(content)
        raise UserError(f"{where} is not valid JSON ({error}): save the model again with save_pretrained") from error
    return value if isinstance(value, dict) else {}


def file_size_bytes(content: Path | bytes) -> int:
    """Return the size of a file in bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def find_stale_files(remote_files: set[str], contents: RepoFiles) -> list[str]:
    """Return the remote files to delete: weights and exports of an earlier push that are not in `contents`."""
    manifest = transformers.exporters.base.EXPORT_MANIFEST_FILE
    exports = [path.removesuffix(manifest) for path in remote_files if path.endswith(f"/{manifest}")]
    return sorted(
        path
        for path in remote_files - contents.keys()
        if path.startswith(tuple(exports)) or fnmatch(path, "model*.safetensors*")
    )


def minimal_card(contents: RepoFiles, text: str) -> str:
    """Return a model card with the body `text`, for a model without a report."""
    data = ModelCardData(library_name="transformers", tags=["hf_efficient"], pipeline_tag=pipeline_tag(contents))
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n"


def card_metadata(contents: RepoFiles) -> dict[str, Any]:
    """Return the metadata of the folder's card. Raises UserError if it is not valid YAML."""
    card = contents.get("README.md")
    try:
        return (metadata_load(card) if isinstance(card, Path) else None) or {}
    except yaml.YAMLError as error:
        raise UserError(f"the metadata at the top of README.md is not valid YAML: {error}") from error


def pipeline_tag(contents: RepoFiles) -> str | None:
    """Return the pipeline tag of the card, or else that of the model's class; None if it is unknown."""
    architecture = str((read_json(contents["config.json"]).get("architectures") or [""])[0])
    return card_metadata(contents).get("pipeline_tag") or PIPELINE_TAGS.get(task_head_of(architecture))
