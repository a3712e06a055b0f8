"""Labels of a dataset, however they are written: the classes that they name, and the ids that a model gives these."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import ClassLabel, DatasetDict

from hf_efficient.data.label_names import find_id, is_default_name
from hf_efficient.data.label_values import is_missing, parse_list, parse_number, parse_truth
from hf_efficient.data.rows import SPLIT_TITLES, describe_row, list_values
from hf_efficient.errors import UserError

IGNORED_TAG = -100  # a tag of a word that is neither learned nor counted
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
NO_LABEL = -1  # in all rows of a split, or where classes have names
ReadLabels = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset.

    | field | meaning |
    | --- | --- |
    | column | the column of the labels |
    | names | the names of the classes: in the order that the data gives, by value, or by the alphabet |
    | positions | the position in `names` of each value of the column, or of each entry of its vectors |
    | numbers | the number of each class where labels are numbers or truth values, else None |
    | counts | by split, how many labels each class has, by its position |
    | has_names | the data has names for its numbers |
    | is_multi_hot | each row is a vector with an entry for each class, which is 1 if the row has the class |
    """

    column: str
    names: tuple[str, ...]
    positions: Mapping[Any, int]
    numbers: tuple[int, ...] | None
    counts: Mapping[str, Counter[int]]
    has_names: bool = False
    is_multi_hot: bool = False

    @property
    def used(self) -> list[int]:
        """The positions of the classes that a row has."""
        return sorted({position for counts in self.counts.values() for position in counts})

    def ids(self, model_names: Sequence[str]) -> dict[Any, int]:
        """Return the id of each value in a model whose classes have these names, in the order of their ids.

        Classes are found by name, without regard to case. Numbers without names, and numbers for a model whose classes
        have no names, are ids. Raises UserError if the model and the data contradict each other.
        """
        by_name = [self._find_id(position, model_names) for position in range(len(self.names))]
        used = set(self.used) if not self.is_multi_hot else set(range(len(self.names)))
        if all(by_name[position] is not None for position in used):
            return {v: by_name[p] for v, p in self.positions.items() if by_name[p] is not None}  # type: ignore[misc]
        are_ids = self._is_unnamed or all(map(is_default_name, model_names))
        fits = len(self.names) == len(model_names) if self.is_multi_hot else True
        if are_ids and fits and self.numbers is not None:
            ids = {value: self.numbers[position] for value, position in self.positions.items() if position in used}
            if all(0 <= index < len(model_names) for index in ids.values()):
                return ids
        raise UserError(self._contradiction(model_names, [p for p in sorted(used) if by_name[p] is None]))

    @property
    def _is_unnamed(self) -> bool:
        return self.numbers is not None and (not self.has_names or all(map(is_default_name, self.names)))

    def _find_id(self, position: int, model_names: Sequence[str]) -> int | None:
        """Return the id of a class by its name, or by its number where a model has numbers for names."""
        names = [self.names[position]]
        if self._is_unnamed and self.numbers is not None:
            names += [str(self.numbers[position]), f"LABEL_{self.numbers[position]}"]
        return next((index for name in names if (index := find_id(name, model_names)) is not None), None)

    def _contradiction(self, model_names: Sequence[str], unknown: Sequence[int]) -> str:
        if self.is_multi_hot and len(self.names) != len(model_names):
            held = f"vectors of {len(self.names)} entries"
        elif self.numbers is not None and not self.has_names:
            outside = [p for p in unknown if not 0 <= self.numbers[p] < len(model_names)] or unknown
            held = f"the labels {list_values(self.numbers[position] for position in outside)}"
        else:
            held = f"the labels {list_values(self.names[position] for position in unknown)}"
        return (
            f"column {self.column!r} holds {held}, which the model does not have; the data has "
            f"{len(self.names)} labels: {list_values(self.names)}; the model has {len(model_names)}, 0 to "
            f"{len(model_names) - 1}: {', '.join(model_names)}. Rename the labels, or use a model trained for them"
        )


