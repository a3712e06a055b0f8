"""Data sets: from files or from the Hub to splits of rows."""

from __future__ import annotations

from pathlib import Path

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError
from transformers.utils import logging

from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError

logger = logging.get_logger(__name__)

FILE_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
VALIDATION_FRACTION = 0.1


def load_splits(config: DataConfig, seed: int) -> DatasetDict:
    """Return "train" and "evaluation"; the latter is the test split, else validation, else a tenth of train held out.

    Raises ValueError: no data was named, there is no training data, or a file is missing, empty or of an unknown kind.
    """
    if config.dataset_name:
        splits = load_dataset(config.dataset_name, config.dataset_config_name)
    else:
        splits = _load_files(config)
    if "train" not in splits:
        raise UserError(f"there is no training data, only {', '.join(splits)}: give --train_file")
    train = splits["train"]
    evaluation = next((splits[name] for name in _evaluation_split_names(config) if name in splits), None)
    if evaluation is None:
        logger.warning(
            f"no validation data was given: {VALIDATION_FRACTION:.0%} of the training rows are held out for the report"
        )
        train, evaluation = train.train_test_split(test_size=VALIDATION_FRACTION, seed=seed).values()
    if config.max_train_samples is not None and config.max_train_samples < len(train):
        train = train.shuffle(seed=seed).select(range(config.max_train_samples))
    if config.max_eval_samples is not None:
        evaluation = evaluation.select(range(min(config.max_eval_samples, len(evaluation))))
    for name, split in (("training", train), ("evaluation", evaluation)):
        if not len(split):
            raise UserError(f"the {name} data holds no row")
    return DatasetDict(train=train, evaluation=evaluation)


def _evaluation_split_names(config: DataConfig) -> tuple[str, ...]:
    # Test splits of data sets on the Hub are often without labels; one that the user names is meant.
    return ("test", "validation") if config.test_file else ("validation", "validation_matched", "test")


def _load_files(config: DataConfig) -> DatasetDict:
    files = {"train": config.train_file, "validation": config.validation_file, "test": config.test_file}
    named = {split: Path(file) for split, file in files.items() if file}
    if not named:
        raise UserError("no data was named: give --dataset_name, or --train_file and --validation_file")
    loaded = {}
    for split, path in named.items():
        if not path.is_file():
            raise UserError(f"{split}_file={str(path)!r} does not exist")
        if path.suffix not in FILE_FORMATS:
            raise UserError(f"{split}_file={path.name!r} is of an unknown kind: give one of {', '.join(FILE_FORMATS)}")
        if not path.stat().st_size:
            raise UserError(f"{split}_file={path.name!r} is empty")
        options = {"sep": "\t"} if path.suffix == ".tsv" else {}
        try:
            loaded[split] = load_dataset(
                FILE_FORMATS[path.suffix], data_files={split: str(path)}, split=split, **options
            )
        except (ValueError, DatasetGenerationError) as error:
            raise UserError(f"{split}_file={path.name!r} holds no row that can be read: {error}") from error
    return DatasetDict(loaded)
