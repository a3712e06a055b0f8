"""Loading of trained models: from safetensors only, and with all weights of the base model."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from hf_efficient.errors import UserError

SHOWN = 3
# Quantized weights have two bits or more; what is small is built in any case.
MAX_NUMBERS_OF_A_BYTE, SMALL_MODEL = 4, 10**7


def load_pretrained(auto_class: Any, name: str, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """Return the model called `name`, and the names of the weights of its head that are not in its files.

    Other weights that are missing would be random, and so would all that is computed with them: raises UserError.
    Only poolers may be missing, which models that are trained to predict tokens do not have. UserError is raised too,
    before anything is allocated, if the config asks for far more than the files of the weights hold, or if these are
    outside the folder of the model. `options` are those of `from_pretrained`, which raises OSError if there are no
    weights in safetensors: pickles can run code.
    """
    _check_files(auto_class, name, options)
    model, info = auto_class.from_pretrained(name, use_safetensors=True, output_loading_info=True, **options)
    missing = set(info["missing_keys"])
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    of_base = {key for key in missing if key.startswith(prefix) and ".pooler." not in f".{key}"}
    of_base = {key for key in of_base if not key.startswith("lm_head.")}  # a head, where there is no prefix
    if of_base:
        shown = ", ".join(sorted(of_base)[:SHOWN]) + (", ..." if len(of_base) > SHOWN else "")
        raise UserError(
            f"the files of {name!r} have no weights for {len(of_base):,} of the tensors that its config.json asks "
            f"for ({shown}): they are incomplete, or belong to another config.json"
        )
    return model, missing


def _check_files(auto_class: Any, name: str, options: Mapping[str, Any]) -> None:
    """Raise UserError if the files of the weights lie elsewhere, or hold far less than the config asks for."""
    trusted = {"trust_remote_code": bool(options.get("trust_remote_code"))}
    config = copy.deepcopy(options.get("config")) or AutoConfig.from_pretrained(name, **trusted)
    files = _weight_files(name, getattr(config, "transformers_weights", None))
    if not files:
        return  # `from_pretrained` says what is missing
    with torch.device("meta"):
        model = auto_class.from_config(config, **trusted)
    numbers = sum(value.numel() for value in model.state_dict().values())
    size = sum(file.stat().st_size for file in files)
    if numbers > MAX_NUMBERS_OF_A_BYTE * size + SMALL_MODEL:
        raise UserError(
            f"the config of {name!r} cannot be loaded: it asks for {numbers:,} numbers, and the files of the weights "
            f"hold {size:,} bytes: give a config.json that belongs to the weights"
        )


def _weight_files(name: str, file_name: str | None) -> list[Path]:
    """Return the files of the weights that `from_pretrained` reads, downloaded if `name` is on the Hub."""
    for candidate in (file_name,) if file_name else (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        found = cached_file(name, candidate, _raise_exceptions_for_missing_entries=False)
        if found is None:
            continue
        if not candidate.endswith(".json"):
            return [Path(found)]
        shards = sorted(set(json.loads(Path(found).read_text(encoding="utf-8"))["weight_map"].values()))
        elsewhere = [shard for shard in shards if Path(shard).is_absolute() or ".." in re.split(r"[\\/]", shard)]
        if elsewhere:
            raise UserError(
                f"{candidate} of {name!r} names {elsewhere[0]!r}, which is not in the folder of the model: it is not "
                "read; give a directory that save_pretrained wrote"
            )
        paths = [cached_file(name, shard, _raise_exceptions_for_missing_entries=False) for shard in shards]
        return [Path(path) for path in paths if path is not None]
    return []
