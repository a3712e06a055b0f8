"""Names that a model gives its classes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedConfig

from hf_efficient.errors import UserError

_DEFAULT_NAME = re.compile(r"(LABEL_)?\d+")


def is_default_name(name: str) -> bool:
    """Whether a name says no more than the number of the class, as the LABEL_0 of Transformers."""
    return _DEFAULT_NAME.fullmatch(name) is not None


def model_label_names(config: PreTrainedConfig) -> list[str]:
    """Return the names of a model's classes, in the order of their ids.

    `id2label` counts; `label2id` only where it alone has names. Raises UserError if the ids are not 0, 1, 2, ...
    """
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    if sorted(names) != list(range(len(names))):
        raise UserError(f"id2label in config.json has the ids {sorted(names)}: they must be 0, 1, 2, ...")
    given = {int(index): str(name) for name, index in (config.label2id or {}).items()}
    if all(map(is_default_name, names.values())) and sorted(given) == sorted(names):
        names = given
    return [names[index] for index in sorted(names)]


def set_label_names(config: PreTrainedConfig, names: Sequence[str]) -> None:
    """Write the names of the classes into both label maps of `config`."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}


def find_id(name: str, model_names: Sequence[str]) -> int | None:
    """Return the id of the class with this name, without regard to case if that is clear; None if there is none."""
    if name in model_names:
        return list(model_names).index(name)
    folded = [index for index, known in enumerate(model_names) if known.strip().casefold() == name.strip().casefold()]
    return folded[0] if len(folded) == 1 else None


def complete_label_names(config: PreTrainedConfig) -> None:
    """Make `label2id` the inverse of `id2label`, where it is missing or another one; other programs read either."""
    indices = sorted(map(int, config.id2label or {}))
    if not indices or indices != list(range(len(indices))):
        return
    names = model_label_names(config)
    if len(set(names)) == len(names):
        set_label_names(config, names)
