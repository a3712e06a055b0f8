"""Which columns of a batch are labels, and which a model accepts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

TOKEN_TYPES = "token_type_ids"


def accepts_token_type_ids(model: nn.Module) -> bool:
    """Whether `model` has the input `token_type_ids`, which marks the first and the second text of a pair."""
    return TOKEN_TYPES in inspect.signature(model.forward).parameters


def select_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a batch that `model` accepts: without `token_type_ids` if it has no such input.

    A teacher and a student with the same tokenizer may differ in this.
    """
    return {name: value for name, value in inputs.items() if name != TOKEN_TYPES or accepts_token_type_ids(model)}


def is_label(name: str) -> bool:
    """Whether a column of a batch is a label: "labels", "label", "label_ids", "start_positions", "end_positions"."""
    return "label" in name or name.endswith("_positions")
