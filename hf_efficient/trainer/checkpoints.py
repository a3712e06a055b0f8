"""Folders that an interruption leaves complete or absent, and what checkpoints hold in addition to the model."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from hf_efficient.errors import UserError
from hf_efficient.files.replacing import replacing

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
    with replacing(folder) as temporary:
        for part in (model, processing_class):
            if part is not None:
                part.save_pretrained(temporary)
        if save_state is not None:
            save_state(temporary)


def has_resumable_run(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint or a phase that a run can be resumed from."""
    return last_complete_checkpoint(folder) is not None or any(folder.glob("_round-*/config.json"))


def has_trained_run(folder: Path) -> bool:
    """Whether `folder` holds more than the model that a first phase, which closes gates or trains, starts from."""
    later_phases = [path for path in folder.glob("_round-*/config.json") if path.parent.name != "_round-0"]
    places = (folder, *folder.glob("_round-0"))
    return bool(later_phases) or any(last_complete_checkpoint(place) is not None for place in places)


def find_damaged_file(folder: Path) -> Path | None:
    """Return a file of weights, of the optimizer or of settings in `folder` that is cut short or overwritten, or None.

    The sizes that a file of weights states are compared with its own; the values themselves are not read.
    """
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
            elif path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
                return path
        except (OSError, ValueError, SafetensorError):
            return path
    return None


def is_complete(folder: Path, last_file: str) -> bool:
    """Whether `folder` has `last_file`, which is written last, and no damaged file; otherwise there is a warning."""
    damaged = find_damaged_file(folder) if (folder / last_file).exists() else folder / last_file
    if damaged is not None:
        logger.warning(f"{folder} is skipped: {damaged.name} is missing or damaged")
    return damaged is None


def last_complete_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint in `folder` that is complete, or None.

    `Trainer` writes the state of the training last: a process that was killed before leaves a checkpoint without it.
    """
    steps = {path: numbered(path, PREFIX_CHECKPOINT_DIR) for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    newest_first = sorted((path for path in steps if steps[path] is not None), key=lambda path: -int(steps[path] or 0))
    return next((str(path) for path in newest_first if is_complete(path, TRAINER_STATE_NAME)), None)


def numbered(path: Path, prefix: str) -> int | None:
    """Return N if the name of `path` is `prefix`-N, and None otherwise."""
    match = re.fullmatch(rf"{prefix}-(\d+)", path.name)
    return int(match[1]) if match else None


def resolve_checkpoint(resume: str | bool | None, folder: Path) -> str | None:
    """Return the checkpoint to resume from: the given one, the last complete one in `folder` for True, or None.

    Raises UserError if the given one does not exist or is damaged.
    """
    if not isinstance(resume, str):
        return last_complete_checkpoint(folder) if resume else None
    if not Path(resume).is_dir():
        raise UserError(f"resume_from_checkpoint={resume!r} is no folder: give a checkpoint, or True for the last one")
    if damaged := find_damaged_file(Path(resume)):
        raise UserError(
            f"{damaged} is damaged, so the training cannot be resumed from it: give an earlier checkpoint, or True "
            "for the last complete one"
        )
    return resume
