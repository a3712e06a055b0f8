"""Data sets: from files or from the Hub to tokenized splits whose labels are the model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_efficient.tasks import Task

logger = logging.get_logger(__name__)

READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
HELD_OUT = 0.1


@dataclass(frozen=True)
class DataConfig:
    """Where the data is, and which of its columns are which."""

    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the Hub."})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Its configuration, such as sst2 of glue."}
    )
    train_file: str | None = field(default=None, metadata={"help": "csv, tsv, json, jsonl or parquet."})
    validation_file: str | None = field(default=None, metadata={"help": "The rows that the report is measured on."})
    test_file: str | None = field(default=None, metadata={"help": "If given, the report is measured on it instead."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the text; found by its usual names."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of the second text of a pair."})
    label_column: str | None = field(
        default=None, metadata={"help": "Column of the labels; found by its usual names."}
    )
    max_length: int = field(default=128, metadata={"help": "Longer texts are cut to this many tokens."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use this many training rows, drawn by seed."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first so many evaluation rows."})

    def __post_init__(self) -> None:
        for name in ("max_length", "max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        files = [name for name in ("train_file", "validation_file", "test_file") if getattr(self, name)]
        if self.dataset_name and files:
            raise ValueError(f"dataset_name and {', '.join(files)} cannot be given together: choose one source")

    @property
    def named(self) -> bool:
        """Whether there is any data."""
        return bool(self.dataset_name or self.train_file or self.validation_file or self.test_file)

    @property
    def label(self) -> str:
        """What to call the data in a report, without the path of this machine."""
        if self.dataset_name:
            return "/".join(name for name in (self.dataset_name, self.dataset_config_name) if name)
        return Path(self.train_file or self.validation_file or self.test_file or "data").resolve().parent.name


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads; `label` is None where there are no labels to learn from."""

    texts: tuple[str, ...]
    label: str | None


def load_splits(config: DataConfig, seed: int) -> DatasetDict:
    """Returns "train" and "evaluation"; the latter is the test split, else validation, else a tenth of train held out.

    Raises ValueError: no data was named, there is no training data, or a file is missing, empty or of an unknown kind.
    """
    if config.dataset_name:
        splits = load_dataset(config.dataset_name, config.dataset_config_name)
    else:
        splits = _load_files(config)
    if "train" not in splits:
        raise ValueError(f"there is no training data, only {', '.join(splits)}: give --train_file")
    train = splits["train"]
    evaluation = next((splits[name] for name in _evaluation_order(config) if name in splits), None)
    if evaluation is None:
        logger.warning(
            f"no validation data was given: {HELD_OUT:.0%} of the training rows are held out for the report"
        )
        train, evaluation = train.train_test_split(test_size=HELD_OUT, seed=seed).values()
    if config.max_train_samples is not None and config.max_train_samples < len(train):
        train = train.shuffle(seed=seed).select(range(config.max_train_samples))
    if config.max_eval_samples is not None:
        evaluation = evaluation.select(range(min(config.max_eval_samples, len(evaluation))))
    for name, split in (("training", train), ("evaluation", evaluation)):
        if not len(split):
            raise ValueError(f"the {name} data holds no row")
    return DatasetDict(train=train, evaluation=evaluation)


def _evaluation_order(config: DataConfig) -> tuple[str, ...]:
    # Test splits of data sets on the Hub are often without labels; one that the user names is meant.
    return ("test", "validation") if config.test_file else ("validation", "validation_matched", "test")


def _load_files(config: DataConfig) -> DatasetDict:
    files = {"train": config.train_file, "validation": config.validation_file, "test": config.test_file}
    named = {split: Path(file) for split, file in files.items() if file}
    if not named:
        raise ValueError("no data was named: give --dataset_name, or --train_file and --validation_file")
    loaded = {}
    for split, path in named.items():
        if not path.is_file():
            raise ValueError(f"{split}_file={str(path)!r} does not exist")
        if path.suffix not in READERS:
            raise ValueError(f"{split}_file={path.name!r} is of an unknown kind: give one of {', '.join(READERS)}")
        if not path.stat().st_size:
            raise ValueError(f"{split}_file={path.name!r} is empty")
        options = {"sep": "\t"} if path.suffix == ".tsv" else {}
        try:
            loaded[split] = load_dataset(READERS[path.suffix], data_files={split: str(path)}, split=split, **options)
        except (ValueError, DatasetGenerationError) as error:
            raise ValueError(f"{split}_file={path.name!r} holds no row that can be read: {error}") from error
    return DatasetDict(loaded)


