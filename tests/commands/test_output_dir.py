import dataclasses

import pytest
from datasets import Dataset, DatasetDict

from hf_efficient.commands.output_dir import check_same_run, explain_write_errors, is_finished, run_in
from hf_efficient.commands.run_manifest import RunManifest, hash_of_data, hash_of_model
from hf_efficient.errors import NonFiniteLossError, PushError, UserError

REPORT, STUDENT, ROUND = "compression_report.json", "_student/config.json", "_round-1/config.json"
SETTINGS = {"rounds": 2, "model": "a hash"}


def write(folder, *names, text="new"):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def stop_a_run(folder, name, error):
    with run_in(folder, SETTINGS, is_resumed=False):
        write(folder, name)
        raise error


def finish_a_run(folder):
    with run_in(folder, SETTINGS, is_resumed=False):
        write(folder, REPORT, STUDENT, "onnx/model.onnx", ROUND, text="old")


def test_finished_run_records_its_files_and_removes_its_rounds(tmp_path):
    write(tmp_path, "_notes/a.txt", "checkpoint-9/b")
    finish_a_run(tmp_path)
    manifest = RunManifest.load(tmp_path)
    assert set(manifest.files) == {REPORT, STUDENT, "onnx/model.onnx"}
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
    with pytest.raises(UserError, match="out of reach"):
        stop_a_run(tmp_path, ROUND, UserError("out of reach"))
    assert RunManifest.load(tmp_path) == before
    assert (tmp_path / REPORT).read_text() == (tmp_path / STUDENT).read_text() == "old"
    assert not (tmp_path / "_round-1").exists()


@pytest.mark.parametrize(
    ("error", "kept"), [(NonFiniteLossError, ROUND), (KeyboardInterrupt, ROUND), (OSError, ROUND)]
)
def test_run_that_can_be_resumed_keeps_its_rounds(tmp_path, error, kept):
    with pytest.raises(error):
        stop_a_run(tmp_path, ROUND, error("stopped"))
    assert (tmp_path / kept).exists()
    assert not is_finished(tmp_path)


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
