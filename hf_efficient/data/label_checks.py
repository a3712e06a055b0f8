"""What is said about the classes of a dataset before a model is trained on them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from datasets import Dataset
from transformers.utils import logging

from hf_efficient.data.labels import Classes, label_number
from hf_efficient.data.rows import SPLIT_TITLES, list_values
from hf_efficient.errors import UserError

logger = logging.get_logger(__name__)

MAX_COUNTED_CLASSES = 20


def check_classes(classes: Classes, has_head: bool) -> None:
    """Warn of classes that cannot be learned. Raises UserError if a new head (not `has_head`) would have one class."""
    _warn_of_similar_names(classes.names)
    if len(classes.names) < 2 and not has_head:
        raise UserError(
            f"column {classes.column!r} has one class only, {list_values(classes.names)}: there is nothing to tell "
            "apart; give rows of at least two classes, or name another column with --label_column"
        )
    if "train" not in classes.counts:
        return
    train, evaluation = classes.counts["train"], classes.counts["evaluation"]
    if len(train) == 1 and not classes.is_multi_hot:
        logger.warning(f"all training rows have the label {classes.names[next(iter(train))]!r}")
    unlearned = [name for index, name in enumerate(classes.names) if index in evaluation and index not in train]
    if unlearned:
        logger.warning(
            f"no training row has the labels {list_values(unlearned)}, which the evaluation data has: they cannot be "
            "learned"
        )
    unseen = [name for i, name in enumerate(classes.names) if i not in evaluation and i not in train]
    if unseen:
        logger.warning(f"no row has the labels {list_values(unseen)}")


def _warn_of_similar_names(names: Sequence[str]) -> None:
    """Warn of labels that look alike, and of labels that seem to be lists of others."""
    alike: dict[str, list[str]] = {}
    for name in names:
        visible = "".join(each for each in unicodedata.normalize("NFKC", name) if unicodedata.category(each) != "Cf")
        alike.setdefault(" ".join(visible.casefold().split()), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            logger.warning(
                f"the labels {' and '.join(map(ascii, group))} differ only in case, blanks or the encoding of their "
                "characters, and are different classes: write them alike if they mean the same"
            )
    for name in names:
        for separator in "|;,":
            parts = [part.strip() for part in name.split(separator)]
            if len(parts) > 1 and set(parts) <= set(names):
                logger.warning(
                    f"the label {name!r} consists of other labels: give --task multi-label-classification if a row "
                    "can have several"
                )


def check_correlation(evaluation: Dataset, column: str) -> None:
    """Raise UserError if the correlation with the numbers of the evaluation data is not defined."""
    values = [label_number(value) for value in evaluation[column][:]]
    if len(set(values)) < 2:
        count = f"{len(values)} row" if len(values) == 1 else f"the same number, {values[0]}, in all rows"
        raise UserError(
            f"the evaluation data has {count} in column {column!r}: models for regression are compared by "
            "correlation, which needs at least two different numbers"
        )


def describe_classes(classes: Classes, names: Sequence[str], ids: dict[object, int]) -> str:
    """Return "2 classes (negative 40 + 12, positive 24 + 12)": the rows of each in training and evaluation data."""
    name_of = {position: names[ids[value]] for value, position in classes.positions.items() if value in ids}
    order = sorted(name_of, key=lambda position: list(names).index(name_of[position]))
    shown = [
        f"{name_of[position]} {' + '.join(str(counts[position]) for counts in classes.counts.values())}"
        for position in order[:MAX_COUNTED_CLASSES]
    ]
    more = ", ..." if len(order) > MAX_COUNTED_CLASSES else ""
    splits = " + ".join(SPLIT_TITLES.get(name, name) for name in classes.counts)
    return f"{len(names)} classes ({', '.join(shown)}{more}; {splits})"
