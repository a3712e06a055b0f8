"""A job that is killed and started again."""

import pytest
from killing import killed_when
from reviews import flags
from safetensors.torch import load_file

from hf_efficient.cli import main
from hf_efficient.commands.output_dir import is_finished
from hf_efficient.files.replacing import NEW_MODEL_NAME

SETTINGS = {"heads": 0.5, "neurons": 0.5, "rounds": 2, "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
SETTINGS |= {"scheme": "int8_dynamic", "disable_tqdm": True, "per_device_train_batch_size": 8}
# The first operation on such a path is the last of the run.
MOMENTS = {
    "a round is written": "_round-1.partial",
    "a checkpoint of the second round is written": "_round-2/checkpoint-2/config.json",
    "the student is moved to its place": "_student",
    "the new model is being moved to its place": f"{NEW_MODEL_NAME}/model.safetensors",
    "the report is written": "compression_report.partial.json",
    "leftovers are removed": "_round-2/config.json",
}


def command(job_dir, folder, *more):
    return ["compress", *flags(job_dir, **SETTINGS, output_dir=folder), *more]


def weights(folder):
    files = {name: load_file(folder / name) for name in ("model.safetensors", "_student/model.safetensors")}
    return {(name, key): value.tolist() for name, tensors in files.items() for key, value in tensors.items()}


def is_on(path, folder, name):
    return str(folder) in path and name in path


@pytest.mark.slow
def test_a_killed_job_is_resumed_to_the_same_weights(job_dir):
    assert main(command(job_dir, job_dir / "undisturbed")) == 0
    expected, names = weights(job_dir / "undisturbed"), {path.name for path in (job_dir / "undisturbed").iterdir()}
    folder, killed = job_dir / "killed", []
    for moment, name in MOMENTS.items():  # one after the other in one run
        if killed_when(
            lambda path, name=name: is_on(path, folder, name),
            lambda: main(command(job_dir, folder, "--resume_from_checkpoint", "True")),
        ):
            killed.append(moment)
    assert killed == list(MOMENTS)
    assert main(command(job_dir, folder, "--resume_from_checkpoint", "True")) == 0
    assert is_finished(folder)
    assert weights(folder) == expected
    assert {path.name for path in folder.iterdir()} == names
