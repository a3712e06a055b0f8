import contextlib
import dataclasses
import itertools
import shutil

import pytest
from datasets import Dataset, DatasetDict
from killing import killed_at
from transformers import TrainingArguments

from hf_efficient.commands.config import JobConfig, ModelConfig
from hf_efficient.commands.output_dir import (
    check_output_dir,
    check_same_run,
    explain_write_errors,
    is_finished,
    recover_output_dir,
    run_in,
)
from hf_efficient.commands.run_manifest import MANIFEST_NAME, RunManifest, hash_of_data, hash_of_model
from hf_efficient.data.config import DataConfig
from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.errors import NonFiniteLossError, PushError, UserError
from hf_efficient.exporters.config import ExportConfig
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.quantization.config import QuantizationConfig

REPORT, STUDENT, ROUND = "compression_report.json", "_student/config.json", "_round-1/config.json"
CUT = "_cut-1/config.json"
SETTINGS = {"rounds": 2, "model": "a hash"}


def write(folder, *names, text="new"):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def stop_a_run(folder, name, error):
    with run_in(folder, SETTINGS, is_resumed=False):
        write(folder, name, text="{}")
        raise error


def finish_a_run(folder):
    with run_in(folder, SETTINGS, is_resumed=False):
        write(folder, REPORT, STUDENT, "onnx/model.onnx", ROUND, text="old")


def test_finished_run_records_its_files_and_removes_its_rounds(tmp_path):
    write(tmp_path, "_notes/a.txt", "checkpoint-9/b")
    finish_a_run(tmp_path)
    manifest = RunManifest.load(tmp_path)
    assert set(manifest.files) >= {REPORT, STUDENT, "onnx/model.onnx"}
    assert is_finished(tmp_path)
    assert not (tmp_path / "_round-1").exists()


def test_overwriting_removes_what_the_first_run_wrote_and_nothing_else(tmp_path):
    write(tmp_path, "checkpoint-9/b")
    finish_a_run(tmp_path)
    write(tmp_path, "onnx/notes.txt", "_private.txt")
    with run_in(tmp_path, SETTINGS, is_resumed=False):
        assert not is_finished(tmp_path)
        write(tmp_path, REPORT)
    assert not (tmp_path / STUDENT).exists()
    assert not (tmp_path / "onnx/model.onnx").exists()
    assert all((tmp_path / name).exists() for name in ("checkpoint-9/b", "onnx/notes.txt", "_private.txt"))


def test_impossible_run_leaves_the_results_of_the_run_before(tmp_path):
    finish_a_run(tmp_path)
    before = RunManifest.load(tmp_path)
    with pytest.raises(UserError, match=r"^out of reach$"):
        stop_a_run(tmp_path, CUT, UserError("out of reach"))
    assert RunManifest.load(tmp_path) == before
    assert (tmp_path / REPORT).read_text() == (tmp_path / STUDENT).read_text() == "old"
    assert not (tmp_path / CUT).exists()


@pytest.mark.parametrize("error", [NonFiniteLossError, KeyboardInterrupt, OSError])
def test_run_that_can_be_resumed_keeps_its_rounds(tmp_path, error):
    with pytest.raises(error):
        stop_a_run(tmp_path, ROUND, error("stopped"))
    assert (tmp_path / ROUND).exists()
    assert not is_finished(tmp_path)


@pytest.mark.parametrize("name", [ROUND, "_teacher/config.json", "_tuning/checkpoint-2/trainer_state.json"])
def test_error_after_training_keeps_what_was_trained_and_says_how_to_go_on(tmp_path, name):
    finish_a_run(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True)
    with pytest.raises(UserError, match=r"^no such metric\. What was trained is kept: --resume_from_checkpoint True"):
        stop_a_run(tmp_path, name, UserError("no such metric"))
    assert RunManifest.load(tmp_path).stage == "running"
    with run_in(tmp_path, SETTINGS, is_resumed=True):
        assert (tmp_path / name).exists()
        write(tmp_path, REPORT)
    assert (tmp_path / REPORT).read_text() == "new"


def job_config(folder):
    parts = (DataConfig(), DistillationConfig(), PruningConfig(), QuantizationConfig(scheme=None))
    return JobConfig(ModelConfig("model"), *parts, TrainingArguments(str(folder)), ExportConfig(["onnx"]))


def visible_files(folder):
    names = {path.relative_to(folder): path.read_text() for path in folder.rglob("*") if path.is_file()}
    return {str(name): text for name, text in names.items() if not name.parts[0].startswith(".")}


