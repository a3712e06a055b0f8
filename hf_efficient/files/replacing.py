"""Files, folders and models that are written beside their place and moved there when they are complete."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Holds a complete model while its files take the place of those in the folder around it.
NEW_MODEL_NAME = ".hf_efficient_new_model"
CONFIG_NAME = "config.json"
# Weights; `from_pretrained` would prefer some of those that were saved before to the new ones.
WEIGHTS_NAME = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write a file or folder to, which takes the place of `path` when the context ends.

    An error or an interruption leaves `path` as it was. Other processes never see a part of it.
    """
    temporary = path.with_name(f"{path.stem}.partial{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(temporary)
    try:
        yield temporary
        _put(temporary, path)
    except BaseException:
        remove(temporary)
        raise


@contextmanager
def replacing_model(folder: Path) -> Iterator[Path]:
    """Yield a folder to save a model into, whose files take the place of those of the model in `folder`.

    A process that is killed leaves the model before in `folder`, or the new one in `folder`, or the new one in the
    folder `NEW_MODEL_NAME` in it and none in `folder`, never files of both. `finish_replacing` ends the last case.
    """
    finish_replacing(folder)
    with replacing(folder / NEW_MODEL_NAME) as temporary:
        temporary.mkdir()
        yield temporary
    finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Give the complete model in `NEW_MODEL_NAME` its place in `folder`, if a process was killed while it did so.

    The config goes first and comes last: without it `from_pretrained` loads nothing.
    """
    new = folder / NEW_MODEL_NAME
    if new.is_dir():
        names = sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
        config = Path(CONFIG_NAME)
        if config in names:
            (folder / config).unlink(missing_ok=True)
        for path in list(folder.iterdir()):
            if WEIGHTS_NAME.fullmatch(path.name) and Path(path.name) not in names:
                path.unlink()
        for name in sorted(names, key=lambda name: name == config):
            _link(new / name, folder / name)
    remove(folder / f"{NEW_MODEL_NAME}.partial")
    if new.is_dir():
        new.rename(folder / f"{NEW_MODEL_NAME}.partial")
        remove(folder / f"{NEW_MODEL_NAME}.partial")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put(temporary: Path, path: Path) -> None:
    """Move what was written to its place."""
    if not temporary.is_dir():
        temporary.replace(path)
        return
    replaced = path.with_name(f"{path.stem}.replaced.partial{path.suffix}")
    remove(replaced)
    try:
        if path.exists() or path.is_symlink():
            path.rename(replaced)
        temporary.rename(path)
    except BaseException:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        raise
    if replaced.is_symlink():
        replaced.unlink()
    shutil.rmtree(replaced, ignore_errors=True)


def _link(source: Path, path: Path) -> None:
    """Let `path` be the file `source` in one step, by a copy where the file system has no links."""
    with replacing(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
    temporary.unlink(missing_ok=True)  # which `replace` leaves where `path` was that file already
