"""Which columns of a batch are labels, and which of them a model accepts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

TOKEN_TYPES = "token_type_ids"


def accepts_token_type_ids(model: nn.Module) -> bool:
    """Whether `model` tells the first text of a pair from the second by `token_type_ids`."""
    return TOKEN_TYPES in inspect.signature(model.forward).parameters


def select_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `model` reads of a batch: of two with one vocabulary, only one may know types of tokens."""
    return {name: value for name, value in inputs.items() if name != TOKEN_TYPES or accepts_token_type_ids(model)}


def is_label(name: str) -> bool:
    """Whether an input of a model says what it should answer."""
    return "label" in name or name.endswith("_positions")
