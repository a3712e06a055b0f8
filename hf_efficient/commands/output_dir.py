"""What a job may write into its output directory, what it moves aside there first, and what it removes last."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from hf_efficient.commands.config import JobConfig
from hf_efficient.commands.run_manifest import LOCK_NAME, MANIFEST_NAME, RunManifest
from hf_efficient.errors import NonFiniteLossError, UserError
from hf_efficient.exporters.config import EXPORT_FORMATS
from hf_efficient.measurement.report import REPORT_NAME
from hf_efficient.trainer.checkpoints import has_resumable_run
from hf_efficient.trainer.phases import PHASE_NAME, clear_phases

# Holds the results of the run before until those of the new one are complete.
PREVIOUS_NAME = ".hf_efficient_previous"
# Names of what a run writes besides the model, its card and its picture, which are replaced when the new one is saved.
OWN_NAME = re.compile(
    rf"{PHASE_NAME.pattern}|checkpoint-\d+|{re.escape(REPORT_NAME)}(\.partial)?"
    rf"|(_teacher|_tuning|_student|{'|'.join(EXPORT_FORMATS)})(\.replaced)?(\.partial)?"
)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
DISK_ERROR_TEXTS = ("No space left on device", "PytorchStreamWriter failed writing")


def check_output_dir(config: JobConfig, output_dir: Path) -> None:
    """Raise UserError if `output_dir` is not writable, or holds what is to be neither replaced nor resumed."""
    existing_parent = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    if not existing_parent.is_dir() or not _is_writable(existing_parent):
        raise UserError(
            f"output_dir={str(output_dir)!r} cannot be written: {existing_parent} is not a writable directory"
        )
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
    own_files = _own_files(output_dir, manifest)
    for path in (output_dir / format for format in config.export.formats):
        if path.exists() and not resume and not any(path in file.parents for file in own_files):
            raise UserError(
                f"{path} was not written by this program and would be replaced by the export: name another directory"
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


@contextmanager
def run_in(output_dir: Path, settings: Mapping[str, Any], is_resumed: bool) -> Iterator[None]:
    """Own `output_dir` within the context: lock it, record the run, and move the results of the run before aside.

    They are moved back if the run turns out to be impossible, and removed when it is complete. Only one process calls
    this. Raises UserError if another run in the directory has not ended.
    """
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
        _begin(output_dir, settings, is_resumed)
        try:
            yield
        except UserError as error:
            if (output_dir / REPORT_NAME).exists():  # complete, but not pushed
                _finish(output_dir)
            elif not is_resumed and not isinstance(error, NonFiniteLossError):  # that can be resumed
                _restore(output_dir)
            raise
        _finish(output_dir)
    finally:
        (output_dir / LOCK_NAME).unlink(missing_ok=True)
        lock.release()


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


def _is_writable(folder: Path) -> bool:
    """Try to write into `folder`."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _begin(output_dir: Path, settings: Mapping[str, Any], is_resumed: bool) -> None:
    manifest, previous = RunManifest.load(output_dir), output_dir / PREVIOUS_NAME
    if is_resumed and manifest is not None:
        dataclasses.replace(manifest, stage="running", process=os.getpid()).save(output_dir)
        return
    own_files = _own_files(output_dir, manifest)
    if manifest is not None and manifest.stage == "running" and previous.exists():
        _remove(output_dir, own_files)  # of a run that was killed while it replaced the one in `previous`
    elif own_files:
        shutil.rmtree(previous, ignore_errors=True)
        _move(output_dir, previous, [*own_files, output_dir / MANIFEST_NAME])
    foreign = tuple(str(path.relative_to(output_dir)) for path in _all_files(output_dir))
    RunManifest(settings, foreign=foreign).save(output_dir)


def _restore(output_dir: Path) -> None:
    """Remove what a run wrote that turned out to be impossible, and move the results of the run before back."""
    _remove(output_dir, [*_own_files(output_dir, RunManifest.load(output_dir)), output_dir / MANIFEST_NAME])
    previous = output_dir / PREVIOUS_NAME
    if previous.exists():
        _move(previous, output_dir, [path for path in previous.rglob("*") if path.is_file()])
        shutil.rmtree(previous)


def _finish(output_dir: Path) -> None:
    """Record the files of a run that is complete, and remove what it was resumed from and what it replaced."""
    clear_phases(output_dir, ignore_errors=True)
    shutil.rmtree(output_dir / "_tuning", ignore_errors=True)
    manifest = RunManifest.load(output_dir)
    if manifest is not None:
        files = tuple(str(path.relative_to(output_dir)) for path in _own_files(output_dir, manifest))
        dataclasses.replace(manifest, stage="finished", files=files).save(output_dir)
    shutil.rmtree(output_dir / PREVIOUS_NAME, ignore_errors=True)


def _own_files(output_dir: Path, manifest: RunManifest | None) -> list[Path]:
    """Return the files that the run of `manifest` wrote, besides the model, its card and its picture."""
    if manifest is None:
        return [path for path in (output_dir / REPORT_NAME,) if path.exists()]
    if manifest.stage == "finished":
        return [path for path in map(output_dir.joinpath, manifest.files) if path.is_file()]
    foreign = {output_dir / name for name in manifest.foreign}
    return [
        path
        for path in _all_files(output_dir)
        if path not in foreign and OWN_NAME.fullmatch(path.relative_to(output_dir).parts[0])
    ]


def _all_files(output_dir: Path) -> list[Path]:
    hidden = (MANIFEST_NAME, LOCK_NAME, PREVIOUS_NAME)
    files = (path for path in output_dir.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(path for path in files if path.relative_to(output_dir).parts[0] not in hidden)


def _move(source: Path, target: Path, files: list[Path]) -> None:
    for file in files:
        if file.exists():
            destination = target / file.relative_to(source)
            destination.parent.mkdir(parents=True, exist_ok=True)
            file.replace(destination)
    _remove_empty_folders(source, files)


def _remove(output_dir: Path, files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
    _remove_empty_folders(output_dir, files)


def _remove_empty_folders(root: Path, files: list[Path]) -> None:
    folders = {parent for file in files for parent in file.parents if root in parent.parents}
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