def label_kind(splits: DatasetDict, column: str) -> Literal["classes", "lists", "numbers"]:
    """Return what each row has: one class, a list of classes, or a number of which some have a fraction.

    Raises UserError if most rows have such numbers and some have not, or if decimal commas may also separate classes.
    """
    values = [
        value for _, split in _splits_with(splits, column) for value in split[column][:] if not is_missing(value)
    ]
    if any(isinstance(value, dict) for value in values):
        return "classes"
    if values and all(parse_list(value) is not None for value in values):
        return "lists"
    if isinstance(_label_feature(splits, column), ClassLabel) or any(isinstance(value, list) for value in values):
        return "classes"
    numbers = {value: parse_number(value) for value in set(values)}
    if None in numbers.values():
        _check_words_among_numbers(splits, column, values, numbers)
        return "classes"
    return "classes" if all(isinstance(number, int) for number in numbers.values()) else "numbers"


def _check_words_among_numbers(
    splits: DatasetDict, column: str, values: Sequence[Any], numbers: Mapping[Any, int | float | None]
) -> None:
    """Raise UserError if a column that has a word is nevertheless one of numbers; the message names its row."""
    fraction = next((value for value, number in numbers.items() if isinstance(number, float)), None)
    num_words = sum(numbers[value] is None for value in values)
    has_commas = all(number is not None or _DECIMAL_COMMA.fullmatch(str(value)) for value, number in numbers.items())
    if not has_commas and (fraction is None or 2 * num_words >= len(values)):
        return
    for name, split in _splits_with(splits, column):
        for index, value in enumerate(split[column][:]):
            if not is_missing(value) and numbers[value] is None:
                row = f"{describe_row(split, index, name)} has {value!r} in column {column!r}"
                if has_commas:
                    raise UserError(
                        f"{row}, which may be a number or a list of classes: write numbers as 2.5, or give --task "
                        "multi-label-classification, or --task text-classification if it is a name"
                    )
                raise UserError(
                    f"{row}, and most rows have numbers such as {fraction!r}: write a number, or give --task "
                    "text-classification if they are names"
                )


def find_classes(
    splits: DatasetDict, column: str, read_labels: ReadLabels | None = None, may_be_vectors: bool = False
) -> Classes:
    """Return the classes of the labels in `column`.

    | argument | meaning |
    | --- | --- |
    | read_labels | returns the labels of a row that has several; None: each row has one |
    | may_be_vectors | rows of equal length with nothing but 0 and 1 are vectors over the classes |

    Raises UserError if a row has no label; the message names it.
    """
    check_no_missing_labels(splits, column)
    feature = _label_feature(splits, column)
    rows = {
        name: [read_labels(value) if read_labels else [value] for value in split[column][:]]
        for name, split in _splits_with(splits, column)
    }
    for name, lists in rows.items():
        for index, labels in enumerate(lists):
            if any(map(is_missing, labels)) or (isinstance(feature, ClassLabel) and NO_LABEL in labels):
                raise UserError(_missing_label(splits, name, index, column))
            if any(isinstance(label, list | dict) for label in labels):
                raise UserError(
                    f"{describe_row(splits[name], index, name)} has {splits[name][index][column]!r} in column "
                    f"{column!r}, which is not a label: one name or number is needed, or, with --task "
                    "multi-label-classification, a list of them"
                )
    every_row = [labels for lists in rows.values() for labels in lists]
    if may_be_vectors:
        if _are_vectors(every_row, has_names=isinstance(feature, ClassLabel)):
            return _vector_classes(column, rows, feature)
        _check_no_broken_vectors(splits, column, rows)
    values = {label for row in every_row for label in row if label != IGNORED_TAG}
    names, positions, numbers = _name_classes(values, feature)
    counts = {
        name: Counter(positions[label] for labels in lists for label in labels if label != IGNORED_TAG)
        for name, lists in rows.items()
    }
    return Classes(column, names, positions, numbers, counts, has_names=isinstance(feature, ClassLabel))


def check_numbers(splits: DatasetDict, column: str) -> None:
    """Raise UserError if a label is not a number; the message names its row."""
    check_no_missing_labels(splits, column)
    for name, split in _splits_with(splits, column):
        for index, value in enumerate(split[column][:]):
            if label_number(value) is None:
                raise UserError(
                    f"{describe_row(split, index, name)} has {value!r} in column {column!r}: regression needs a "
                    "number such as 2.5 in every row, and a model with one output does not know classes"
                )


def label_number(value: Any) -> float | None:
    """Return a label of regression as a number; None if it is none."""
    truth = parse_truth(value)
    number = parse_number(value) if truth is None else truth
    return None if number is None else float(number)


