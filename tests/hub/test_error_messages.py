"""Errors during a push: the client retries, or a message says what to do and a second push succeeds."""

import shutil
import threading

import pytest
from clients import OTHERS_TOKEN, hashes
from reviews import flags
from safetensors.torch import load_file, save_file

from hf_efficient.errors import PushError
from hf_efficient.hub import push
from hf_efficient.hub.error_messages import explain_hub_errors

API = "/api/models/me/"
LARGE = "/lfs/"


@pytest.fixture
def folder(review_model_dir, tmp_path, request):
    """A folder with a model whose weights the Hub does not have yet."""
    shutil.copytree(review_model_dir, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "case": request.node.name})
    (tmp_path / "model" / "README.md").write_text("---\nlibrary_name: transformers\n---\n\nA card.\n")
    return tmp_path / "model"


def assert_complete(hub, name, folder):
    remote_files = hub.repos[name].files()
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".csv"}
    assert {path: remote_files[path] for path in files if path != "config.json"} == {
        path: data for path, data in files.items() if path != "config.json"
    }


@pytest.mark.parametrize(
    ("name", "method", "path", "action", "headers"),
    [
        ("connection lost during a part", "PUT", LARGE, "drop", {}),
        ("error on a part", "PUT", LARGE, 500, {}),
        ("storage is busy", "PUT", LARGE, 503, {}),
        ("too many requests", "POST", "/preupload/", 429, {"Retry_After": "0"}),
        ("error on a batch", "POST", "/objects/batch", 503, {}),
        ("response to a part is lost", "PUT", LARGE, "lose", {}),
    ],
)
def test_client_retries(hub, shell, folder, name, method, path, action, headers):
    repo_id, before = f"me/retried-{name.replace(' ', '-')}", hashes(folder)
    hub.fail(method, path, action, **headers)
    result = shell("push", folder, "--repo_id", repo_id)
    assert result.status == 0, result.err
    assert_complete(hub, repo_id, folder)
    assert hashes(folder) == before


@pytest.mark.parametrize(
    ("name", "method", "path", "action", "headers", "message"),
    [
        (
            "invalid token",
            "POST",
            "/repos/create",
            401,
            {},
            "the token is missing or invalid (401): log in with `hf auth login`, or set HF_TOKEN",
        ),
        ("no access", "POST", "/commit/", 403, {}, "the token has no write access there (403)"),
        ("deleted", "POST", "/preupload/", 404, {}, "the repository or branch does not exist"),
        ("conflict", "POST", "/commit/", 409, {}, "the repository is in conflict with this push (409)"),
        ("changed", "POST", "/commit/", 412, {}, "the repository was changed during the push (412)"),
        ("many requests", "POST", "/commit/", 429, {"Retry_After": "30"}, "(429): wait 30 seconds, and push again"),
        ("many requests without a delay", "POST", "/commit/", 429, {}, "(429): wait a few minutes"),
        ("too large", "POST", "/commit/", 413, {}, "the Hub refused the push (413): requested by the test"),
        (
            "internal error at the start",
            "POST",
            "/repos/create",
            500,
            {},
            "the Hub had an internal error (500): push again",
        ),
        ("internal error at the end", "POST", "/commit/", 503, {}, "the Hub had an internal error (503): push again"),
        ("connection lost", "POST", "/commit/", "drop", {}, "the connection to the Hub failed"),
        ("connection lost at the start", "POST", "/repos/create", "drop", {}, "the connection to the Hub failed"),
        ("response is lost", "POST", "/commit/", "lose", {}, "the connection to the Hub failed"),
    ],
)
def test_other_errors_are_one_message_and_a_second_push_succeeds(
    hub, shell, folder, name, method, path, action, headers, message
):
    repo_id, before = f"me/failed-{name.replace(' ', '-')}", hashes(folder)
    hub.fail(method, path, action, **headers)
    result = shell("push", folder, "--repo_id", repo_id)
    assert result.status == 2
    [line] = [line for line in result.err.splitlines() if line.startswith("hf-efficient push: ")]
    assert line.startswith(f"hf-efficient push: {repo_id} is not pushed: ")
    assert message in line
    assert f"{folder} is unchanged" in line
    assert "Traceback" not in result.err
    assert hashes(folder) == before
    again = shell("push", folder, "--repo_id", repo_id)
    assert again.status == 0, again.err
    assert_complete(hub, repo_id, folder)
    titles = [commit.title for commit in hub.repos[repo_id].history()]
    assert titles == ["Add compressed model", "initial commit"]  # one commit, although the first response is lost
    assert hashes(folder) == before


