"""Reading a dataset from files or from the Hub."""

from __future__ import annotations

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from transformers.utils import logging

from hf_efficient.data.config import DataConfig
from hf_efficient.data.files import DataFile
from hf_efficient.data.folders import find_data_files, is_saved_dataset
from hf_efficient.data.reader import read_files
from hf_efficient.errors import UserError

logger = logging.get_logger(__name__)

VALIDATION_FRACTION = 0.1
# What `load_dataset` raises for a missing, unreadable or unreachable dataset.
LOADING_ERRORS = (DatasetsError, ValueError, OSError)


def load_splits(config: DataConfig, seed: int, plain_text: bool = False) -> DatasetDict:
    """Return the splits "train" and "evaluation".

    "evaluation" is the test file if given, else the validation data, else the test split, else a tenth of the training
    rows, which are held out. With `plain_text` a txt file without tabs has one text in each line, and no header.

    Raises UserError if there is no training data, or if the dataset or a file is missing, empty or cannot be read.
    """
    splits = _load_dataset(config) if config.dataset_name else _load_files(config, plain_text)
    if "train" not in splits:
        raise UserError(f"there is no training data, only {', '.join(splits)}: give --train_file")
    train = splits["train"]
    evaluation = next((splits[name] for name in _evaluation_split_names(config) if name in splits), None)
    if evaluation is None:
        if len(train) < 2:
            raise UserError(
                f"the training data has {len(train)} row, which leaves none to evaluate on: give --validation_file"
            )
        logger.warning(
            f"no validation data given: {VALIDATION_FRACTION:.0%} of the training rows are held out for evaluation"
        )
        train, evaluation = train.train_test_split(test_size=VALIDATION_FRACTION, seed=seed).values()
    if config.max_train_samples is not None and config.max_train_samples < len(train):
        train = train.shuffle(seed=seed).select(range(config.max_train_samples))
    if config.max_eval_samples is not None:
        evaluation = evaluation.select(range(min(config.max_eval_samples, len(evaluation))))
    for name, split in (("training", train), ("evaluation", evaluation)):
        if len(split) == 0:
            raise UserError(f"the {name} data has no rows")
    return DatasetDict(train=train, evaluation=evaluation)


def _evaluation_split_names(config: DataConfig) -> tuple[str, ...]:
    # The test splits of Hub datasets often have no labels; a test file of the user has them.
    return ("test", "validation") if config.test_file else ("validation", "validation_matched", "test")


def _load_dataset(config: DataConfig) -> DatasetDict:
    """Return the splits of a dataset on the Hub or in a folder of the local machine."""
    folder = config.folder
    source = str(config.dataset_name if folder is None else folder)
    files = find_data_files(folder) if folder is not None and config.dataset_config_name is None else {}
    if files:
        return read_files(files)
    try:
        if folder is not None and is_saved_dataset(folder):
            saved = load_from_disk(source)
            return DatasetDict(train=saved) if isinstance(saved, Dataset) else saved
        return load_dataset(source, config.dataset_config_name)
    except LOADING_ERRORS as error:
        name = "/".join(part for part in (config.dataset_name, config.dataset_config_name) if part)
        raise UserError(
            f"dataset {name!r} cannot be loaded: {_reason(error)}. Check --dataset_name, --dataset_config_name and "
            "the connection, or give --train_file"
        ) from error


def _load_files(config: DataConfig, plain_text: bool) -> DatasetDict:
    if not config.is_given:
        raise UserError("no data given: give --dataset_name, or --train_file and --validation_file")
    config.check_files()
    return read_files({split: [DataFile(path, f"{split}_file", plain_text)] for split, path in config.files.items()})


def _reason(error: BaseException) -> str:
    """Return what went wrong; `datasets` keeps the reason of "an error occurred" in the cause."""
    return str(error.__cause__ or error).strip().rstrip(".")
