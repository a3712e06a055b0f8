"""Files of a saved tokenizer as other libraries, and Transformers 4, read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hf_efficient.files.replacing import replacing
from hf_efficient.hub.files import read_json
from hf_efficient.models.inputs import max_positions

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DEFAULT_LENGTH = 512  # of models without a table of positions


def complete_tokenizer_files(folder: Path) -> None:
    """Limit the `model_max_length` of the tokenizer in `folder` to what the model reads, and list its special tokens.

    Servers cut off texts at `model_max_length`, which Transformers writes as 1e30 where it is not known. Transformers
    5 no longer writes `special_tokens_map.json`, which some libraries need.
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    tokenizer, config = read_json(path), PreTrainedConfig.from_dict(read_json(folder / "config.json"))
    length, limit = tokenizer.get("model_max_length"), max_text_tokens(config)
    if not isinstance(length, (int, float)) or not 0 < length <= limit:
        _write(path, {**tokenizer, "model_max_length": limit})
    tokens = {name: _content(tokenizer[name]) for name in SPECIAL_TOKENS if tokenizer.get(name)}
    path = folder / "special_tokens_map.json"
    if tokens and not (path.is_file() and read_json(path) == tokens):
        _write(path, tokens)


def max_text_tokens(config: PreTrainedConfig) -> int:
    """Return how many tokens the model of a config reads at most."""
    return max(1, int(max_positions(config) or getattr(config, "n_positions", None) or DEFAULT_LENGTH))


def _content(token: Any) -> str:
    return str(token.get("content") if isinstance(token, dict) else token)


def _write(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
