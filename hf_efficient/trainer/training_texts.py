"""Whether the texts that a sentence embedder is trained on differ enough to learn from."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from datasets import Dataset

MAX_TEXTS, MAX_SHARED = 1000, 0.5  # texts that are looked at; their tokens that two texts share on average


def describe_similar_texts(dataset: Any) -> str:
    """Return a sentence on training texts that are nearly the same; empty if they are not, or are not known.

    Of two texts drawn at random, the tokens that both have are counted, as a share of those that one of them has.
    Usual texts share a tenth.
    """
    if not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names or len(dataset) < 2:
        return ""
    indices = np.random.default_rng(0).permutation(len(dataset))[:MAX_TEXTS]
    tokens = [set(_flatten(ids)) for ids in dataset.select(indices)["input_ids"]]
    shared = float(np.mean([len(one & other) / max(1, len(one | other)) for one, other in pairwise(tokens)]))
    if shared <= MAX_SHARED:
        return ""
    return (
        f"the training texts are nearly the same: two of them share {shared:.0%} of their tokens, so the embeddings "
        "of other texts may collapse; train on texts about more than one subject"
    )


def _flatten(ids: Iterable[Any]) -> list[int]:
    """Return the tokens of a row, which may have several texts."""
    return [token for each in ids for token in (each if isinstance(each, list) else [each])]
