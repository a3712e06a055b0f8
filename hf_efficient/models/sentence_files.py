"""The files of a sentence embedder: reading the modules that its `modules.json` lists, and writing new ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers.utils import cached_file, logging

from hf_efficient.errors import UserError
from hf_efficient.models.sentence_modules import (
    EMBEDDING,
    SentenceModules,
    Step,
    attach_sentence_modules,
    find_sentence_modules,
    normalize,
)

logger = logging.get_logger(__name__)

MODULES_FILE, SETTINGS_FILE = "modules.json", "config_sentence_transformers.json"
# The settings of the transformer have the name that the first versions gave them.
TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
MODULE_FILES = ("config.json", "model.safetensors")
# The pooling modes that work here, by the older keys that each version reads, in the order of concatenation.
POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")


class AutoSentenceEmbedder:
    """Loads sentence embedders, as the Auto classes of Transformers load models."""

    @classmethod
    def from_config(cls, config: Any, **options: Any) -> Any:
        """Return a new transformer with this config, without modules."""
        return AutoModel.from_config(config, **options)

    @classmethod
    def from_pretrained(cls, name: str, output_loading_info: bool = False, **options: Any) -> Any:
        """Return the transformer called `name` with its modules, and on request the info of its loading.

        A model without `modules.json` gets mean pooling, as in sentence-transformers.

        Raises UserError if its modules are not supported.
        """
        modules = read_sentence_modules(name)
        model, info = AutoModel.from_pretrained(name, output_loading_info=True, **options)
        if model.config.is_encoder_decoder:
            raise UserError(f"{name!r} has a decoder: sentence embeddings are computed by encoders, such as BERT")
        if modules is None:
            logger.warning(f"{name!r} has no {MODULES_FILE}: its embeddings are the means of its last hidden states")
            modules = build_sentence_modules(model.config.hidden_size)
        attach_sentence_modules(model, modules)
        unused = {key for key in info["missing_keys"] if ".pooler." in f".{key}"}  # no embedding depends on it
        info = {**info, "missing_keys": set(info["missing_keys"]) - unused}
        return (model, info) if output_loading_info else model


def has_sentence_modules(name: str) -> bool:
    """Whether the model called `name`, a folder or a repository on the Hub, is a sentence embedder."""
    return read_model_file(name, MODULES_FILE) is not None


def read_sentence_modules(name: str) -> SentenceModules | None:
    """Return the modules of the model called `name`, a folder or a repository on the Hub; None if it has none.

    Raises UserError if a module is not supported, or a file is missing or damaged.
    """
    listed = read_model_file(name, MODULES_FILE)
    if listed is None:
        return None
    entries = _parse(name, MODULES_FILE, listed, list)
    if not all(isinstance(each, dict) and {"type", "path"} <= each.keys() for each in entries):
        raise UserError(f"{MODULES_FILE} of {name!r} is no list of modules with a type and a path: copy it again")
    files = {MODULES_FILE: listed}
    pooling: tuple[str, ...] = ()
    steps: list[Step] = []
    for position, entry in enumerate(entries):
        kind, path = str(entry["type"]).rpartition(".")[2], str(entry["path"]).strip("/")
        if (position == 0) != (kind == "Transformer") or (position == 1) != (kind == "Pooling"):
            raise _unsupported(name, [str(each["type"]) for each in entries])
        if kind == "Transformer":
            if path not in ("", "."):
                raise UserError(
                    f"the transformer of {name!r} is in its folder {path!r}: load and save the model with a recent "
                    "version of sentence-transformers, which puts it beside modules.json"
                )
            continue
        if not path or ".." in Path(path).parts:  # its files are copied to the same place of other folders
            raise UserError(
                f"{MODULES_FILE} of {name!r} names the folder {path!r}: give one within the model's folder"
            )
        for file in MODULE_FILES:
            content = read_model_file(name, f"{path}/{file}")
            if content is not None:
                files[f"{path}/{file}"] = content
        config = _parse(name, f"{path}/config.json", files.get(f"{path}/config.json", b"{}"))
        if kind == "Pooling":
            pooling = _read_pooling(name, config)
        elif kind == "Normalize":
            steps.append(normalize)
        elif kind == "Dense":
            steps.append(_read_dense(name, path, config, files.get(f"{path}/model.safetensors")))
        elif kind != "Dropout":
            raise _unsupported(name, [str(each["type"]) for each in entries])
    if not pooling:
        raise _unsupported(name, [str(each["type"]) for each in entries])
    settings: dict[str, Any] = {}
    for file in (*TRANSFORMER_FILES, SETTINGS_FILE):
        content = read_model_file(name, file)
        if content is not None:
            files[file] = content
            settings |= _parse(name, file, content)
    if settings.get("do_lower_case"):
        raise UserError(f"do_lower_case of {name!r} is not supported: save it with a tokenizer that lowercases itself")
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    return SentenceModules(
        files,
        pooling,
        tuple(steps),
        settings.get("max_seq_length"),
        str(prompts.get(default, "")) if default else "",
    )


def build_sentence_modules(
    width: int, pooling: Sequence[str] = ("mean",), is_normalized: bool = False, like: SentenceModules | None = None
) -> SentenceModules:
    """Return the modules of a new embedder, with the settings of `like`: pooling of states of this width.

    Its files are written as all versions of sentence-transformers, and other readers of such folders, read them.
    """
    kinds = ["Transformer", "Pooling", *(["Normalize"] if is_normalized else [])]
    entries = [_entry(index, kind) for index, kind in enumerate(kinds)]
    config = {"word_embedding_dimension": width, **{key: mode in pooling for key, mode in POOLING_MODES.items()}}
    values: dict[str, Any] = {MODULES_FILE: entries, "1_Pooling/config.json": config}
    files = {path: _to_json(value) for path, value in values.items()}
    if like is not None:
        files |= {path: like.files[path] for path in (*TRANSFORMER_FILES, SETTINGS_FILE) if path in like.files}
    steps = (normalize,) if is_normalized else ()
    return SentenceModules(
        files,
        tuple(pooling),
        steps,
        None if like is None else like.max_seq_length,
        "" if like is None else like.prompt,
    )


def append_projection(modules: SentenceModules, weight: torch.Tensor) -> SentenceModules:
    """Return modules whose embeddings are those of `modules` times `weight` (new size, size), a Dense of its own.

    They have the length 1 if they had it before.
    """
    entries = json.loads(modules.files[MODULES_FILE])
    path = f"{len(entries)}_Dense"
    entries += [
        _entry(len(entries) + offset, kind)
        for offset, kind in enumerate(["Dense", *(["Normalize"] if modules.normalizes else [])])
    ]
    config = {
        "in_features": weight.shape[1],
        "out_features": weight.shape[0],
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    weights = save_tensors({"linear.weight": weight.detach().float().cpu().contiguous()})
    values = {MODULES_FILE: entries, f"{path}/config.json": config}
    files = {**modules.files, **{name: _to_json(value) for name, value in values.items()}}
    dense = _read_dense(MODULES_FILE, path, config, weights)
    steps = (*modules.steps, dense, *((normalize,) if modules.normalizes else ()))
    return replace(modules, files={**files, f"{path}/model.safetensors": weights}, steps=steps)


def _entry(index: int, kind: str) -> dict[str, Any]:
    """Return the entry of a module in `modules.json`."""
    path = f"{index}_{kind}" if index else ""
    return {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}


def _to_json(value: Any) -> bytes:
    return f"{json.dumps(value, indent=2)}\n".encode()


def fit_sentence_modules(teacher: Any, student: Any) -> None:
    """Attach the modules of `teacher`, if there are any, to a `student` of its own.

    A student of another width has embeddings of its own size: it has the pooling and normalization of its teacher.
    """
    modules = find_sentence_modules(teacher)
    if modules is not None:
        if student.config.hidden_size != teacher.config.hidden_size:
            modules = build_sentence_modules(
                student.config.hidden_size, modules.pooling, modules.normalizes, like=modules
            )
        attach_sentence_modules(student, modules)


def read_model_file(name: str, path: str, local_files_only: bool = False) -> bytes | None:
    """Return the content of a file of the model `name`, a folder or a repository on the Hub; None if it has none."""
    file = cached_file(
        name,
        path,
        local_files_only=local_files_only,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if file is None else Path(file).read_bytes()


def _parse(name: str, path: str, content: bytes, kind: type = dict) -> Any:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} of {name!r} is not valid JSON ({error}): copy or download it again") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} of {name!r} holds a {type(value).__name__}, not a {kind.__name__}: copy it again")
    return value


def _unsupported(name: str, types: Sequence[str]) -> UserError:
    return UserError(
        f"the modules of {name!r} are {', '.join(types)}: supported are a Transformer and a Pooling, then Dense, "
        "Normalize and Dropout"
    )


def pooling_modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modes that the settings of a pooling name, by the keys of any version."""
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in POOLING_MODES.items() if config.get(key)] or ["mean"]
    return (modes,) if isinstance(modes, str) else tuple(modes)


