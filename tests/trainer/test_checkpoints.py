import json

import pytest
import torch
from safetensors.torch import save_file
from trainers import arguments, build, classifier

from hf_efficient.errors import UserError
from hf_efficient.trainer.checkpoints import (
    has_resumable_run,
    has_trained_run,
    last_complete_checkpoint,
    resolve_checkpoint,
    save_atomically,
    without_secrets,
)
from hf_efficient.trainer.phases import clear_phases, last_complete_phase


def write_checkpoint(folder, step, state='{"epoch": 1}'):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return str(path)


@pytest.mark.parametrize("state", [None, "", '{"epoch": 1'], ids=["no state", "an empty state", "a part of a state"])
def test_last_complete_checkpoint_is_the_one_with_the_highest_step(tmp_path, state):
    write_checkpoint(tmp_path, 9)
    expected = write_checkpoint(tmp_path, 10)
    write_checkpoint(tmp_path, 11, state)
    assert last_complete_checkpoint(tmp_path) == expected
    assert resolve_checkpoint(True, tmp_path) == expected
    assert resolve_checkpoint(expected, tmp_path.parent) == expected
    assert resolve_checkpoint(None, tmp_path) is None


def test_phase_without_a_checkpoint_can_be_resumed(tmp_path):
    assert not has_resumable_run(tmp_path)
    (tmp_path / "_round-1").mkdir()
    assert not has_resumable_run(tmp_path)
    (tmp_path / "_round-1" / "config.json").write_text(json.dumps({}))
    assert has_resumable_run(tmp_path)
    assert has_trained_run(tmp_path)


def test_first_phase_without_a_checkpoint_has_trained_nothing(tmp_path):
    (tmp_path / "_round-0").mkdir()
    (tmp_path / "_round-0" / "config.json").write_text(json.dumps({}))
    assert has_resumable_run(tmp_path)
    assert not has_trained_run(tmp_path)
    write_checkpoint(tmp_path / "_round-0", 10)
    assert has_trained_run(tmp_path)


def test_interrupted_save_leaves_the_folder_unchanged(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "kept").write_text("before")

    def interrupt(temporary):
        assert (temporary / "config.json").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_atomically(classifier(), folder, save_state=interrupt)
    assert [path.name for path in folder.iterdir()] == ["kept"]
    save_atomically(classifier(), folder, save_state=lambda temporary: (temporary / "state").write_text("x"))
    assert {"config.json", "model.safetensors", "state"} == {path.name for path in folder.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_token_is_absent_while_saving_and_the_pickle_afterwards(tmp_path):
    args = arguments(tmp_path, hub_token="hf_canary")
    with without_secrets(args, tmp_path):
        assert args.hub_token is None
        (tmp_path / "training_args.bin").write_text("a pickle")
    assert args.hub_token == "hf_canary"
    assert list(tmp_path.iterdir()) == []


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = {
    "cut short": cut_short,
    "empty": lambda path: path.write_bytes(b""),
    "random": lambda path: path.write_bytes(bytes(range(256)) * 4),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_resuming_falls_back_to_the_checkpoint_before_a_damaged_one(tmp_path, name, damage):
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        write_checkpoint(tmp_path, step)
        save_file({"weight": torch.ones(9)}, folder / "model.safetensors")
        torch.save({"state": torch.ones(9)}, folder / "optimizer.pt")
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    damage(tmp_path / "checkpoint-2" / name)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    with pytest.raises(UserError, match=f"checkpoint-2.{name} is damaged"):
        resolve_checkpoint(str(tmp_path / "checkpoint-2"), tmp_path)


def test_checkpoint_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        resolve_checkpoint(str(tmp_path / "elsewhere"), tmp_path)


@pytest.mark.parametrize("existing", [None, "_round-1.partial", "_round-x", "_round-2"])
def test_phases_ignore_what_a_killed_run_left_incomplete(tmp_path, existing):
    assert last_complete_phase(tmp_path) is None
    for name in filter(None, ("_round-0", existing)):
        classifier().save_pretrained(tmp_path / name)
    assert last_complete_phase(tmp_path) == (2 if existing == "_round-2" else 0)
    clear_phases(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == (["_round-x"] if existing == "_round-x" else [])


def test_phase_with_damaged_weights_is_pruned_again(tmp_path):
    for number in (0, 1):
        classifier().save_pretrained(tmp_path / f"_round-{number}")
    cut_short(tmp_path / "_round-1" / "model.safetensors")
    assert last_complete_phase(tmp_path) == 0


def test_output_directory_that_cannot_be_written_is_found_before_the_training(tmp_path):
    trainer = build(tmp_path / "out")
    (tmp_path / "out").rmdir()
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="out' cannot be written: Not a directory"):
        trainer.train()
