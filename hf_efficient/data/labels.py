"""Labels of data: their names, and the numbers that a model gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict
from transformers import PreTrainedConfig

from hf_efficient.errors import UserError


def labels_are_numbers(splits: DatasetDict, label: str) -> bool:
    """Whether the label column holds real numbers, as for regression."""
    return str(getattr(_feature(splits, label), "dtype", "")).startswith("float")


def labels_are_lists(splits: DatasetDict, label: str) -> bool:
    """Whether each row has several labels."""
    return any(isinstance(value, list) for value in _labelled(splits, label)["evaluation"][:1][label])


def label_names(splits: DatasetDict, label: str) -> list[str]:
    """Return the names of the classes in the data, in the order of their numbers.

    Raises ValueError: rows are without a label.
    """
    splits = _labelled(splits, label)
    feature = _feature(splits, label)
    _check_labelled(splits, label)
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    values = {value for split in splits.values() for value in _values(split, label)}
    if all(isinstance(value, int) for value in values):
        return [f"LABEL_{index}" for index in range(max(values) + 1)]
    return sorted(str(value) for value in values)


def label_ids(splits: DatasetDict, label: str, config: PreTrainedConfig) -> dict[Any, int] | None:
    """Return the number that the model gives each label value of the data; None where values are numbers already.

    Raises ValueError: rows are without a label, or the data has labels that the model does not.
    """
    splits = _labelled(splits, label)
    feature = _feature(splits, label)
    _check_labelled(splits, label)
    known = {name.lower(): index for name, index in config.label2id.items()}
    values = sorted({value for split in splits.values() for value in _values(split, label)})
    if isinstance(feature, ClassLabel):
        names = [name.lower() for name in feature.names]
        if set(names) == set(known):
            return {index: known[name] for index, name in enumerate(names)}
    if all(isinstance(value, int) for value in values):
        outside = [value for value in values if not 0 <= value < config.num_labels]
        if outside:
            raise UserError(
                f"column {label!r} holds the labels {_some(outside)}, the model has only 0 to {config.num_labels - 1} "
                f"({', '.join(config.id2label.values())}): renumber the data or take a model for its labels"
            )
        return None
    outside = [value for value in values if str(value).lower() not in known]
    if outside:
        raise UserError(
            f"column {label!r} holds the labels {_some(outside)}, which the model does not have: "
            f"it knows {', '.join(config.label2id)}"
        )
    return {value: known[str(value).lower()] for value in values}


def _labelled(splits: DatasetDict, label: str) -> DatasetDict:
    """Return the splits that have the column."""
    return DatasetDict({name: split for name, split in splits.items() if label in split.column_names})


def _feature(splits: DatasetDict, label: str) -> Any:
    """Return what is known of a label, or of each of several in a row."""
    feature = _labelled(splits, label)["evaluation"].features[label]
    return getattr(feature, "feature", feature)


def _values(split: Dataset, label: str) -> Iterator[Any]:
    """Yield the labels of all rows, those of rows with several one by one."""
    for value in split[label]:
        yield from value if isinstance(value, list) else (value,)


def _check_labelled(splits: DatasetDict, label: str) -> None:
    for name, split in splits.items():
        missing = next((value for value in split[label] if value is None or value == -1), _NONE)
        if missing is not _NONE:
            raise UserError(
                f"the {name} data has rows without a label ({missing!r} in column {label!r}): leave them out, "
                "or name another column with --label_column"
            )


_NONE = object()


def _some(values: list[Any]) -> str:
    return ", ".join(map(repr, values[:5])) + (", ..." if len(values) > 5 else "")
