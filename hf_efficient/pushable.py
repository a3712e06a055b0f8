"""What a folder gives to the Hub: the files that may leave it, and those made of them for readers in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
import yaml
from huggingface_hub import ModelCardData, metadata_load
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import logging

from hf_efficient.distillation.distiller import PROJECTIONS_NAME
from hf_efficient.pruning.schedule import GATES_NAME

logger = logging.get_logger(__name__)

Contents = dict[str, "Path | bytes"]

# Pickles, what only resuming needs, and what names this machine; `_*` and hidden ones stay too.
NEVER = (
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
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForConditionalGeneration": "text2text-generation",
    "ForMultipleChoice": "multiple-choice",
}
COMPANION = "-ONNX"
# How a card says, behind the name that it loads, what that name is: a push puts the repository there.
THIS = "  # this repository, or a folder with its files"
LARGEST_GRAPH_BYTES = 2_000_000_000  # protobuf holds no more in one file
IN_THE_GRAPH = b"The weights are inside model.onnx.\n"


def collect(folder: Path) -> Contents:
    """Returns the files that are pushed, by their paths in the repository.

    Raises ValueError: what others need to load the model is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder: give one that `hf-efficient compress` wrote")
    contents: Contents = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _may_leave(path.relative_to(folder), path)
    }
    _check_loads(folder, contents)
    return contents


def _may_leave(path: Path, file: Path) -> bool:
    weights_of_openvino = path.suffix == ".bin" and file.with_suffix(".xml").exists()
    barred = [part for part in path.parts if part.startswith(("_", ".")) or any(fnmatch(part, no) for no in NEVER)]
    return not barred or (weights_of_openvino and barred == [path.name])


def _check_loads(folder: Path, contents: Contents) -> None:
    """Raises ValueError: `from_pretrained` would miss a file."""
    if "config.json" not in contents:
        raise ValueError(f"{str(folder)!r} has no config.json: give a folder that save_pretrained wrote a model into")
    index = _json(contents.get("model.safetensors.index.json"))
    weights = set(index.get("weight_map", {}).values()) or {"model.safetensors"}
    if lost := sorted(weights - contents.keys()):
        raise ValueError(
            f"{str(folder)!r} lacks {', '.join(lost)}, the weights: save the model again by save_pretrained, which "
            "writes safetensors (pickles such as pytorch_model.bin are never pushed)"
        )
    needed = {file for name in ("config.json", "tokenizer_config.json") for file in _code(_json(contents.get(name)))}
    checked: set[str] = set()
    while needed - checked:
        file = (needed - checked).pop()
        if file not in contents:
            raise ValueError(
                f"{str(folder)!r} lacks {file}, code that its config.json needs: nobody else could load the model; "
                "save it again by save_pretrained"
            )
        checked.add(file)
        needed |= {f"{name.replace('.', '/')}.py" for name in get_relative_imports(str(contents[file]))}


