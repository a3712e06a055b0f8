"""Where the data is and which of its columns are which."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_efficient.errors import UserError
from hf_efficient.field_checks import check_field_types

# Suffixes of data files, before .gz if they are compressed, and the format of each.
FILE_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}
FILE_FIELDS = ("train_file", "validation_file", "test_file")
# Fields that select the rows and name them; the others say how rows are encoded.
SOURCE_FIELDS = (
    "dataset_name",
    "dataset_config_name",
    "dataset_title",
    *FILE_FIELDS,
    "max_train_samples",
    "max_eval_samples",
)


@dataclass(frozen=True)
class DataConfig:
    """Where the data is and which of its columns are which.

    Raises UserError if a value has another type, a number is not positive, or a Hub dataset and files are given
    together.
    """

    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub, such as nyu-mll/glue."})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the Hub dataset, such as sst2."}
    )
    dataset_title: str | None = field(
        default=None,
        metadata={
            "help": "Name of the dataset in the report and the card. Default: its name on the Hub, or the name of the "
            "data file."
        },
    )
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Training data: a csv, tsv, json, jsonl or parquet file. A txt file is a tab-separated "
            "table, or for sentence-similarity a text in each line; each may be compressed, as .csv.gz."
        },
    )
    validation_file: str | None = field(default=None, metadata={"help": "Data to evaluate on, in the same formats."})
    test_file: str | None = field(
        default=None, metadata={"help": "Data to evaluate on instead of the validation file, in the same formats."}
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column of the text. Default: the first column with a common name."}
    )
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of the second text of a pair."})
    label_column: str | None = field(
        default=None, metadata={"help": "Column of the labels. Default: the first column with a common name."}
    )
    summary_column: str | None = field(default=None, metadata={"help": "Column of the target summaries."})
    source_lang: str | None = field(default=None, metadata={"help": "Language to translate from, such as en."})
    target_lang: str | None = field(default=None, metadata={"help": "Language to translate into, such as de."})
    source_prefix: str | None = field(
        default=None,
        metadata={"help": "Prefix added to every source text, such as 'translate English to German: '."},
    )
    max_target_length: int = field(
        default=128, metadata={"help": "Maximum length of target texts in tokens; longer ones are truncated."}
    )
    max_length: int = field(
        default=128, metadata={"help": "Maximum length of input texts in tokens; longer ones are truncated."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use at most this many training rows, sampled with the seed."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use at most this many evaluation rows, the first ones."}
    )

    def __post_init__(self) -> None:
        check_field_types(self)
        for name in ("max_length", "max_target_length", "max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if self.dataset_name and self.files:
            fields = ", ".join(f"{split}_file" for split in self.files)
            raise UserError(f"dataset_name and {fields} cannot be given together: choose one source")

    @property
    def files(self) -> dict[str, Path]:
        """The files that are given, by split: "train", "validation", "test"."""
        paths = {name.removesuffix("_file"): getattr(self, name) for name in FILE_FIELDS}
        return {split: Path(path).expanduser() for split, path in paths.items() if path}

    @property
    def folder(self) -> Path | None:
        """The folder that `dataset_name` names; None if it names a dataset on the Hub."""
        path = Path(self.dataset_name).expanduser() if self.dataset_name else None
        return path if path is not None and path.is_dir() else None

    @property
    def is_given(self) -> bool:
        """Whether a dataset is given, by name or by files."""
        return bool(self.dataset_name or self.files)

    @property
    def title(self) -> str:
        """The name of the dataset in reports, without folders of the local machine."""
        if self.dataset_title:
            return self.dataset_title
        if self.dataset_name:
            name = self.dataset_name if self.folder is None else _folder_title(self.folder)
            return "/".join(part for part in (name, self.dataset_config_name) if part)
        return next((path.name for path in self.files.values()), "data")

    @property
    def evaluation_title(self) -> str:
        """The name of the data that is evaluated on, where that is another dataset than the training data."""
        path = self.files.get("test") or self.files.get("validation")
        return self.title if self.dataset_title or path is None else path.name

    def public_values(self) -> dict[str, Any]:
        """Return the fields for reports, without folders of the local machine; `dataset_name` is a name on the Hub."""
        names = {f"{split}_file": path.name for split, path in self.files.items()}
        dataset_name = self.dataset_name if self.folder is None else None
        return {**dataclasses.asdict(self), **names, "dataset_name": dataset_name}

    def check_files(self) -> None:
        """Raise UserError if a file does not exist, is empty, or has a suffix that is not in `FILE_FORMATS`."""
        if self.dataset_name and Path(self.dataset_name).expanduser().is_file():
            raise UserError(
                f"dataset_name={self.dataset_name!r} is a file: give it as --train_file, --validation_file or "
                "--test_file"
            )
        for split, path in self.files.items():
            if path.is_dir():
                raise UserError(
                    f"{split}_file={str(path)!r} is a directory: give a file, or the directory as --dataset_name"
                )
            if not path.is_file():
                raise UserError(f"{split}_file={str(path)!r} does not exist: give the path of a file")
            if file_format(path) is None:
                raise UserError(
                    f"{split}_file={path.name!r} has an unknown suffix: give one of {', '.join(FILE_FORMATS)}, "
                    "each also with .gz"
                )
            if not path.stat().st_size:
                raise UserError(f"{split}_file={path.name!r} is empty: give a file with rows")


def _folder_title(folder: Path) -> str:
    """Return the name of a folder, but not that of the home folder, which is the user's."""
    path = Path(os.path.abspath(folder))
    return "data" if path == Path.home() else path.name


def file_format(path: Path) -> str | None:
    """Return the format of a file, by its suffix before .gz; None if it is unknown."""
    name = path.name.lower()
    return FILE_FORMATS.get(Path(name.removesuffix(".gz")).suffix)
