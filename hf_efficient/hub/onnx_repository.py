"""Files for transformers.js, and the companion repository that holds them for pruned models."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import transformers
from huggingface_hub import ModelCardData
from transformers.utils import logging

from hf_efficient.errors import UserError
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
MAX_ONNX_FILE_BYTES = 2_000_000_000  # limit of protobuf for one file
# The pipelines of transformers.js for tasks that are no pipelines there.
WEB_PIPELINES = {"text-ranking": "text-classification", "sentence-similarity": "feature-extraction"}
EMBEDDED_WEIGHTS_NOTE = b"The weights are inside model.onnx.\n"


def plan_repositories(folder: Path, repo_id: str) -> dict[str, RepoFiles]:
    """Return the files of each repository that the folder is pushed to.

    A pruned model with an ONNX export has a companion repository, since transformers.js reads the config.json at the
    top of a repository and knows stock model types only.

    | model | repositories | transformers.js reads |
    | --- | --- | --- |
    | of a stock class | repo_id | config.json and onnx/ of repo_id |
    | pruned, with onnx/ | repo_id, and repo_id-ONNX with the config of the stock class | those of repo_id-ONNX |

    Raises UserError if a file that `from_pretrained` needs is missing, or the metadata of the card is not valid YAML.
    """
    contents = collect_files(folder)
    web = transformers_js_files(contents)
    is_pruned = str(read_json(contents["config.json"]).get("model_type")).startswith("pruned_")
    web_config: RepoFiles = {}
    if web:
        config = contents["onnx/config.json" if is_pruned else "config.json"]
        web_config = {"config.json": _transformers_js_config(config, web)}
    companion = f"{repo_id}{ONNX_REPOSITORY_SUFFIX}" if web and is_pruned else None
    main_files: RepoFiles = {**contents, **web, **({} if companion else web_config)}
    main_files["README.md"] = _readme(contents, repo_id, companion)
    if companion is None:
        return {repo_id: main_files}
    tokenizer_files: RepoFiles = {
        path: content
        for path, content in contents.items()
        if any(fnmatch(path, pattern) for pattern in TOKENIZER_PATTERNS)
    }
    onnx_files = {path: content for path, content in main_files.items() if path.startswith("onnx/")}
    if "generation_config.json" in contents:
        tokenizer_files["generation_config.json"] = contents["generation_config.json"]
    card = _onnx_repository_card(contents, repo_id, companion)
    return {companion: {**tokenizer_files, **onnx_files, **web_config, "README.md": card}, repo_id: main_files}


def transformers_js_files(contents: RepoFiles) -> RepoFiles:
    """Return the files of `onnx/` under the names that transformers.js expects; none if it cannot read them.

    The weights move into the graph, `onnx/model.onnx`; an int8 graph is stored as `onnx/model_quantized.onnx` too.
    `ExportedModel.from_pretrained` still loads the folder. Raises UserError if the graph is damaged.
    """
    graph = contents.get("onnx/model.onnx")
    manifest = read_json(contents.get(f"onnx/{transformers.exporters.base.EXPORT_MANIFEST_FILE}"))
    if (
        not isinstance(graph, Path)
        or "onnx/config.json" not in contents
        or [*manifest.get("components", ())] != ["model"]
    ):
        return {}
    size_bytes = sum(path.stat().st_size for path in graph.parent.glob("model.onnx*"))
    is_too_large = size_bytes > MAX_ONNX_FILE_BYTES
    if is_too_large or find_spec("onnx") is None:
        reason = "an ONNX file holds at most 2 GB" if is_too_large else "pip install onnx"
        logger.warning(f"{graph.parent} is pushed in a layout that transformers.js cannot read: {reason}")
        return {}
    import onnx

    try:
        model = onnx.load(str(graph))
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("google.protobuf", "onnx")):
            raise
        raise UserError(
            f"{graph} cannot be read ({error}): export the model again, or remove {graph.parent}"
        ) from error
    serialized_model = model.SerializeToString()
    files: RepoFiles = {"onnx/model.onnx": serialized_model, "onnx/model.onnx.data": EMBEDDED_WEIGHTS_NOTE}
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        files["onnx/model_quantized.onnx"] = serialized_model
    return files


def _transformers_js_config(config: Path | bytes, web: RepoFiles) -> bytes:
    """Return `config` with the data type that transformers.js loads by default."""
    dtype = "q8" if "onnx/model_quantized.onnx" in web else "fp32"
    return (json.dumps({**read_json(config), "transformers.js_config": {"dtype": dtype}}, indent=2) + "\n").encode()


def _readme(contents: RepoFiles, repo_id: str, companion: str | None) -> bytes:
    """Return the folder's card, or a minimal one, with the repository's name and a link to the companion."""
    card = contents.get("README.md")
    text = (
        card.read_text(encoding="utf-8") if isinstance(card, Path) else minimal_card(contents, "A compressed model.")
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
        f"[{companion}](https://huggingface.co/{companion}) holds the ONNX export with the config of the stock class, "
        "for transformers.js and other libraries that do not run code from a repository."
    )
    return f"{text.rstrip()}\n\n{section}\n".encode()


def _onnx_repository_card(contents: RepoFiles, repo_id: str, companion: str) -> bytes:
    """Return the card of the companion repository."""
    tag = pipeline_tag(contents)
    data = ModelCardData(
        base_model=repo_id,
        base_model_relation="quantized",
        library_name="transformers.js",
        license=card_metadata(contents).get("license"),
        pipeline_tag=tag,
        tags=["onnx", "hf_efficient"],
    )
    text = (
        f"# {companion.rpartition('/')[2]}\n\n"
        f"The ONNX export of [{repo_id}](https://huggingface.co/{repo_id}) for ONNX Runtime and transformers.js. It "
        "has the config of the stock class, so that it loads without code from a repository. Measurements and "
        "limitations are on that model's card.\n"
    )
    if tag:
        text += (
            '\n```js\nimport { pipeline } from "@huggingface/transformers";\n\n'
            f'const pipe = await pipeline({json.dumps(WEB_PIPELINES.get(tag, tag))}, "{companion}");\n```\n'
        )
    return f"---\n{data.to_yaml()}\n---\n\n{text}".encode()
