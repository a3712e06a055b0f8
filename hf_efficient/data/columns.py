"""Which columns of a dataset hold the texts and the labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import DatasetDict

from hf_efficient.data.config import DataConfig, file_format
from hf_efficient.errors import UserError

# Formats whose first line has the names of the columns.
TABLE_FORMATS = ("csv", "tsv")
MAX_NAME_CHARACTERS = 60
# Words in the names of columns of labels.
LABEL_WORDS = {
    *("label", "labels", "class", "category", "sentiment", "score", "rating", "stars", "target", "judgment", "tag"),
    *("tags", "intent", "emotion", "topic", "answer", "answers", "polarity", "gold", "relatedness", "entailment"),
}


@dataclass(frozen=True)
class Columns:
    """The columns of texts and labels; `label` is None if there are no labels."""

    texts: tuple[str, ...]
    label: str | None


def find_columns(
    splits: DatasetDict,
    config: DataConfig,
    text_columns: Sequence[tuple[str, ...]],
    label_columns: Sequence[str] | None,
    needs_labels: bool = True,
) -> Columns:
    """Return the columns named by `config`, or else those with a common name.

    | argument | meaning |
    | --- | --- |
    | text_columns | tuples of column names that are read together; the first tuple of existing columns is used |
    | label_columns | names of label columns, the first existing one is used; None if the task has no label column |
    | needs_labels | the training data must have labels; if not, only the evaluation data is searched for them |

    Raises UserError if a column is missing; the message lists the existing columns and the flag to set.
    """
    train, evaluation = splits["train"].column_names, splits["evaluation"].column_names
    labelled = train if needs_labels else evaluation
    _check_named_columns(config, train, [*train, *labelled])
    if config.text_column:
        texts: tuple[str, ...] | None = tuple(name for name in (config.text_column, config.text_pair_column) if name)
    else:
        texts = next((names for names in text_columns if set(names) <= set(train)), None)
    label = None
    if label_columns is not None:
        common_name = next((name for name in label_columns if name in labelled), None)
        label = config.label_column or config.summary_column or common_name
    if texts is None or (label is None and label_columns is not None and needs_labels):
        flags = "--text_column (and --text_pair_column)" if texts is None else "--label_column"
        kind = "text" if texts is None else "label"
        names = _list_names(train)
        likely = [] if texts is None else _likely_labels(train, texts)
        advice = f", such as {' or '.join(likely)}" if likely else _advise(config, train)
        raise UserError(f"cannot tell which of the columns {names} is the {kind} column: give {flags}{advice}")
    missing = [name for name in (*texts, label) if name is not None and name not in evaluation]
    if missing:
        raise UserError(f"the evaluation data lacks the column {', '.join(missing)} of the training data")
    return Columns(texts, label)


def _check_named_columns(config: DataConfig, text_names: Sequence[str], label_names: Sequence[str]) -> None:
    for flag, names in (
        ("text_column", text_names),
        ("text_pair_column", text_names),
        ("label_column", label_names),
        ("summary_column", label_names),
    ):
        column = getattr(config, flag)
        if column is not None and column not in names:
            known = _list_names(text_names) + _advise(config, text_names)
            raise UserError(f"{flag}={column!r} is not a column of the data, which has {known}")


def _list_names(names: Sequence[str]) -> str:
    shown = [name if len(name) <= MAX_NAME_CHARACTERS else f"{name[:MAX_NAME_CHARACTERS]}..." for name in names]
    return ", ".join(shown)


def _likely_labels(names: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Return the columns whose names say that they may hold labels."""
    others = [name for name in names if name not in texts]
    return [name for name in others if set(re.findall("[a-z]+", name.casefold())) & LABEL_WORDS]


def _advise(config: DataConfig, names: Sequence[str]) -> str:
    """Return what to do if the first row of a table was read as its header."""
    if len(names) == 1 and " " in names[0]:
        return (
            ". A file with a word and its tag on each line must be written as JSON lines such as "
            '{"tokens": ["a", "b"], "ner_tags": ["O", "O"]}'
        )
    tables = [path for path in config.files.values() if file_format(path) in TABLE_FORMATS]
    if not tables:
        return ""
    separator = "," if file_format(tables[0]) == "csv" else "<TAB>"
    return f". If these are cells of the first row, the file has no header: add the line `text{separator}label`"
