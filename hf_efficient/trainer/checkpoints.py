"""Folders that an interruption leaves complete or absent, and what checkpoints hold in addition to the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)


class CheckpointState(Protocol):
    """A part of the trainer whose state is saved in checkpoints."""

    def save_state(self, folder: Path) -> None:
        """Write the state into `folder`; every process that saves calls it."""

    def load_state(self, folder: Path) -> None:
        """Read what `save_state` wrote."""


@contextmanager
def without_secrets(args: TrainingArguments, folder: Path) -> Iterator[None]:
    """Keep the Hub token out of what is saved into `folder`, and the pickle of `args` too."""
    token, args.hub_token = args.hub_token, None
    try:
        yield
    finally:
        args.hub_token = token
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)


def save_atomically(
    model: PreTrainedModel,
    folder: Path,
    processing_class: Any = None,
    save_state: Callable[[Path], None] | None = None,
) -> None:
    """Save `model` into `folder` so that an interruption leaves the folder complete or absent.

    `processing_class`, such as a tokenizer, and what `save_state` writes are saved with it.
    """
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    for part in (model, processing_class):
        if part is not None:
            part.save_pretrained(temporary)
    if save_state is not None:
        save_state(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def has_resumable_run(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint or a phase that a run can be resumed from."""
    return last_complete_checkpoint(folder) is not None or any(folder.glob("_round-*/config.json"))


def last_complete_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint in `folder` that was written completely, or None.

    `Trainer` writes the state of the training last: a process that was killed before leaves a checkpoint without it.
    """
    complete: dict[int, Path] = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            complete[int(path.name.rpartition("-")[2])] = path
        except (OSError, ValueError):
            logger.warning(f"{path} is incomplete and is skipped")
    return str(complete[max(complete)]) if complete else None


def resolve_checkpoint(resume: str | bool | None, folder: Path) -> str | None:
    """Return the checkpoint to resume from: the given one, the last complete one in `folder` for True, or None."""
    if isinstance(resume, str):
        return resume
    return last_complete_checkpoint(folder) if resume else None
