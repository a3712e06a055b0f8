"""What goes wrong on the way: the client mends it, or one sentence says what to do and a second push succeeds."""

import shutil
import threading

import pytest
from clients import OTHERS_TOKEN, hashes
from reviews import flags
from safetensors.torch import load_file, save_file

from hf_efficient.hub import model_card as to_hub
from hf_efficient.hub import push as pushing

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
    held = hub.repos[name].files()
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".csv"}
    assert {path: held[path] for path in files if path != "config.json"} == {
        path: data for path, data in files.items() if path != "config.json"
    }


@pytest.mark.parametrize(
    ("name", "method", "path", "action", "headers"),
    [
        ("a part cut off", "PUT", LARGE, "drop", {}),
        ("a part refused", "PUT", LARGE, 500, {}),
        ("storage that is busy", "PUT", LARGE, 503, {}),
        ("too many requests", "POST", "/preupload/", 429, {"Retry_After": "0"}),
        ("a batch that fails", "POST", "/objects/batch", 503, {}),
        ("a lost answer on a part", "PUT", LARGE, "lose", {}),
    ],
)
def test_what_the_client_mends(hub, shell, folder, name, method, path, action, headers):
    repo_id, before = f"me/mended-{name.replace(' ', '-')}", hashes(folder)
    hub.fail(method, path, action, **headers)
    done = shell("push", folder, "--repo_id", repo_id)
    assert done.status == 0, done.err
    assert_complete(hub, repo_id, folder)
    assert hashes(folder) == before


@pytest.mark.parametrize(
    ("name", "method", "path", "action", "headers", "said"),
    [
        (
            "no such token",
            "POST",
            "/repos/create",
            401,
            {},
            "there is none (401): log in by `hf auth login`, or set HF_TOKEN",
        ),
        ("no right", "POST", "/commit/", 403, {}, "the token may not write there (403)"),
        ("gone", "POST", "/preupload/", 404, {}, "the Hub does not find it"),
        ("a conflict", "POST", "/commit/", 409, {}, "at the same time (409)"),
        ("changed meanwhile", "POST", "/commit/", 412, {}, "changed by somebody else meanwhile (412)"),
        ("too often", "POST", "/commit/", 429, {"Retry_After": "30"}, "(429): wait 30 seconds, and push again"),
        ("very often", "POST", "/commit/", 429, {}, "(429): wait a few minutes"),
        ("too large", "POST", "/commit/", 413, {}, "the Hub refused (413): so the test wants it"),
        ("broken at the start", "POST", "/repos/create", 500, {}, "the Hub failed (500): push again"),
        ("broken at the end", "POST", "/commit/", 503, {}, "the Hub failed (503): push again"),
        ("hung up", "POST", "/commit/", "drop", {}, "the connection to the Hub was lost"),
        ("hung up at once", "POST", "/repos/create", "drop", {}, "the connection to the Hub was lost"),
        ("an answer that got lost", "POST", "/commit/", "lose", {}, "the connection to the Hub was lost"),
    ],
)
def test_what_it_cannot_mend_is_one_sentence(hub, shell, folder, name, method, path, action, headers, said):
    repo_id, before = f"me/failed-{name.replace(' ', '-')}", hashes(folder)
    hub.fail(method, path, action, **headers)
    done = shell("push", folder, "--repo_id", repo_id)
    assert done.status == 2
    [line] = [line for line in done.err.splitlines() if line.startswith("hf-efficient push: ")]
    assert line.startswith(f"hf-efficient push: {repo_id} is not pushed: ")
    assert said in line
    assert f"Nothing in {folder} is changed" in line
    assert "Traceback" not in done.err
    assert hashes(folder) == before
    again = shell("push", folder, "--repo_id", repo_id)
    assert again.status == 0, again.err
    assert_complete(hub, repo_id, folder)
    titles = [commit.title for commit in hub.repos[repo_id].history()]
    assert titles == ["Add compressed model", "initial commit"]  # once, even if the first answer got lost
    assert hashes(folder) == before


