"""Folders that an interruption leaves whole or absent, and those that it did not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)


def save_atomically(model: PreTrainedModel, folder: Path, processing_class: Any = None) -> None:
    """Save `model` into `folder` so that an interruption leaves the folder whole or absent."""
    beside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    for part in (model, processing_class):
        if part is not None:
            part.save_pretrained(beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def has_resumable_run(folder: Path) -> bool:
    """Whether `folder` holds anything that a run goes on from."""
    return last_complete_checkpoint(folder) is not None or any(folder.glob("_round-*/config.json"))


def last_complete_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint in `folder` that was written to its end, None where there is none.

    `Trainer` writes the state of the training last: a process that was killed before leaves a checkpoint without it.
    """
    whole: dict[int, Path] = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            whole[int(path.name.rpartition("-")[2])] = path
        except (OSError, ValueError):
            logger.warning(f"{path} was not written to its end: it is left out")
    return str(whole[max(whole)]) if whole else None
