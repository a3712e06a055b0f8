"""The ids of the classes of a task in a model, and what is said about the data before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import DatasetDict

from hf_efficient.data.label_checks import describe_classes
from hf_efficient.data.label_names import is_default_name
from hf_efficient.data.labels import Classes
from hf_efficient.data.rows import SPLIT_TITLES
from hf_efficient.errors import UserError
from hf_efficient.tasks.input_length import longest_target, longest_text
from hf_efficient.tasks.task import RowEncoder, Task


def find_class_ids(task: Task, classes: Classes, model_names: Sequence[str]) -> dict[Any, int]:
    """Return the model's id of each label. Raises UserError if the model contradicts the data, or if names lack."""
    if task.names_classes and all(map(is_default_name, model_names)):
        raise UserError(
            f"column {classes.column!r} holds numbers without names ({', '.join(classes.names[:5])}, ...): "
            f"{task.name} must know which is O, so write the names of the tags (O, B-PER, ...) instead of numbers, or "
            "id2label into the config.json of the model"
        )
    return classes.ids(model_names)


def describe_data(
    task: Task,
    classes: Classes | None,
    model_names: Sequence[str],
    splits: DatasetDict,
    tokenized_splits: DatasetDict,
    encoder: RowEncoder,
) -> str:
    """Return one line that says how the data was understood."""
    columns = encoder.columns
    parts = [f"texts in {' and '.join(map(repr, columns.texts))}"]
    if columns.label is not None:
        kind = "numbers" if task.problem_type == "regression" else "labels"
        parts.append(f"{kind} in {columns.label!r}")
    if classes is not None and encoder.label_to_id is not None:
        parts.append(describe_classes(classes, model_names, dict(encoder.label_to_id)))
    train = tokenized_splits.get("train")
    if task.has_optional_labels and train and "labels" in train.column_names and isinstance(train[0]["labels"], list):
        parts.append("training rows are texts with their positives (contrastive loss)")
    longest, truncated, rows = 0, 0, 0
    for name, split in splits.items():
        length, count = longest_text(split, tokenized_splits[name], task, encoder)
        longest, truncated, rows = max(longest, length), truncated + count, rows + len(split)
    parts.append(f"longest text {longest} tokens")
    parts.append(f"{truncated / rows:.1%} of the texts truncated to {encoder.data.max_length}")
    if task.generates:
        parts.append(_describe_targets(task, splits, tokenized_splits, encoder))
    return f"{task.name}: {'; '.join(parts)}"


def _describe_targets(task: Task, splits: DatasetDict, tokenized_splits: DatasetDict, encoder: RowEncoder) -> str:
    """Return how long the targets are, and how many are truncated; metrics compare with what is left of them."""
    longest, counts = 0, []
    for name, encoded in tokenized_splits.items():
        if "labels" in encoded.column_names:
            length, count = longest_target(splits[name], encoded, task, encoder)
            longest = max(longest, length)
            counts.append(f"{count / len(encoded):.1%} of the {SPLIT_TITLES.get(name, name)} targets")
    limit = encoder.data.max_target_length
    return f"longest target {longest} tokens; {' and '.join(counts)} truncated to {limit} (--max_target_length)"