def _read_pooling(name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    modes = pooling_modes(config)
    supported = set(POOLING_MODES.values()) - {"weightedmean"}
    if not set(modes) <= supported or not config.get("include_prompt", True):
        raise UserError(
            f"the pooling of {name!r} is {', '.join(modes)}, include_prompt={config.get('include_prompt', True)}: "
            f"supported are {', '.join(sorted(supported))}, with the tokens of the prompt"
        )
    return modes


def _read_dense(name: str, path: str, config: Mapping[str, Any], weights: bytes | None) -> Step:
    """Return a dense layer whose weights are not trained."""
    names = {key: config.get(key) for key in ("module_input_name", "module_output_name")}
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if weights is None or activation not in ACTIVATIONS or config.get("use_residual"):
        raise UserError(
            f"{path} of {name!r} is not supported: a Dense needs model.safetensors (load and save the model with "
            f"sentence-transformers), one of the activations {', '.join(ACTIVATIONS)}, and no residual"
        )
    if set(names.values()) - {None, EMBEDDING}:
        raise UserError(f"{path} of {name!r} reads {names}: supported is a Dense of {EMBEDDING}")
    tensors = load_tensors(weights)
    function, bias = getattr(nn, activation)(), tensors.get("linear.bias")

    def dense(embeddings: torch.Tensor) -> torch.Tensor:
        weight = tensors["linear.weight"].to(embeddings)
        result: torch.Tensor = function(F.linear(embeddings, weight, None if bias is None else bias.to(embeddings)))
        return result

    return dense
