"""Where the data is and which of its columns are which."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from transformers.utils import logging

from hf_efficient.errors import UserError

logger = logging.get_logger(__name__)
# Fields that say where rows come from and how many are taken; the others say how a row becomes tokens.
FILE_FIELDS = ("train_file", "validation_file", "test_file")
SOURCE_FIELDS = ("dataset_name", "dataset_config_name", *FILE_FIELDS, "max_train_samples", "max_eval_samples")


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
                raise UserError(f"{name}={value} must be at least 1")
        files = [name for name in FILE_FIELDS if getattr(self, name)]
        if self.dataset_name and files:
            raise UserError(f"dataset_name and {', '.join(files)} cannot be given together: choose one source")

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