def _code(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields the files of code that `config` names, but for those of other repositories."""
    for value in config.get("auto_map", {}).values():
        for name in value if isinstance(value, list) else [value]:
            if name and "--" not in name:
                yield f"{name.rpartition('.')[0].replace('.', '/')}.py"


def _json(content: Path | bytes | None) -> dict[str, Any]:
    if content is None:
        return {}
    read = json.loads(content if isinstance(content, bytes) else content.read_text(encoding="utf-8"))
    return read if isinstance(read, dict) else {}


def size_bytes(content: Path | bytes) -> int:
    """Returns how much is pushed."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def repositories(folder: Path, repo_id: str) -> dict[str, Contents]:
    """Returns what goes into which repository: a companion for readers that know stock types alone, and `repo_id`.

    | shape | repository | transformers.js reads |
    | --- | --- | --- |
    | stock | repo_id | its config.json and onnx/ |
    | uneven, with an export to ONNX | repo_id, and repo_id-ONNX with the stock config.json | the companion's |

    Raises ValueError: what others need to load the model is missing.
    """
    contents = collect(folder)
    web = web_files(contents)
    uneven = str(_json(contents["config.json"]).get("model_type")).startswith("pruned_")
    root = {"config.json": _web_config(contents["onnx/config.json" if uneven else "config.json"], web)} if web else {}
    companion = f"{repo_id}{COMPANION}" if web and uneven else None
    whole: Contents = {**contents, **web, **({} if companion else root)}
    whole["README.md"] = _readme(contents, repo_id, companion)
    if companion is None:
        return {repo_id: whole}
    beside: Contents = {path: each for path, each in contents.items() if any(fnmatch(path, own) for own in TOKENIZER)}
    exported = {path: each for path, each in whole.items() if path.startswith("onnx/")}
    if "generation_config.json" in contents:
        beside["generation_config.json"] = contents["generation_config.json"]
    card = _companion_card(contents, repo_id, companion)
    return {companion: {**beside, **exported, **root, "README.md": card}, repo_id: whole}


def web_files(contents: Contents) -> Contents:
    """Returns the files of `onnx/` under the names that transformers.js expects; none where it cannot read them.

    The weights move into the graph, `onnx/model.onnx`, and in 8 bits the same bytes are `onnx/model_quantized.onnx`
    too. `ExportedModel.from_pretrained` reads them as before.
    """
    graph = contents.get("onnx/model.onnx")
    manifest = _json(contents.get(f"onnx/{transformers.exporters.base.EXPORT_MANIFEST_FILE}"))
    if (
        not isinstance(graph, Path)
        or "onnx/config.json" not in contents
        or [*manifest.get("components", ())] != ["model"]
    ):
        return {}
    size_bytes = sum(path.stat().st_size for path in graph.parent.glob("model.onnx*"))
    if find_spec("onnx") is None or size_bytes > LARGEST_GRAPH_BYTES:
        why = "pip install onnx" if size_bytes <= LARGEST_GRAPH_BYTES else "2 GB are the most that one file can hold"
        logger.warning(f"{graph.parent} is pushed as it is, which transformers.js cannot read: {why}")
        return {}
    import onnx

    model = onnx.load(str(graph))
    whole = model.SerializeToString()
    files: Contents = {"onnx/model.onnx": whole, "onnx/model.onnx.data": IN_THE_GRAPH}
    if any(node.op_type in ("MatMulInteger", "DynamicQuantizeLinear") for node in model.graph.node):
        files["onnx/model_quantized.onnx"] = whole
    return files


def _web_config(config: Path | bytes, web: Contents) -> bytes:
    """Returns `config` with the form that transformers.js is to take when nobody says which."""
    dtype = "q8" if "onnx/model_quantized.onnx" in web else "fp32"
    return (json.dumps({**_json(config), "transformers.js_config": {"dtype": dtype}}, indent=2) + "\n").encode()


def stale(held: set[str], contents: Contents) -> list[str]:
    """Returns the paths in a repository that an earlier push left: weights and exports that are there no more."""
    manifest = transformers.exporters.base.EXPORT_MANIFEST_FILE
    exports = [path.removesuffix(manifest) for path in held if path.endswith(f"/{manifest}")]
    return sorted(
        path
        for path in held - contents.keys()
        if path.startswith(tuple(exports)) or fnmatch(path, "model*.safetensors*")
    )


def _readme(contents: Contents, repo_id: str, companion: str | None) -> bytes:
    """Returns the folder's card, or a small one, that calls the repository by its name and links to the companion."""
    held = contents.get("README.md")
    text = held.read_text(encoding="utf-8") if isinstance(held, Path) else small_card(contents, "A compressed model.")
    text = re.sub(f'^name = ".*"{re.escape(THIS)}$', f'name = "{repo_id}"{THIS}', text, flags=re.MULTILINE)
    if companion is None or companion in text:
        return text.encode()
    section = (
        "## In the browser\n\n"
        f"The ONNX form, with the config of the stock class, is in [{companion}](https://huggingface.co/{companion}), "
        "where transformers.js and other readers that run no code of a repository find it."
    )
    return f"{text.rstrip()}\n\n{section}\n".encode()


def small_card(contents: Contents, text: str) -> str:
    """Returns a card that says `text` of the model in `contents`, where nothing was measured."""
    data = ModelCardData(library_name="transformers", tags=["hf_efficient"], pipeline_tag=_pipeline(contents))
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n"


def _companion_card(contents: Contents, repo_id: str, companion: str) -> bytes:
    told, pipeline = _metadata(contents), _pipeline(contents)
    data = ModelCardData(
        base_model=repo_id,
        base_model_relation="quantized",
        library_name="transformers.js",
        license=told.get("license"),
        pipeline_tag=pipeline,
        tags=["onnx", "hf_efficient"],
    )
    text = (
        f"# {companion.rpartition('/')[2]}\n\n"
        f"[{repo_id}](https://huggingface.co/{repo_id}) for ONNX Runtime and transformers.js: the same model with the "
        "config of its stock class, for readers that run no code of a repository. Figures and limits are on that "
        "model's card.\n"
    )
    if pipeline:
        text += (
            '\n```js\nimport { pipeline } from "@huggingface/transformers";\n\n'
            f'const run = await pipeline("{pipeline}", "{companion}");\n```\n'
        )
    return f"---\n{data.to_yaml()}\n---\n\n{text}".encode()


def _metadata(contents: Contents) -> dict[str, Any]:
    """Returns the metadata of the folder's card. Raises ValueError: they are no YAML."""
    card = contents.get("README.md")
    try:
        return (metadata_load(card) if isinstance(card, Path) else None) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"README.md begins with metadata that is no YAML, mend it: {error}") from error


def _pipeline(contents: Contents) -> str | None:
    """Returns the task that the card tells, or the class."""
    named = str((_json(contents["config.json"]).get("architectures") or [""])[0])
    return _metadata(contents).get("pipeline_tag") or next(
        (pipeline for head, pipeline in PIPELINES.items() if named.endswith(head)), None
    )
