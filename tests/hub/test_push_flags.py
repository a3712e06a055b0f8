"""What the flags of `hf-efficient push` do, and what is refused before anything leaves."""

import shutil

import pytest
from clients import EXPORTS


def test_a_branch_is_made_and_a_tag_that_is_taken_is_refused(small, shell, hub):
    asked = ("push", small, "--repo_id", "me/branched", "--revision", "dev", "--tag", "first")
    assert shell(*asked).status == 0
    repo = hub.repos["me/branched"]
    assert repo.branches["dev"] != repo.branches["main"]
    assert repo.tags == {"first": repo.branches["dev"]}
    assert [commit.title for commit in repo.history("main")] == ["initial commit"]
    (small / "README.md").write_text("---\ntags:\n- x\n---\n\nAnother card.\n")
    again = shell(*asked, "--commit_message", "Say more")
    assert again.status == 2
    assert "the tag first is that of another commit: give another tag" in again.err
    assert repo.history("dev")[0].title == "Say more"


def test_an_organisation_and_a_pull_request(small, shell, hub):
    assert shell("push", small, "--repo_id", "club/proposed").status == 0
    before = hub.repos["club/proposed"].branches["main"]
    (small / "README.md").write_text("---\ntags:\n- x\n---\n\nBetter.\n")
    done = shell("push", small, "--repo_id", "club/proposed", "--create_pr")
    assert done.out == f"club/proposed: {hub.url}/club/proposed/discussions/1\n"
    assert hub.repos["club/proposed"].branches["main"] == before
    assert b"Better." in hub.repos["club/proposed"].files("refs/pr/1")["README.md"]
    refused = shell("push", small, "--repo_id", "club/proposed", "--create_pr", "--tag", "v1")
    assert (refused.status, "leave out revision and tag, or create_pr" in refused.err) == (2, True)


@pytest.mark.skipif("onnx" not in EXPORTS, reason="onnxruntime is not installed")
def test_what_is_private_has_a_private_companion(job, shell, hub):
    assert shell("push", job.folder, "--repo_id", "club/secret", "--private").status == 0
    assert {name: hub.repos[name].private for name in ("club/secret", "club/secret-ONNX")} == {
        "club/secret": True,
        "club/secret-ONNX": True,
    }
    assert shell("push", job.folder, "--repo_id", "club/secret").status == 0
    public = shell("push", job.folder, "--repo_id", "me/films", "--private")
    assert public.status == 2
    assert "me/films is there and public" in public.err
    hub.seed("club/half-ONNX", {})
    hub.seed("club/half", {}, private=True)
    half = shell("push", job.folder, "--repo_id", "club/half")
    assert (half.status, "club/half-ONNX is public and club/half private" in half.err) == (2, True)
    assert "model.safetensors" not in hub.repos["club/half"].files()


def test_what_an_earlier_push_left_goes_and_what_others_wrote_stays(small, shell, hub):
    old = {"onnx/export.json": b"{}", "onnx/model.onnx": b"old", "model-00001-of-00002.safetensors": b"old"}
    kept = {"LICENSE": b"mine", "README.md": b"---\ntags:\n- mine\n---\n", "notes/onnx/graph.onnx": b"mine"}
    hub.seed("me/renewed", {**old, **kept})
    assert shell("push", small, "--repo_id", "me/renewed").status == 0
    files = hub.repos["me/renewed"].files()
    assert not old.keys() & files.keys()
    assert {path: files[path] for path in kept} == kept  # the folder has no card that could replace this one
    assert files["model.safetensors"] == (small / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "lacks model.safetensors, the weights"),
        (lambda folder: (folder / "pruned_bert.py").unlink(), "lacks pruned_bert.py, code that its config.json needs"),
        (lambda folder: (folder / "structure.py").unlink(), "lacks structure.py, code"),
        (
            lambda folder: (folder / "README.md").write_text("---\n: [\n---\n"),
            "README.md begins with metadata",
        ),
        (lambda folder: shutil.rmtree(folder), "is not a folder"),
    ],
)
def test_a_folder_that_nobody_could_load_is_refused_before_anything_is_asked(job, tmp_path, shell, hub, spoil, said):
    shutil.copytree(job.folder, tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    seen = len(hub.seen)
    done = shell("push", tmp_path / "spoilt", "--repo_id", "me/spoilt")
    assert (done.status, said in done.err, len(hub.seen)) == (2, True, seen), done.err


def test_names_that_are_none_are_refused(small, shell):
    for name in ("a/b/c", "me/..", "me/ films"):
        done = shell("push", small, "--repo_id", name)
        assert (done.status, "is no name on the Hub: give user/name" in done.err) == (2, True)


def test_a_name_alone_is_in_ones_own_place(small, shell, hub):
    assert shell("push", small, "--repo_id", "alone").status == 0
    assert hub.repos["me/alone"].files()["model.safetensors"] == (small / "model.safetensors").read_bytes()
