"""How many tokens a model reads, and how many texts are longer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedConfig
from transformers.utils import logging

from hf_efficient.data.config import DataConfig
from hf_efficient.models.inputs import max_positions

if TYPE_CHECKING:
    from hf_efficient.tasks.task import RowEncoder, Task

logger = logging.get_logger(__name__)

NO_LIMIT = 1_000_000  # tokenizers without a maximum say 1e30


def bound_max_length(data: DataConfig, tokenizer: Any, configs: Iterable[PreTrainedConfig]) -> DataConfig:
    """Return `data` with a `max_length` that the tokenizer and all models allow."""
    limits = [tokenizer.model_max_length, *(max_positions(config) for config in configs)]
    limit = min((int(value) for value in limits if value is not None and value < NO_LIMIT), default=NO_LIMIT)
    if data.max_length <= limit:
        return data
    logger.warning(
        f"max_length={data.max_length}, but the model reads only {limit} tokens: longer texts are cut there"
    )
    return dataclasses.replace(data, max_length=limit)


def longest_text(rows: Dataset, encoded: Dataset, task: Task, encoder: RowEncoder) -> tuple[int, int]:
    """Return the tokens of the longest text, and how many rows have a text that is longer than `max_length`.

    | argument | meaning |
    | --- | --- |
    | rows | the rows of the data |
    | encoded | the same rows as token ids, truncated to `max_length` |
    """
    if len(encoded) != len(rows):  # windows, which hold all of a text
        return max(map(_token_count, encoded["input_ids"])), 0
    return _longest(rows, encoded, task, encoder, "input_ids", "max_length")


def longest_target(rows: Dataset, encoded: Dataset, task: Task, encoder: RowEncoder) -> tuple[int, int]:
    """Return the tokens of the longest target of a task that generates text, and how many are truncated."""
    return _longest(rows, encoded, task, encoder, "labels", "max_target_length")


def _longest(
    rows: Dataset, encoded: Dataset, task: Task, encoder: RowEncoder, column: str, limit_name: str
) -> tuple[int, int]:
    limit = getattr(encoder.data, limit_name)
    lengths = [_token_count(ids) for ids in encoded[column]]
    full = [index for index, length in enumerate(lengths) if length >= limit]
    if not full:
        return max(lengths), 0
    no_limit: dict[str, Any] = {limit_name: NO_LIMIT}
    unlimited = dataclasses.replace(encoder, data=dataclasses.replace(encoder.data, **no_limit))
    true_lengths = [
        _token_count(ids)
        for start in range(0, len(full), 1000)
        for ids in task.encode(rows.select(full[start : start + 1000])[:], unlimited)[column]
    ]
    return int(np.max(true_lengths)), sum(length > limit for length in true_lengths)


def _token_count(ids: Any) -> int:
    """Return the tokens of a row, of its longest text if it has several."""
    return max(map(len, ids), default=0) if ids and isinstance(ids[0], list) else len(ids)
