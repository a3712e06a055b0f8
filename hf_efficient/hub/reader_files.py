"""Files of a sentence embedder or reranker as servers and older versions of sentence-transformers read them.

`hf_efficient/hub/README.md` lists who reads what.
"""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.exporters.base import EXPORT_MANIFEST_FILE

from hf_efficient.files.replacing import replacing
from hf_efficient.hub.files import TOKENIZER_PATTERNS
from hf_efficient.hub.tokenizer_files import complete_tokenizer_files, max_text_tokens
from hf_efficient.hub.usage import read_config
from hf_efficient.models.inputs import common_sizes, score_activation
from hf_efficient.models.sentence_files import MODULES_FILE, POOLING_MODES, SETTINGS_FILE, pooling_modes

TRANSFORMER_FILE, POOLING_FILE = "sentence_bert_config.json", "config.json"
RUNTIME_MODULE = Path(__file__).with_name("runtime_module.py")
# Modules that every version has under these names, which version 6 writes with the place where they are now.
OLD_MODULES = {name: f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")}
# The first four keys of poolings are those of all versions, which refuse keys that they do not know.
COMMON_POOLING_KEYS = tuple(POOLING_MODES)[:4]
NEW_POOLING_KEYS = ("embedding_dimension", "pooling_mode")


def complete_reader_files(folder: Path) -> None:
    """Complete the files in `folder` that other libraries read: those of the tokenizer, of modules, and `config.json`.

    Files that are complete stay as they are.
    """
    complete_tokenizer_files(folder)
    config = read_config(folder)
    _complete_config(folder, config)
    is_embedder = (folder / MODULES_FILE).is_file()
    if is_embedder:
        _complete_modules(folder)
    if is_embedder or score_activation(config) is not None:
        _complete_transformer_settings(folder, config)
        for manifest in folder.glob(f"*/{EXPORT_MANIFEST_FILE}"):
            _complete_export(folder, manifest.parent, config)


def _complete_config(folder: Path, config: PreTrainedConfig) -> None:
    """Write the sizes of the model under common names, and the labels of a classifier, where they are missing."""
    values: dict[str, Any] = common_sizes(config)
    if str((config.architectures or [""])[0]).endswith("Classification"):
        values |= {"id2label": config.id2label, "label2id": config.label2id}
    _change(folder / "config.json", lambda old: {**values, **old})


def _complete_modules(folder: Path) -> None:
    """Write modules and pooling as every version of sentence-transformers, and servers, read them."""
    modules = json.loads((folder / MODULES_FILE).read_text(encoding="utf-8"))
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    renamed = [
        {**module, "type": OLD_MODULES.get(kind, module["type"])} for module, kind in zip(modules, kinds, strict=True)
    ]
    if renamed != modules:
        _write(folder / MODULES_FILE, renamed)
    for module, kind in zip(modules, kinds, strict=True):
        if kind == "Pooling":
            _change(folder / module["path"] / POOLING_FILE, _old_pooling)


def _old_pooling(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a pooling with the keys that were replaced in version 6."""
    modes = pooling_modes(config)
    width = config.get("word_embedding_dimension", config.get("embedding_dimension"))
    keys = {key: name in modes for key, name in POOLING_MODES.items() if key in COMMON_POOLING_KEYS or name in modes}
    is_default = config.get("include_prompt") is True and any(key in config for key in NEW_POOLING_KEYS)
    others = {
        key: value
        for key, value in config.items()
        if key not in NEW_POOLING_KEYS and not (key == "include_prompt" and is_default)
    }
    return {"word_embedding_dimension": width, **others, **keys}


def _complete_transformer_settings(folder: Path, config: PreTrainedConfig) -> None:
    """Write at how many tokens texts are cut, which servers do not find elsewhere for models of this package."""
    path = folder / TRANSFORMER_FILE
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    tokenizer_file = folder / "tokenizer_config.json"
    tokenizer = json.loads(tokenizer_file.read_text(encoding="utf-8")) if tokenizer_file.is_file() else {}
    length = min(
        max_text_tokens(config),
        old.get("max_seq_length") or tokenizer.get("model_max_length") or max_text_tokens(config),
    )
    settings = {"max_seq_length": length, "do_lower_case": bool(old.get("do_lower_case", False))}
    if settings != old:
        _write(path, settings)


def _complete_export(folder: Path, export_dir: Path, config: PreTrainedConfig) -> None:
    """Make the folder of an export one that sentence-transformers loads, by `RuntimeModule`."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in TOKENIZER_PATTERNS):
            shutil.copyfile(path, export_dir / path.name)
    length = json.loads((folder / TRANSFORMER_FILE).read_text(encoding="utf-8"))["max_seq_length"]
    if (export_dir / "tokenizer_config.json").is_file():
        _change(export_dir / "tokenizer_config.json", lambda old: {**old, "model_max_length": length})
    shutil.copyfile(RUNTIME_MODULE, export_dir / RUNTIME_MODULE.name)
    module = {"idx": 0, "name": "0", "path": "", "type": f"{RUNTIME_MODULE.stem}.RuntimeModule"}
    _write(export_dir / MODULES_FILE, [module])
    settings_file, activation = folder / SETTINGS_FILE, score_activation(config)
    settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.is_file() else {}
    if activation is not None:
        settings |= {"model_type": "CrossEncoder", "activation_fn": activation}
    _write(export_dir / SETTINGS_FILE, settings)


def _change(path: Path, change: Any) -> None:
    old = json.loads(path.read_text(encoding="utf-8"))
    new = change(old)
    if new != old:
        _write(path, new)


def _write(path: Path, value: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