def test_a_push_that_is_done_but_not_tagged_says_so_and_is_tagged_the_second_time(hub, shell, folder):
    asked = ("push", folder, "--repo_id", "me/tagged", "--tag", "v1")
    hub.fail("POST", "/tag/", 503)
    done = shell(*asked)
    assert done.status == 2
    assert "me/tagged is pushed, but not tagged v1: the Hub failed (503)" in done.err
    hub.fail("POST", "/tag/", "lose")
    assert shell(*asked).status == 2
    assert shell(*asked).status == 0
    assert hub.repos["me/tagged"].tags == {"v1": hub.repos["me/tagged"].branches["main"]}


def test_what_somebody_else_does_meanwhile_is_not_undone(hub, shell, folder):
    hub.fail("POST", "/preupload/", lambda: hub.seed("me/shared", {"README.md": b"theirs"}))
    done = shell("push", folder, "--repo_id", "me/shared")
    assert done.status == 2
    assert "changed by somebody else meanwhile (412)" in done.err
    assert hub.repos["me/shared"].files()["README.md"] == b"theirs"
    assert shell("push", folder, "--repo_id", "me/shared").status == 0
    assert [commit.title for commit in hub.repos["me/shared"].history()][1] == "seed"


@pytest.mark.parametrize(
    ("repo_id", "token", "said"),
    [
        ("me/films", OTHERS_TOKEN, "the token may not write there (403)"),
        ("me/films", "hf_unknown", "there is none (401): log in by `hf auth login`, or set HF_TOKEN"),
        ("me/films", None, "there is none (401)"),
        ("alone", None, "there is no token: log in by `hf auth login`"),
    ],
)
def test_who_may_not_push_is_told_why(hub, shell, folder, repo_id, token, said):
    hub.make("me/films", private=False)
    done = shell("push", folder, "--repo_id", repo_id, token=token)
    assert (done.status, said in done.err) == (2, True), done.err
    assert "Traceback" not in done.err


def test_a_job_that_may_not_push_says_so_before_it_trains(shell, job_dir):
    asked = flags(job_dir, target_flops=2, hub_model_id="me/films")
    done = shell("compress", *asked, "--push_to_hub", token="hf_unknown")
    assert done.status == 2
    assert "me/films is not pushed: the Hub takes no such token, or there is none (401)" in done.err
    assert not list((job_dir / "out").rglob("*.safetensors"))


@pytest.fixture
def warned(monkeypatch):
    """What is warned of."""
    told = []
    monkeypatch.setattr(pushing.logger, "warning", told.append)
    return told


def test_a_checkpoint_that_does_not_arrive_is_a_warning(folder, warned):
    job = to_hub.push_checkpoint(str(folder), "me/films", 7, "hf_secret", None)
    assert isinstance(job.exception(timeout=30), pushing.PushError)
    (folder / "model.safetensors").unlink()
    assert "lacks model.safetensors" in str(to_hub.push_checkpoint(str(folder), "me/films", 8, None, None).exception())
    assert [line.partition(": ")[0] for line in warned] == ["training goes on, but a checkpoint is not on the Hub"] * 2
    assert "the Hub's client is offline: unset HF_HUB_OFFLINE" in warned[0]
    assert not list(folder.parent.glob("_push-*"))


def test_a_checkpoint_may_be_removed_while_it_is_on_its_way(folder, warned, monkeypatch):
    gone, sent = threading.Event(), {}

    def commit(api, repo_id, contents, config, written):
        assert gone.wait(30)
        sent.update({path: getattr(each, "read_bytes", lambda each=each: each)() for path, each in contents.items()})

    monkeypatch.setattr(pushing, "_commit", commit)
    weights = (folder / "model.safetensors").read_bytes()
    job = to_hub.push_checkpoint(str(folder), "me/films", 7, None, None)
    shutil.rmtree(folder)
    gone.set()
    job.result(timeout=30)
    assert sent["model.safetensors"] == weights
    assert "at step 7" in sent["README.md"].decode()
    assert warned == []
