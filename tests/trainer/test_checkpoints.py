import json

import pytest
from trainers import arguments, classifier

from hf_efficient.trainer.checkpoints import (
    has_resumable_run,
    last_complete_checkpoint,
    resolve_checkpoint,
    save_atomically,
    without_secrets,
)


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
    assert resolve_checkpoint("elsewhere", tmp_path) == "elsewhere"
    assert resolve_checkpoint(None, tmp_path) is None


def test_phase_without_a_checkpoint_can_be_resumed(tmp_path):
    assert not has_resumable_run(tmp_path)
    (tmp_path / "_round-1").mkdir()
    assert not has_resumable_run(tmp_path)
    (tmp_path / "_round-1" / "config.json").write_text(json.dumps({}))
    assert has_resumable_run(tmp_path)


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
