"""The files of a run in its output directory: which are its own, and how those of the run before give way to them."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_efficient.commands.run_manifest import MANIFEST_NAME, RunManifest
from hf_efficient.exporters.config import EXPORT_FORMATS
from hf_efficient.files.replacing import CONFIG_NAME, finish_replacing, remove
from hf_efficient.measurement.report import PICTURE_NAME, REPORT_NAME
from hf_efficient.trainer.checkpoints import has_trained_run
from hf_efficient.trainer.phases import PHASE_NAME

logger = logging.get_logger(__name__)

# Holds the results of the run before until those of the new one are complete.
PREVIOUS_NAME = ".hf_efficient_previous"
CARD_NAME = "README.md"
REPORT_FILES = (REPORT_NAME, CARD_NAME, PICTURE_NAME)
_SUFFIX = r"(\.replaced)?(\.partial)?"
# What a run needs to be resumed, and nobody after its end.
TEMPORARY_NAME = re.compile(rf"{PHASE_NAME.pattern}|_tuning{_SUFFIX}|_(push|trial)-\w+")
# All that a run writes besides the files of its model, which replace those of the model before when it is saved.
OWN_NAME = re.compile(
    rf"{TEMPORARY_NAME.pattern}|checkpoint-\d+|(_teacher|_student|{'|'.join(EXPORT_FORMATS)}){_SUFFIX}"
    rf"|compression_report(\.partial)?\.(json|png)|README(\.partial)?\.md"
)


def own_files(output_dir: Path, manifest: RunManifest | None) -> list[Path]:
    """Return the files that the run of `manifest` wrote, besides those of the model; without one those of a report."""
    if manifest is None:
        has_report = (output_dir / REPORT_NAME).exists()
        return [path for path in map(output_dir.joinpath, REPORT_FILES) if has_report and path.is_file()]
    if manifest.stage == "finished":
        return [path for path in map(output_dir.joinpath, manifest.files) if _is_file_in(output_dir, path)]
    foreign = {output_dir / name for name in manifest.foreign}
    return [path for path in _files_with_own_names(output_dir) if path not in foreign]


def foreign_files(output_dir: Path, manifest: RunManifest | None, formats: Iterable[str]) -> list[Path]:
    """Return the files that no run of this program wrote, and that a run with these exports would replace."""
    unused = set(EXPORT_FORMATS) - set(formats)
    files = set(_files_with_own_names(output_dir)) - set(own_files(output_dir, manifest))
    return sorted(path for path in files if path.relative_to(output_dir).parts[0] not in unused)


def begin_run(output_dir: Path, settings: Mapping[str, Any], is_resumed: bool) -> None:
    """Record the run, and move the results of the run before aside unless that one is resumed."""
    manifest, previous = RunManifest.load(output_dir), output_dir / PREVIOUS_NAME
    if is_resumed and manifest is not None:
        dataclasses.replace(manifest, stage="running", process=os.getpid()).save(output_dir)
        return
    files = own_files(output_dir, manifest)
    if manifest is not None and manifest.stage == "running" and previous.exists():
        _remove_files(output_dir, files)  # of a run that was killed while it replaced the one in `previous`
    elif files:
        if manifest is not None:
            manifest.save(previous)
        _move(output_dir, previous, files)
    foreign = tuple(str(path.relative_to(output_dir)) for path in _files_with_own_names(output_dir))
    RunManifest(settings, foreign=foreign).save(output_dir)


def has_trained(output_dir: Path) -> bool:
    """Whether the run in `output_dir` has trained something that it can be resumed from."""
    folders = (output_dir, output_dir / "_tuning")
    return any(map(has_trained_run, folders)) or (output_dir / "_teacher" / CONFIG_NAME).is_file()


def undo_run(output_dir: Path) -> None:
    """Remove what a run wrote that turned out to be impossible, and move the results of the run before back."""
    manifest, previous = RunManifest.load(output_dir), output_dir / PREVIOUS_NAME
    _remove_files(output_dir, own_files(output_dir, manifest))
    if previous.exists() and manifest is not None:
        dataclasses.replace(manifest, stage="undone").save(output_dir)
        _move_back(output_dir)
    else:
        remove(output_dir / MANIFEST_NAME)


def finish_run(output_dir: Path) -> None:
    """Record the files of a run that is complete, and remove what it was resumed from and what it replaced."""
    manifest, previous = RunManifest.load(output_dir), output_dir / PREVIOUS_NAME
    remove(_garbage(output_dir))
    if previous.exists():
        previous.rename(_garbage(output_dir))
    if manifest is not None:
        files = tuple(str(path.relative_to(output_dir)) for path in own_files(output_dir, manifest))
        dataclasses.replace(manifest, stage="finished", files=files).save(output_dir)
    _sweep(output_dir)


def recover(output_dir: Path) -> None:
    """End what a process that was killed had begun: the move of a model, of earlier results, or the last removal."""
    finish_replacing(output_dir)
    manifest = RunManifest.load(output_dir)
    if manifest is not None and manifest.stage == "undone":
        _move_back(output_dir)
    _sweep(output_dir)


def _sweep(output_dir: Path) -> None:
    """Remove what nobody needs after the end of a run; what cannot be removed stays, with a warning."""
    manifest = RunManifest.load(output_dir)
    try:
        remove(_garbage(output_dir))
        if manifest is not None and manifest.stage == "finished":
            files = own_files(output_dir, manifest)
            named = [file for file in files if TEMPORARY_NAME.fullmatch(file.relative_to(output_dir).parts[0])]
            _remove_files(output_dir, named)
    except OSError as error:
        logger.warning(f"{error.filename} of an earlier run cannot be removed: {error.strerror}")


def _garbage(output_dir: Path) -> Path:
    return output_dir / f"{PREVIOUS_NAME}.partial"


def _move_back(output_dir: Path) -> None:
    """Move the results of the run before back, its record last."""
    previous = output_dir / PREVIOUS_NAME
    files = [path for path in previous.rglob("*") if path.is_file() or path.is_symlink()]
    _move(previous, output_dir, sorted(files, key=lambda path: path.name == MANIFEST_NAME))
    manifest = RunManifest.load(output_dir)
    if manifest is not None and manifest.stage == "undone":  # the run before had no record
        remove(output_dir / MANIFEST_NAME)
    remove(previous)


def _files_with_own_names(output_dir: Path) -> Iterator[Path]:
    """Yield the files and links in `output_dir` whose name, or that of their folder, is one that runs write."""
    for entry in sorted(output_dir.iterdir()):
        if OWN_NAME.fullmatch(entry.name):
            if entry.is_dir() and not entry.is_symlink():
                yield from sorted(path for path in entry.rglob("*") if path.is_file() or path.is_symlink())
            else:
                yield entry


def _is_file_in(output_dir: Path, path: Path) -> bool:
    """Whether `path` is a file or link in `output_dir` that is not reached by a link to another folder."""
    return (path.is_file() or path.is_symlink()) and path.parent.resolve().is_relative_to(output_dir.resolve())


def _move(source: Path, target: Path, files: list[Path]) -> None:
    for file in files:
        destination = target / file.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        file.replace(destination)
    _remove_empty_folders(source, files)


def _remove_files(output_dir: Path, files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
    _remove_empty_folders(output_dir, files)


def _remove_empty_folders(root: Path, files: list[Path]) -> None:
    folders = {parent for file in files for parent in file.parents if root in parent.parents}
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
