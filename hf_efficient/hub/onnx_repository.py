"""The companion repository with the ONNX export for transformers.js."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import transformers
from huggingface_hub import ModelCardData
from transformers.utils import logging

from hf_efficient.hub.config import ONNX_REPOSITORY_SUFFIX
from hf_efficient.hub.files import (
    REPOSITORY_NAME_COMMENT,
    TOKENIZER_PATTERNS,
    RepoFiles,
    card_metadata,
    collect_files,
    minimal_card,
    pipeline_tag,
    read_json,
)

logger = logging.get_logger(__name__)
MAX_ONNX_FILE_BYTES = 2_000_000_000  # protobuf holds no more in one file
EMBEDDED_WEIGHTS_NOTE = b"The weights are inside model.onnx.\n"


def plan_repositories(folder: Path, repo_id: str) -> dict[str, RepoFiles]:
    """Return what goes into which repository: a companion for readers that know stock types alone, and `repo_id`.

    | shape | repository | transformers.js reads |
    | --- | --- | --- |
    | stock | repo_id | its config.json and onnx/ |
    | uneven, with an export to ONNX | repo_id, and repo_id-ONNX with the stock config.json | the companion's |

    Raises ValueError: what others need to load the model is missing.
    """
    contents = collect_files(folder)
    web = transformers_js_files(contents)
    uneven = str(read_json(contents["config.json"]).get("model_type")).startswith("pruned_")
    root = (
        {"config.json": _transformers_js_config(contents["onnx/config.json" if uneven else "config.json"], web)}
        if web
        else {}
    )
    companion = f"{repo_id}{ONNX_REPOSITORY_SUFFIX}" if web and uneven else None
    whole: RepoFiles = {**contents, **web, **({} if companion else root)}
    whole["README.md"] = _readme(contents, repo_id, companion)
    if companion is None:
        return {repo_id: whole}
    beside: RepoFiles = {
        path: each for path, each in contents.items() if any(fnmatch(path, own) for own in TOKENIZER_PATTERNS)
    }
    exported = {path: each for path, each in whole.items() if path.startswith("onnx/")}
    if "generation_config.json" in contents:
        beside["generation_config.json"] = contents["generation_config.json"]
    card = _onnx_repository_card(contents, repo_id, companion)
    return {companion: {**beside, **exported, **root, "README.md": card}, repo_id: whole}


def transformers_js_files(contents: RepoFiles) -> RepoFiles:
    """Return the files of `onnx/` under the names that transformers.js expects; none where it cannot read them.

    The weights move into the graph, `onnx/model.onnx`, and in 8 bits the same bytes are `onnx/model_quantized.onnx`
    too. `ExportedModel.from_pretrained` reads them as before.
    """
    graph = contents.get("onnx/model.onnx")
    manifest = read_json(contents.get(f"onnx/{transformers.exporters.base.EXPORT_MANIFEST_FILE}"))
    if (
        not isinstance(graph, Path)
        or "onnx/config.json" not in contents
        or [*manifest.get("components", ())] != ["model"]
    ):
        return {}
    file_size_bytes = sum(path.stat().st_size for path in graph.parent.glob("model.onnx*"))
    if find_spec("onnx") is None or file_size_bytes > MAX_ONNX_FILE_BYTES:
        why = (
            "pip install onnx"
            if file_size_bytes <= MAX_ONNX_FILE_BYTES
            else "2 GB are the most that one file can hold"
        )
        logger.warning(f"{graph.parent} is pushed as it is, which transformers.js cannot read: {why}")
        return {}
    import onnx

    model = onnx.load(str(graph))
    whole = model.SerializeToString()
    files: RepoFiles = {"onnx/model.onnx": whole, "onnx/model.onnx.data": EMBEDDED_WEIGHTS_NOTE}
    if any(node.op_type in ("MatMulInteger", "DynamicQuantizeLinear") for node in model.graph.node):
        files["onnx/model_quantized.onnx"] = whole
    return files


def _transformers_js_config(config: Path | bytes, web: RepoFiles) -> bytes:
    """Return `config` with the form that transformers.js is to take when nobody says which."""
    dtype = "q8" if "onnx/model_quantized.onnx" in web else "fp32"
    return (json.dumps({**read_json(config), "transformers.js_config": {"dtype": dtype}}, indent=2) + "\n").encode()


def _readme(contents: RepoFiles, repo_id: str, companion: str | None) -> bytes:
    """Return the folder's card, or a small one, that calls the repository by its name and links to the companion."""
    held = contents.get("README.md")
    text = (
        held.read_text(encoding="utf-8") if isinstance(held, Path) else minimal_card(contents, "A compressed model.")
    )
    text = re.sub(
        f'^name = ".*"{re.escape(REPOSITORY_NAME_COMMENT)}$',
        f'name = "{repo_id}"{REPOSITORY_NAME_COMMENT}',
        text,
        flags=re.MULTILINE,
    )
    if companion is None or companion in text:
        return text.encode()
    section = (
        "## In the browser\n\n"
        f"The ONNX form, with the config of the stock class, is in [{companion}](https://huggingface.co/{companion}), "
        "where transformers.js and other readers that run no code of a repository find it."
    )
    return f"{text.rstrip()}\n\n{section}\n".encode()


def _onnx_repository_card(contents: RepoFiles, repo_id: str, companion: str) -> bytes:
    told, pipeline = card_metadata(contents), pipeline_tag(contents)
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