def test_failed_tag_is_reported_and_set_by_a_second_push(hub, shell, folder):
    arguments = ("push", folder, "--repo_id", "me/tagged", "--tag", "v1")
    hub.fail("POST", "/tag/", 503)
    result = shell(*arguments)
    assert result.status == 2
    assert "me/tagged is pushed but not tagged v1: the Hub had an internal error (503)" in result.err
    hub.fail("POST", "/tag/", "lose")
    assert shell(*arguments).status == 2
    assert shell(*arguments).status == 0
    assert hub.repos["me/tagged"].tags == {"v1": hub.repos["me/tagged"].branches["main"]}


def test_changes_by_others_during_a_push_are_kept(hub, shell, folder):
    hub.fail("POST", "/preupload/", lambda: hub.seed("me/shared", {"README.md": b"changed"}))
    result = shell("push", folder, "--repo_id", "me/shared")
    assert result.status == 2
    assert "the repository was changed during the push (412)" in result.err
    assert hub.repos["me/shared"].files()["README.md"] == b"changed"
    assert shell("push", folder, "--repo_id", "me/shared").status == 0
    assert [commit.title for commit in hub.repos["me/shared"].history()][1] == "seed"


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        ("me/films", OTHERS_TOKEN, "the token has no write access there (403)"),
        (
            "me/films",
            "hf_unknown",
            "the token is missing or invalid (401): log in with `hf auth login`, or set HF_TOKEN",
        ),
        ("me/films", None, "the token is missing or invalid (401)"),
        ("alone", None, "there is no token: log in with `hf auth login`"),
    ],
)
def test_missing_access_is_explained(hub, shell, folder, repo_id, token, message):
    hub.make("me/films", private=False)
    result = shell("push", folder, "--repo_id", repo_id, token=token)
    assert (result.status, message in result.err) == (2, True), result.err
    assert "Traceback" not in result.err


def test_missing_access_is_reported_before_training(shell, job_dir):
    arguments = flags(job_dir, target_flops=2, hub_model_id="me/films")
    result = shell("compress", *arguments, "--push_to_hub", token="hf_unknown")
    assert result.status == 2
    assert "me/films is not pushed: the token is missing or invalid (401)" in result.err
    assert not list((job_dir / "out").rglob("*.safetensors"))


@pytest.fixture
def warnings(monkeypatch):
    """The messages of warnings."""
    messages = []
    monkeypatch.setattr(push.logger, "warning", messages.append)
    return messages


def test_failed_push_of_a_checkpoint_is_a_warning(folder, warnings):
    job = push.push_checkpoint(str(folder), "me/films", 7, "hf_secret", None)
    assert isinstance(job.exception(timeout=30), PushError)
    (folder / "model.safetensors").unlink()
    assert "lacks the weights model.safetensors" in str(
        push.push_checkpoint(str(folder), "me/films", 8, None, None).exception()
    )
    assert [line.partition(": ")[0] for line in warnings] == [
        "training continues, but a checkpoint is not on the Hub"
    ] * 2
    assert "the Hub's client is in offline mode: unset HF_HUB_OFFLINE" in warnings[0]
    assert not list(folder.parent.glob("_push-*"))


def test_checkpoint_may_be_deleted_during_its_push(folder, warnings, monkeypatch):
    deleted, sent = threading.Event(), {}

    def commit(api, repo_id, contents, config, has_card):
        assert deleted.wait(30)
        sent.update({path: getattr(each, "read_bytes", lambda each=each: each)() for path, each in contents.items()})

    monkeypatch.setattr(push, "_commit", commit)
    weights = (folder / "model.safetensors").read_bytes()
    job = push.push_checkpoint(str(folder), "me/films", 7, None, None)
    shutil.rmtree(folder)
    deleted.set()
    job.result(timeout=30)
    assert sent["model.safetensors"] == weights
    assert "at step 7" in sent["README.md"].decode()
    assert warnings == []


@pytest.mark.parametrize(
    "error", [ConnectionError("transfer failed"), TimeoutError("too slow"), RuntimeError("one of two files")]
)
def test_errors_of_file_transfers_are_push_errors(error):
    if isinstance(error, RuntimeError):
        error.__cause__ = ConnectionError("transfer failed")
    with (
        pytest.raises(PushError, match="me/films is not pushed: the connection to the Hub failed"),
        explain_hub_errors("out", "me/films"),
    ):
        raise error


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="out of memory") as raised, explain_hub_errors("out", "me/films"):
        raise RuntimeError("out of memory")
    assert not isinstance(raised.value, PushError)