def find_columns(splits: DatasetDict, task: Task, config: DataConfig, needs_labels: bool = True) -> Columns:
    """Returns the columns that the flags name, or that have usual names.

    Without `needs_labels` the training data may have none: only the evaluation data is read for them then.

    Raises ValueError: a column is missing; the message lists those that are there and the flags that name one.
    """
    there = splits["train"].column_names
    everywhere = [*there, *(() if needs_labels else splits["evaluation"].column_names)]
    for flag in ("text_column", "text_pair_column", "label_column"):
        column = getattr(config, flag)
        if column is not None and column not in (everywhere if flag == "label_column" else there):
            raise ValueError(f"{flag}={column!r} is no column of the data, which has {', '.join(there)}")
    if config.text_column:
        texts: tuple[str, ...] | None = tuple(c for c in (config.text_column, config.text_pair_column) if c)
    else:
        texts = next((names for names in task.text_columns if set(names) <= set(there)), None)
    labelled = splits["train"] if needs_labels else splits["evaluation"]
    label = config.label_column or next((name for name in task.label_columns if name in labelled.column_names), None)
    needs_labels = needs_labels and task.labelled
    label = label if task.labelled else None
    if texts is None or (label is None and needs_labels):
        missing = "--text_column (and --text_pair_column)" if texts is None else "--label_column"
        raise ValueError(f"cannot tell which of the columns {', '.join(there)} is which: give {missing}")
    absent = [c for c in (*texts, label) if c is not None and c not in splits["evaluation"].column_names]
    if absent:
        raise ValueError(f"the evaluation data lacks the column {', '.join(absent)} of the training data")
    return Columns(texts, label)


def labels_are_numbers(splits: DatasetDict, label: str) -> bool:
    """Whether the label column holds real numbers, as for regression."""
    return str(getattr(_labelled(splits, label)["evaluation"].features[label], "dtype", "")).startswith("float")


def _labelled(splits: DatasetDict, label: str) -> DatasetDict:
    """Returns the splits that have the column."""
    return DatasetDict({name: split for name, split in splits.items() if label in split.column_names})


def label_names(splits: DatasetDict, label: str) -> list[str]:
    """Returns the names of the classes in the data, in the order of their numbers.

    Raises ValueError: rows are without a label.
    """
    splits = _labelled(splits, label)
    feature = splits["evaluation"].features[label]
    _check_labelled(splits, label)
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    values = {value for split in splits.values() for value in split.unique(label)}
    if all(isinstance(value, int) for value in values):
        return [f"LABEL_{index}" for index in range(max(values) + 1)]
    return sorted(str(value) for value in values)


def label_numbers(splits: DatasetDict, label: str, config: PreTrainedConfig) -> dict[Any, int] | None:
    """Returns the number that the model gives each label value of the data; None where values are numbers already.

    Raises ValueError: rows are without a label, or the data has labels that the model does not.
    """
    splits = _labelled(splits, label)
    feature = splits["evaluation"].features[label]
    _check_labelled(splits, label)
    known = {name.lower(): index for name, index in config.label2id.items()}
    values = sorted({value for split in splits.values() for value in split.unique(label)})
    if isinstance(feature, ClassLabel):
        names = [name.lower() for name in feature.names]
        if set(names) == set(known):
            return {index: known[name] for index, name in enumerate(names)}
    if all(isinstance(value, int) for value in values):
        outside = [value for value in values if not 0 <= value < config.num_labels]
        if outside:
            raise ValueError(
                f"column {label!r} holds the labels {_some(outside)}, the model has only 0 to {config.num_labels - 1} "
                f"({', '.join(config.id2label.values())}): renumber the data or take a model for its labels"
            )
        return None
    outside = [value for value in values if str(value).lower() not in known]
    if outside:
        raise ValueError(
            f"column {label!r} holds the labels {_some(outside)}, which the model does not have: "
            f"it knows {', '.join(config.label2id)}"
        )
    return {value: known[str(value).lower()] for value in values}


def _check_labelled(splits: DatasetDict, label: str) -> None:
    for name, split in splits.items():
        unlabelled = [value for value in split.unique(label) if value is None or value == -1]
        if unlabelled:
            raise ValueError(
                f"the {name} data has rows without a label ({unlabelled[0]!r} in column {label!r}): leave them out, "
                "or name another column with --label_column"
            )


def _some(values: list[Any]) -> str:
    return ", ".join(map(repr, values[:5])) + (", ..." if len(values) > 5 else "")


def tokenize(
    splits: DatasetDict,
    columns: Columns,
    numbers: Mapping[Any, int] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    token_types: bool | None = None,
) -> DatasetDict:
    """Returns the splits as token ids, not padded yet, with `labels` where there are any.

    `token_types` asks for types of tokens; None: where the tokenizer's model reads them.
    """

    def convert(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = (batch[name] for name in columns.texts)
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_token_type_ids=token_types)
        if columns.label in batch:
            labels = batch[columns.label]
            encoded["labels"] = labels if numbers is None else [numbers[value] for value in labels]
        return dict(encoded)

    def apply(split: Dataset, name: str) -> Dataset:
        return split.map(convert, batched=True, remove_columns=split.column_names, desc=f"tokenizing {name}")

    return DatasetDict({name: apply(split, name) for name, split in splits.items()})