def check_no_missing_labels(splits: DatasetDict, column: str) -> None:
    """Raise UserError if a row has no label; the message names it."""
    for name, split in _splits_with(splits, column):
        values = split[column][:]
        for index, value in enumerate(values):
            if is_missing(value):
                raise UserError(_missing_label(splits, name, index, column))
        if values and all(not isinstance(value, list) and parse_number(value) == NO_LABEL for value in values):
            raise UserError(
                f"the {SPLIT_TITLES.get(name, name)} data has rows without a label (-1 in column {column!r}, in all "
                "of them): give data with labels, or name another column with --label_column"
            )


def _missing_label(splits: DatasetDict, name: str, index: int, column: str) -> str:
    value = splits[name][index][column]
    return (
        f"{describe_row(splits[name], index, name)} has no label ({value!r} in column {column!r}): "
        "add the label, remove the row, or name another column with --label_column"
    )


def _name_classes(labels: set[Any], feature: Any) -> tuple[tuple[str, ...], dict[Any, int], tuple[int, ...] | None]:
    """Return the names of the classes, the position of each label in them, and their numbers if labels are numbers."""
    if isinstance(feature, ClassLabel):
        count = len(feature.names)
        return tuple(feature.names), {index: index for index in range(count)}, tuple(range(count))
    has_truths = any(parse_truth(label) is not None for label in labels)
    values: dict[Any, Any] = {label: entry_is_set(label) if has_truths else parse_number(label) for label in labels}
    numbers: tuple[int, ...] | None = None
    if all(isinstance(value, int) for value in values.values()):
        numbers = tuple(sorted({int(value) for value in values.values()}))
        has_gaps = numbers != tuple(range(len(numbers)))
        names = [str(bool(n)) if has_truths else str(n) if has_gaps else f"LABEL_{n}" for n in numbers]
        places: dict[Any, int] = {number: position for position, number in enumerate(numbers)}
    else:
        values = {label: str(label).strip() for label in labels}
        names = sorted(set(values.values()))
        places = {name: position for position, name in enumerate(names)}
    return tuple(names), {label: places[value] for label, value in values.items()}, numbers


def _are_vectors(rows: Sequence[Sequence[Any]], has_names: bool) -> bool:
    """Whether rows of labels are vectors of 0 and 1 with one entry for each class, rather than lists of ids."""
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or lengths == {0} or any(entry_is_set(value) is None for row in rows for value in row):
        return False
    if any(len(set(row)) < len(row) for row in rows) or any(type(v) in (bool, float) for row in rows for v in row):
        return True
    # Two entries that differ in every row: as ids each row would have both classes.
    return lengths == {2} and (not has_names or any(row[0] > row[1] for row in rows))


def _check_no_broken_vectors(splits: DatasetDict, column: str, rows: Mapping[str, Sequence[Sequence[Any]]]) -> None:
    for name, lists in rows.items():
        for index, labels in enumerate(lists):
            if len(set(labels)) < len(labels) or any(type(parse_number(label)) is float for label in labels):
                raise UserError(
                    f"{describe_row(splits[name], index, name)} has {list(labels)} in column {column!r}, which is "
                    "neither a list of different labels nor, in every row, a vector of as many 0 and 1 as there are "
                    "classes"
                )


def entry_is_set(value: Any) -> bool | None:
    """Return whether the entry of a vector says that a row has the class; None if it is neither 0 nor 1."""
    truth = parse_truth(value)
    if truth is not None:
        return truth
    number = parse_number(value)
    return bool(number) if number in (0, 1) else None


def _vector_classes(column: str, rows: Mapping[str, Sequence[Sequence[Any]]], feature: Any) -> Classes:
    length = len(next(row for lists in rows.values() for row in lists))
    has_names = isinstance(feature, ClassLabel) and len(feature.names) == length
    names = tuple(feature.names) if has_names else tuple(f"LABEL_{index}" for index in range(length))
    counts = {
        name: Counter(index for row in lists for index, value in enumerate(row) if entry_is_set(value))
        for name, lists in rows.items()
    }
    places = tuple(range(length))
    return Classes(column, names, dict(enumerate(places)), places, counts, has_names, is_multi_hot=True)


def _splits_with(splits: DatasetDict, column: str) -> list[tuple[str, Any]]:
    return [(name, split) for name, split in splits.items() if column in split.column_names]


def _label_feature(splits: DatasetDict, column: str) -> Any:
    """Return the feature of a single label, also if each row has a list of them."""
    feature = _splits_with(splits, column)[-1][1].features[column]
    return getattr(feature, "feature", feature)
