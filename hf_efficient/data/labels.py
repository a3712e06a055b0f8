"""Labels of a dataset: the names of its classes, and the ids that a model gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict
from transformers import PreTrainedConfig

from hf_efficient.errors import UserError

MAX_SHOWN_LABELS = 5


def labels_are_numbers(splits: DatasetDict, column: str) -> bool:
    """Whether the label column holds floating-point numbers, as for regression."""
    return str(getattr(_label_feature(splits, column), "dtype", "")).startswith("float")


def labels_are_lists(splits: DatasetDict, column: str) -> bool:
    """Whether each row has a list of labels."""
    return any(isinstance(value, list) for value in _splits_with(splits, column)["evaluation"][:1][column])


def label_names(splits: DatasetDict, column: str) -> list[str]:
    """Return the names of the classes in the data, in the order of their ids.

    Raises UserError if a row has no label.
    """
    splits = _splits_with(splits, column)
    feature = _label_feature(splits, column)
    _check_no_missing_labels(splits, column)
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    values = {value for split in splits.values() for value in _iterate_labels(split, column)}
    if all(isinstance(value, int) for value in values):
        return [f"LABEL_{index}" for index in range(max(values) + 1)]
    return sorted(str(value) for value in values)


def label_ids(splits: DatasetDict, column: str, config: PreTrainedConfig) -> dict[Any, int] | None:
    """Return the model's id of each label value in the data; None if the values are the ids already.

    Names are compared without regard to case. Raises UserError if a row has no label, or a label that `config` lacks.
    """
    splits = _splits_with(splits, column)
    feature = _label_feature(splits, column)
    _check_no_missing_labels(splits, column)
    model_ids = {name.lower(): index for name, index in config.label2id.items()}
    values = sorted({value for split in splits.values() for value in _iterate_labels(split, column)})
    if isinstance(feature, ClassLabel):
        names = [name.lower() for name in feature.names]
        if set(names) == set(model_ids):
            return {index: model_ids[name] for index, name in enumerate(names)}
    if all(isinstance(value, int) for value in values):
        unknown = [value for value in values if not 0 <= value < config.num_labels]
        if unknown:
            raise UserError(
                f"column {column!r} holds the labels {_shorten(unknown)}, the model has only 0 to "
                f"{config.num_labels - 1} ({', '.join(config.id2label.values())}): renumber the labels, or use a "
                "model trained for them"
            )
        return None
    unknown = [value for value in values if str(value).lower() not in model_ids]
    if unknown:
        raise UserError(
            f"column {column!r} holds the labels {_shorten(unknown)}, which the model does not have; its labels are "
            f"{', '.join(config.label2id)}: rename the labels, or use a model trained for them"
        )
    return {value: model_ids[str(value).lower()] for value in values}


def _splits_with(splits: DatasetDict, column: str) -> DatasetDict:
    """Return the splits that have the column."""
    return DatasetDict({name: split for name, split in splits.items() if column in split.column_names})


def _label_feature(splits: DatasetDict, column: str) -> Any:
    """Return the feature of a single label, also if each row has a list of them."""
    feature = _splits_with(splits, column)["evaluation"].features[column]
    return getattr(feature, "feature", feature)


def _iterate_labels(split: Dataset, column: str) -> Iterator[Any]:
    """Yield the labels of all rows; lists of labels are flattened."""
    for value in split[column]:
        yield from value if isinstance(value, list) else (value,)


def _check_no_missing_labels(splits: DatasetDict, column: str) -> None:
    for name, split in splits.items():
        for value in split[column]:
            if value is None or value == -1:
                raise UserError(
                    f"the {name} data has rows without a label ({value!r} in column {column!r}): remove them, or name "
                    "another column with --label_column"
                )


def _shorten(values: list[Any]) -> str:
    return ", ".join(map(repr, values[:MAX_SHOWN_LABELS])) + (", ..." if len(values) > MAX_SHOWN_LABELS else "")
