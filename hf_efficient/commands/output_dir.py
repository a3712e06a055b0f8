"""What a job may write into its output directory, and the run that owns the directory."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from hf_efficient.commands.config import JobConfig
from hf_efficient.commands.run_files import begin_run, finish_run, foreign_files, has_trained, recover, undo_run
from hf_efficient.commands.run_manifest import LOCK_NAME, MANIFEST_NAME, RunManifest
from hf_efficient.errors import NonFiniteLossError, UserError
from hf_efficient.measurement.report import REPORT_NAME
from hf_efficient.trainer.checkpoints import has_resumable_run

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
TRAINED_IS_KEPT = "What was trained is kept: --resume_from_checkpoint True goes on from it"
DISK_ERROR_TEXTS = ("No space left on device", "File too large", "PytorchStreamWriter failed writing")


def check_output_dir(config: JobConfig, output_dir: Path) -> None:
    """Raise UserError if `output_dir` is not writable, or holds what is to be neither replaced nor resumed."""
    _check_writable(output_dir)
    if not output_dir.exists():
        return
    manifest, resume = RunManifest.load(output_dir), config.training.resume_from_checkpoint
    has_run = manifest is not None or (output_dir / REPORT_NAME).exists()
    if not has_run and resume is True and has_resumable_run(output_dir):
        raise UserError(
            f"output_dir={str(output_dir)!r} has no record of the settings of the run in it ({MANIFEST_NAME}), so it "
            "cannot be resumed: name another directory"
        )
    if not has_run and (output_dir / "config.json").exists():
        raise UserError(
            f"output_dir={str(output_dir)!r} already contains a model that was not written here by this program: name "
            "another directory"
        )
    if has_run and not (resume or config.model.overwrite_output_dir):
        content = "a model" if (output_dir / "config.json").exists() else "an unfinished run"
        raise UserError(
            f"output_dir={str(output_dir)!r} already contains {content}: name another directory, give "
            "--overwrite_output_dir to replace it, or --resume_from_checkpoint True to resume it"
        )
    foreign = [] if resume else foreign_files(output_dir, manifest, config.export.formats)
    if foreign:
        raise UserError(
            f"{foreign[0]} was not written by this program and would be replaced or removed by the run: name another "
            "directory"
        )


def is_finished(output_dir: Path) -> bool:
    """Whether `output_dir` holds the complete result of a run."""
    manifest = RunManifest.load(output_dir)
    return (manifest is None or manifest.stage == "finished") and (output_dir / REPORT_NAME).exists()


def create_output_dir(output_dir: Path) -> None:
    """Create the directory. Raises UserError if that is not possible."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir={str(output_dir)!r} cannot be created: {error.strerror}") from error


def check_same_run(output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Raise UserError if the run in `output_dir` has other settings, another model or other data."""
    manifest = RunManifest.load(output_dir)
    differences = manifest.differences(settings) if manifest is not None else ""
    if differences:
        raise UserError(
            f"the run in output_dir={str(output_dir)!r} cannot be resumed, since {differences}: give what it was "
            "started with, or --overwrite_output_dir to start again"
        )


def recover_output_dir(output_dir: Path) -> None:
    """End what a run that was killed had begun in `output_dir`. Raises UserError if a run in it has not ended."""
    if output_dir.is_dir() and (RunManifest.load(output_dir) is not None or (output_dir / LOCK_NAME).exists()):
        _check_writable(output_dir)
        with _lock(output_dir):
            recover(output_dir)


@contextmanager
def run_in(output_dir: Path, settings: Mapping[str, Any], is_resumed: bool) -> Iterator[None]:
    """Own `output_dir` within the context: lock it, record the run, and move the results of the run before aside.

    They are moved back if the run turns out to be impossible before anything is trained, and removed when it is
    complete. What was trained before an error is kept, to be resumed. Only one process calls this. Raises UserError if
    another run in the directory has not ended.
    """
    with _lock(output_dir):
        try:
            begin_run(output_dir, settings, is_resumed)
            yield
        except UserError as error:
            if (output_dir / REPORT_NAME).exists():  # complete, but not pushed
                finish_run(output_dir)
            elif not is_resumed and not has_trained(output_dir):
                undo_run(output_dir)
            elif not isinstance(error, NonFiniteLossError):  # which names the checkpoint itself
                error.args = (f"{error}. {TRAINED_IS_KEPT}",)
            raise
        except KeyboardInterrupt as error:
            message = "interrupted: the same command with --resume_from_checkpoint True goes on"
            raise KeyboardInterrupt(message) from error
        finish_run(output_dir)


@contextmanager
def explain_write_errors(output_dir: Path) -> Iterator[None]:
    """Within the context, errors of a disk that is full or cannot be written become a UserError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        is_of_disk = getattr(error, "errno", None) in DISK_ERRORS or any(t in str(error) for t in DISK_ERROR_TEXTS)
        if not is_of_disk or isinstance(error, UserError):
            raise
        path = getattr(error, "filename", None) or output_dir
        raise UserError(
            f"{path} cannot be written: {getattr(error, 'strerror', None) or error}. Make room on the disk, and "
            "resume by --resume_from_checkpoint True"
        ) from error


@contextmanager
def _lock(output_dir: Path) -> Iterator[None]:
    lock = FileLock(output_dir / LOCK_NAME, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        writer = RunManifest.load(output_dir)
        process = f" (process {writer.process} on {writer.host})" if writer is not None else ""
        raise UserError(
            f"another run{process} is writing into output_dir={str(output_dir)!r}: wait for its end, or name another "
            "directory"
        ) from error
    try:
        yield
    finally:
        (output_dir / LOCK_NAME).unlink(missing_ok=True)
        lock.release()


def _check_writable(output_dir: Path) -> None:
    """Raise UserError if nothing can be written into `output_dir`, or into the folder that it is to be created in."""
    existing = next(path for path in (output_dir, *output_dir.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=existing):
            return
    except OSError as error:
        what = "is not a writable directory" if existing.exists() else "is a link to nothing"
        raise UserError(f"output_dir={str(output_dir)!r} cannot be written: {existing} {what}") from error