@pytest.mark.parametrize("is_possible", [True, False], ids=["complete", "impossible"])
def test_a_run_killed_at_any_file_operation_loses_nothing_of_the_run_before(tmp_path, is_possible):
    """After each kill the same run is started again, without a fault; the results are those of a run never killed."""
    card = "README.md"

    def overwrite():
        with run_in(folder, SETTINGS, is_resumed=False):
            write(folder, CUT, STUDENT)
            if not is_possible:
                raise UserError("out of reach")
            write(folder, ROUND, REPORT, card)

    def overwrite_and_report():
        with contextlib.suppress(UserError):
            overwrite()

    for operation in itertools.count():
        folder = tmp_path / str(operation)
        folder.mkdir()
        write(folder, "_notes/a.txt", "onnx-notes.txt", text="mine")
        with run_in(folder, SETTINGS, is_resumed=False):
            write(folder, REPORT, STUDENT, "onnx/model.onnx", ROUND, card, text="old")
        before = visible_files(folder)
        was_killed = killed_at(operation, folder, overwrite_and_report)
        recover_output_dir(folder)
        overwrite_and_report()
        own = {REPORT: "new", STUDENT: "new", card: "new"} if is_possible else {}
        mine = {"_notes/a.txt": "mine", "onnx-notes.txt": "mine"}
        assert visible_files(folder) == ({**mine, **own} if is_possible else before)
        assert {path.name for path in folder.iterdir() if path.name.startswith(".")} == {MANIFEST_NAME}
        if not was_killed:
            break
    assert operation > 20


@pytest.mark.parametrize("name", ["checkpoint-9/b", "_round-1/b", "README.md", "_student/b", "onnx/b"])
def test_what_others_wrote_under_a_name_of_a_run_is_neither_replaced_nor_removed(tmp_path, name):
    write(tmp_path, name)
    config = job_config(tmp_path)
    with pytest.raises(UserError, match=f"{name} was not written by this program"):
        check_output_dir(config, tmp_path)


def test_a_link_to_nothing_and_a_file_are_refused_as_output_directory(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    (tmp_path / "file").touch()
    for name, reason in (("link", "is a link to nothing"), ("file", "is not a writable directory")):
        config = job_config(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} {reason}"):
            check_output_dir(config, tmp_path / name)


def test_files_behind_a_link_are_not_removed(tmp_path):
    folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    folder.mkdir()
    finish_a_run(folder)
    shutil.move(folder / "onnx", elsewhere)
    (folder / "onnx").symlink_to(elsewhere)
    with run_in(folder, SETTINGS, is_resumed=False):
        write(folder, REPORT)
    assert (elsewhere / "model.onnx").exists()


def test_result_that_could_not_be_pushed_is_finished(tmp_path):
    with pytest.raises(PushError):
        stop_a_run(tmp_path, REPORT, PushError("no network"))
    assert is_finished(tmp_path)


def test_resuming_with_other_settings_is_refused_by_naming_them(tmp_path):
    RunManifest(SETTINGS).save(tmp_path)
    check_same_run(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="since model is another one, rounds was 2 and is 1:"):
        check_same_run(tmp_path, {"rounds": 1, "model": "another hash"})


def test_second_run_is_refused_while_the_first_lives(tmp_path):
    with run_in(tmp_path, SETTINGS, is_resumed=False):
        with (
            pytest.raises(UserError, match=r"another run \(process \d+ on"),
            run_in(tmp_path, SETTINGS, is_resumed=True),
        ):
            pass
        assert dataclasses.asdict(RunManifest.load(tmp_path))["stage"] == "running"
    with run_in(tmp_path, SETTINGS, is_resumed=True):
        pass


def test_full_disk_is_a_sentence_that_names_the_file(tmp_path):
    with (
        pytest.raises(UserError, match=r"model\.safetensors cannot be written: No space"),
        explain_write_errors(tmp_path),
    ):
        raise OSError(28, "No space left on device", "model.safetensors")
    with pytest.raises(OSError, match="other"), explain_write_errors(tmp_path):
        raise OSError(5, "other")


def test_hashes_follow_the_content(tmp_path):
    first, same, other = (Dataset.from_dict({"a": rows}) for rows in ([1, 2], [1, 2], [2, 1]))
    hashes = [hash_of_data(DatasetDict(train=split)) for split in (first, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    write(tmp_path, "model.safetensors")
    before = hash_of_model(str(tmp_path))
    write(tmp_path, "model.safetensors", text="changed")
    assert hash_of_model(str(tmp_path)) != before
