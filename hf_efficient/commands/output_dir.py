"""What a job may write into its output directory, and what it removes there first and last."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hf_efficient.commands.config import JobConfig
from hf_efficient.errors import UserError
from hf_efficient.exporters.config import EXPORT_FORMATS
from hf_efficient.measurement.report import REPORT_NAME
from hf_efficient.trainer.phases import clear_phases


def check_output_dir(config: JobConfig, output_dir: Path) -> None:
    """Raise UserError if `output_dir` is not writable, or holds a run that is to be neither replaced nor resumed."""
    existing_parent = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    if not existing_parent.is_dir() or not os.access(existing_parent, os.W_OK):
        raise UserError(
            f"output_dir={str(output_dir)!r} cannot be written: {existing_parent} is not a writable directory"
        )
    existing_files = [name for name in ("config.json", REPORT_NAME) if (output_dir / name).exists()]
    unfinished = [path.name for pattern in ("_*", "checkpoint-*") for path in output_dir.glob(pattern)]
    is_handled = config.model.overwrite_output_dir or config.training.resume_from_checkpoint
    if is_handled or not (existing_files or unfinished):
        return
    raise UserError(
        f"output_dir={str(output_dir)!r} already contains {'a model' if existing_files else 'an unfinished run'} "
        f"({', '.join(existing_files or sorted(unfinished))}): name another directory, give --overwrite_output_dir to "
        "replace it, or --resume_from_checkpoint True to resume it"
    )


def create_output_dir(output_dir: Path) -> None:
    """Create the directory. Raises UserError if that is not possible."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir={str(output_dir)!r} cannot be created: {error.strerror}") from error


def clear_output_dir(output_dir: Path, keep: str) -> None:
    """Remove what an earlier run left to resume from, except `keep`, and its report, which marks a finished run.

    The model itself is replaced when the new one is saved; its exports would stay, so they are removed too.
    """
    (output_dir / REPORT_NAME).unlink(missing_ok=True)
    exports = [output_dir / format for format in EXPORT_FORMATS if (output_dir / format).is_dir()]
    leftovers = [path for pattern in ("_*", "checkpoint-*", "*.partial") for path in output_dir.glob(pattern)]
    for path in [*leftovers, *exports]:
        if path.is_file():
            path.unlink()
        elif path.name != keep:
            shutil.rmtree(path)


def remove_run_state(output_dir: Path) -> None:
    """Remove what a finished run kept to be resumed from."""
    clear_phases(output_dir, ignore_errors=True)
    shutil.rmtree(output_dir / "_tuning", ignore_errors=True)
