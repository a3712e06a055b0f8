"""What a job writes names no folder of the local machine, and no user."""

import shutil

import pytest
from reviews import flags

from hf_efficient.cli import main

USER = "janedoe"


@pytest.mark.parametrize("source", ["files", "folder with a slash", "folder from home"])
def test_nothing_that_is_written_names_the_user_or_a_folder(job_dir, monkeypatch, source):
    home = job_dir / "homes" / USER
    data = home / "films"
    data.mkdir(parents=True)
    shutil.copytree(job_dir / "model", home / "model")
    for name in ("train.csv", "dev.csv"):
        shutil.move(job_dir / name, data / name)
    (home / "link").symlink_to(data)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    given = {
        "files": {"train_file": "~/films/train.csv", "validation_file": data / "dev.csv"},
        "folder with a slash": {"dataset_name": f"{data}/", "train_file": None, "validation_file": None},
        "folder from home": {"dataset_name": "~/films", "train_file": None, "validation_file": None},
    }[source]
    changes = {"model_name_or_path": home / "model", "teacher_name_or_path": "model", "num_train_epochs": 1, **given}
    assert main(["compress", *flags(job_dir, **changes, neurons=0.5)]) == 0
    written = [path for path in (job_dir / "out").rglob("*") if path.is_file()]
    assert {"README.md", "compression_report.json", "config.json"} <= {path.name for path in written}
    for path in written:
        content = path.read_bytes()
        assert USER.encode() not in content, path.name
        assert str(job_dir).encode() not in content, path.name
