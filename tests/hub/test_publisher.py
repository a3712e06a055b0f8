"""Tests of the class that a trainer hands its report, checkpoints and output folder to."""

import shutil
from concurrent.futures import Future
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from clients import OTHERS_TOKEN, TOKEN
from huggingface_hub import HfApi, ModelCard
from transformers import TrainingArguments

from hf_efficient import CompressionReport
from hf_efficient.errors import PushError, UserError
from hf_efficient.hub import publisher as publisher_module
from hf_efficient.hub.publisher import HubPublisher, initialize_repo, push_output_dir
from hf_efficient.measurement.report import ModelRow


@pytest.fixture
def online(hub, monkeypatch):
    """Lets the Hub's client of this process reach the loopback Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    return hub


@pytest.fixture
def folder(review_model_dir, tmp_path):
    shutil.copytree(review_model_dir, tmp_path / "model", ignore=shutil.ignore_patterns("*.csv"))
    return tmp_path / "model"


@pytest.fixture
def background(monkeypatch):
    """The futures of checkpoints that were started, in order; a test decides when one is done."""
    started = []

    def push_checkpoint(checkpoint_dir, repo_id, step, token, revision):
        started.append(SimpleNamespace(step=step, token=token, revision=revision, future=Future()))
        return started[-1].future

    monkeypatch.setattr(publisher_module, "push_checkpoint", push_checkpoint)
    return started


def test_write_card_names_the_base_model(folder):
    row = ModelRow("student", "student", {"accuracy": 0.9})
    HubPublisher("someone/base").write_card(CompressionReport(models=(row,), configs={}), folder)
    assert ModelCard.load(folder / "README.md").data.base_model == "someone/base"
    assert (folder / "compression_report.json").is_file()


def test_push_returns_the_commit_of_the_model(folder, online):
    commit = HubPublisher("").push(folder, "me/published", TOKEN, commit_message="A better model")
    repo = online.repos["me/published"]
    assert commit.oid == repo.branches["main"]
    assert repo.history()[0].title == "A better model"
    assert repo.files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_push_that_does_not_block_returns_a_future_and_pushes_to_the_revision(folder, online):
    push = HubPublisher("").push(folder, "me/later", TOKEN, revision="dev", commit_message=None, blocking=False)
    assert push.result(timeout=60).oid == online.repos["me/later"].branches["dev"]
    assert online.repos["me/later"].history("dev")[0].title == "End of training"


def test_push_refuses_a_public_repository_that_should_be_private(folder, online):
    online.make("me/open", private=False)
    with pytest.raises(UserError, match=r"me/open .* public"):
        HubPublisher("").push(folder, "me/open", TOKEN, private=True)
    assert "model.safetensors" not in online.repos["me/open"].files()


def test_push_waits_for_checkpoints(folder, monkeypatch):
    events = []
    publisher = HubPublisher("")
    publisher.push_in_progress = SimpleNamespace(wait_until_done=lambda: events.append("checkpoints are done"))
    monkeypatch.setattr(
        publisher_module, "push_folder", lambda *_: events.append("the folder is pushed") or {"me/model": "commit"}
    )
    assert publisher.push(folder, "me/model") == "commit"
    assert events == ["checkpoints are done", "the folder is pushed"]


def test_push_checkpoint_pushes_to_the_repository(folder, online):
    online.make("me/steps", private=False)
    HubPublisher("").push_checkpoint(folder, "me/steps", 12, TOKEN).wait_until_done()
    repo = online.repos["me/steps"]
    assert repo.history()[0].title == "Training in progress, step 12"
    assert "step 12" in repo.files()["README.md"].decode()


def test_push_checkpoint_skips_while_a_push_is_in_progress(folder, background):
    publisher = HubPublisher("")
    first = publisher.push_checkpoint(folder, "me/steps", 1, "token", "dev")
    assert publisher.push_checkpoint(folder, "me/steps", 2) is first
    assert [(each.step, each.token, each.revision) for each in background] == [(1, "token", "dev")]
    background[0].future.set_result(None)
    publisher.push_checkpoint(folder, "me/steps", 3)
    assert [each.step for each in background] == [1, 3]


def test_push_checkpoint_with_always_push_keeps_the_pushes_in_progress(folder, background):
    publisher = HubPublisher("")
    publisher.push_checkpoint(folder, "me/steps", 1)
    pushes = publisher.push_checkpoint(folder, "me/steps", 2, always_push=True)
    assert pushes.jobs == [each.future for each in background]
    background[1].future.set_result(None)
    assert not pushes.is_done()
    background[0].future.set_result(None)
    assert pushes.is_done()


def test_initialize_repo_explains_errors_of_the_hub(tmp_path, online):
    with pytest.raises(PushError, match=r"me/refused is not pushed: .*\(403\)"):
        initialize_repo(
            lambda: HfApi(token=OTHERS_TOKEN).create_repo("me/refused", exist_ok=True).repo_id, tmp_path, "me/refused"
        )
    with pytest.raises(PushError, match="output is not pushed"):
        initialize_repo(lambda: HfApi(token="hf_unknown").create_repo("x").repo_id, tmp_path / "output")


def test_initialize_repo_checks_that_the_repository_is_private(tmp_path, online):
    def create_repo():
        return HfApi(token=TOKEN).create_repo("me/visible", exist_ok=True).repo_id

    initialize_repo(create_repo, tmp_path, "me/visible", None, TOKEN)
    with pytest.raises(UserError, match=r"me/visible .* public"):
        initialize_repo(create_repo, tmp_path, "me/visible", True, TOKEN)
    initialize_repo(lambda: None, tmp_path, "me/visible", True, TOKEN)  # a process that does not push


def test_push_output_dir_pushes_where_training_arguments_say(folder, online):
    args = TrainingArguments(str(folder), hub_model_id="me/by-arguments", hub_token=TOKEN, hub_revision="dev")
    commit = push_output_dir(folder, args)
    assert commit.oid == online.repos["me/by-arguments"].branches["dev"]
