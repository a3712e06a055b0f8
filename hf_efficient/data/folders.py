"""Datasets in folders of the local machine: which file belongs to which split."""

from __future__ import annotations

import re
from pathlib import Path

from hf_efficient.data.config import file_format
from hf_efficient.data.files import DataFile

# Words in the name of a file or its folder, and the split that they mean, as `datasets` reads them.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write.
SAVED_DATASET_FILES = ("state.json", "dataset_dict.json")
# Files that describe a dataset rather than hold its rows.
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "readme.txt", "license.txt", "requirements.txt"}


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((folder / name).is_file() for name in SAVED_DATASET_FILES)


def find_data_files(folder: Path) -> dict[str, list[DataFile]]:
    """Return the data files of a folder by split; without a split in any name, all are training data.

    Empty where `datasets` has to read it: `save_to_disk` wrote it, or its README.md says which files make which split.
    """
    readme = folder / "README.md"
    if is_saved_dataset(folder) or (readme.is_file() and "data_files" in readme.read_text("utf-8", errors="replace")):
        return {}
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if file_format(path) and path.is_file() and path.name.lower() not in DESCRIPTIONS
        if not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    ]
    splits: dict[str, list[DataFile]] = {}
    for path in paths:
        split = _find_split(path.relative_to(folder))
        if split is not None:
            splits.setdefault(split, []).append(DataFile(path, "dataset_name"))
    if splits or not paths:
        return splits
    return {"train": [DataFile(path, "dataset_name") for path in paths]}


def _find_split(path: Path) -> str | None:
    """Return the split that the name of a file means, or else that of the folder nearest to it."""
    for part in reversed(path.parts):
        words = set(re.findall(r"[a-z]+", part.lower()))
        for split, names in SPLIT_WORDS.items():
            if words & set(names):
                return split
    return None
