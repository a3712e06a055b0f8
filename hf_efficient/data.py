"""Data sets: from files or from the Hub to splits of rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError
from transformers.utils import logging

logger = logging.get_logger(__name__)

READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
HELD_OUT = 0.1
# Fields that say where rows come from and how many are taken; the others say how a row becomes tokens.
FILES = ("train_file", "validation_file", "test_file")
SOURCES = ("dataset_name", "dataset_config_name", *FILES, "max_train_samples", "max_eval_samples")


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
    summary_column: str | None = field(default=None, metadata={"help": "Column of the summary to be written."})
    source_lang: str | None = field(default=None, metadata={"help": "Language to translate from: en."})
    target_lang: str | None = field(default=None, metadata={"help": "Language to translate into: de."})
    source_prefix: str | None = field(
        default=None, metadata={"help": "What stands before each text, such as 'translate English to German: '."}
    )
    max_target_length: int = field(
        default=128, metadata={"help": "Longer texts to be written are cut to this many tokens."}
    )
    max_length: int = field(default=128, metadata={"help": "Longer texts are cut to this many tokens."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use this many training rows, drawn by seed."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first so many evaluation rows."})

    def __post_init__(self) -> None:
        for name in ("max_length", "max_target_length", "max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        files = [name for name in FILES if getattr(self, name)]
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
