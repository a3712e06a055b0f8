"""Which columns of a batch are labels, which a model accepts, how many tokens; and the task head of a model class."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from . import find_family

TOKEN_TYPES = "token_type_ids"
QUERY = "query"  # the column of a batch that says which rows are documents of the same query; no model reads it
COMMON_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")
# Where CrossEncoder of sentence-transformers reads the activation of the score: the first since version 4.
ACTIVATION_FIELD, OLD_ACTIVATION_FIELD = "sentence_transformers", "sbert_ce_default_activation_function"


def accepts_token_type_ids(model: nn.Module) -> bool:
    """Whether `model` has the input `token_type_ids`, which marks the first and the second text of a pair."""
    return TOKEN_TYPES in inspect.signature(model.forward).parameters


def select_inputs(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a batch that `model` reads: without `token_type_ids` if it has no such input.

    A teacher and a student with the same tokenizer may differ in this.
    """
    unread = {QUERY} if accepts_token_type_ids(model) else {QUERY, TOKEN_TYPES}
    return {name: value for name, value in inputs.items() if name not in unread}


def is_label(name: str) -> bool:
    """Whether a column of a batch is a label: "labels", "label", "label_ids", "start_positions", "end_positions"."""
    return "label" in name or name.endswith("_positions")


def task_head_of(class_name: str) -> str:
    """Return the task head of a model class, such as "SequenceClassification"; "" if it has none."""
    return "ConditionalGeneration" if class_name.endswith("MTModel") else class_name.partition("For")[2]


def common_sizes(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the sizes of a model by the names that servers read, which some architectures do not use."""
    return {name: getattr(config, name) for name in COMMON_SIZES if hasattr(config, name)}


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the number of tokens that a model has positions for; None if they are not limited."""
    rows: int | None = getattr(config, "max_position_embeddings", None)
    family = find_family(config)
    if rows is not None and family is not None and family.positions_follow_padding:
        rows -= (config.pad_token_id or 0) + 1
    return rows


def score_activation(config: PreTrainedConfig) -> str | None:
    """Return the class that CrossEncoder applies to the score, such as "torch.nn.modules.activation.Sigmoid".

    None if `config` names none: then CrossEncoder applies a sigmoid, and nothing else is known of the model.
    """
    field = getattr(config, ACTIVATION_FIELD, None)
    activation = field.get("activation_fn") if isinstance(field, dict) else None
    return activation or getattr(config, OLD_ACTIVATION_FIELD, None)
