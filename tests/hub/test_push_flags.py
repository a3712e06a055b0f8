"""Tests of the flags of `hf-efficient push`, and of what is refused before anything is uploaded."""

import shutil

import pytest
from clients import EXPORTS
from reviews import flags, save_model, tiny_config, write_reviews
from transformers import BertModel


def test_branch_is_created_and_a_tag_of_another_commit_is_refused(small, shell, hub):
    arguments = ("push", small, "--repo_id", "me/branched", "--revision", "dev", "--tag", "first")
    assert shell(*arguments).status == 0
    repo = hub.repos["me/branched"]
    assert repo.branches["dev"] != repo.branches["main"]
    assert repo.tags == {"first": repo.branches["dev"]}
    assert [commit.title for commit in repo.history("main")] == ["initial commit"]
    (small / "README.md").write_text("---\ntags:\n- x\n---\n\nAnother card.\n")
    again = shell(*arguments, "--commit_message", "Say more")
    assert again.status == 2
    assert "but another commit has the tag first: give another tag" in again.err
    assert repo.history("dev")[0].title == "Say more"


def test_pull_request_in_the_repository_of_an_organization(small, shell, hub):
    assert shell("push", small, "--repo_id", "club/proposed").status == 0
    before = hub.repos["club/proposed"].branches["main"]
    (small / "README.md").write_text("---\ntags:\n- x\n---\n\nBetter.\n")
    result = shell("push", small, "--repo_id", "club/proposed", "--create_pr")
    assert result.out == f"club/proposed: {hub.url}/club/proposed/discussions/1\n"
    assert hub.repos["club/proposed"].branches["main"] == before
    assert b"Better." in hub.repos["club/proposed"].files("refs/pr/1")["README.md"]
    refused = shell("push", small, "--repo_id", "club/proposed", "--create_pr", "--tag", "v1")
    assert (refused.status, "leave out revision and tag, or create_pr" in refused.err) == (2, True)


@pytest.mark.skipif("onnx" not in EXPORTS, reason="onnxruntime is not installed")
def test_private_repository_has_a_private_companion(job, shell, hub):
    assert shell("push", job.folder, "--repo_id", "club/secret", "--private").status == 0
    assert {name: hub.repos[name].private for name in ("club/secret", "club/secret-ONNX")} == {
        "club/secret": True,
        "club/secret-ONNX": True,
    }
    assert shell("push", job.folder, "--repo_id", "club/secret").status == 0
    public = shell("push", job.folder, "--repo_id", "me/films", "--private")
    assert public.status == 2
    assert "me/films exists and is public" in public.err
    hub.seed("club/half-ONNX", {})
    hub.seed("club/half", {}, private=True)
    half = shell("push", job.folder, "--repo_id", "club/half")
    assert (half.status, "club/half-ONNX is public and club/half is private" in half.err) == (2, True)
    assert "model.safetensors" not in hub.repos["club/half"].files()


def test_stale_weights_and_exports_are_deleted_and_other_files_are_kept(small, shell, hub):
    old = {"onnx/export.json": b"{}", "onnx/model.onnx": b"old", "model-00001-of-00002.safetensors": b"old"}
    kept = {"LICENSE": b"by hand", "README.md": b"---\ntags:\n- by-hand\n---\n", "notes/onnx/graph.onnx": b"by hand"}
    hub.seed("me/renewed", {**old, **kept})
    assert shell("push", small, "--repo_id", "me/renewed").status == 0
    files = hub.repos["me/renewed"].files()
    assert not old.keys() & files.keys()
    assert {path: files[path] for path in kept} == kept  # the folder has no card that could replace this one
    assert files["model.safetensors"] == (small / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "lacks the weights model.safetensors"),
        (
            lambda folder: (folder / "pruned_bert.py").unlink(),
            "lacks pruned_bert.py, code that its config.json refers to",
        ),
        (lambda folder: (folder / "structure.py").unlink(), "lacks structure.py, code"),
        (
            lambda folder: (folder / "README.md").write_text("---\n: [\n---\n"),
            "the metadata at the top of README.md is not valid YAML",
        ),
        (lambda folder: shutil.rmtree(folder), "is not a folder"),
    ],
)
def test_folder_that_cannot_be_loaded_is_refused_before_any_request(job, tmp_path, shell, hub, damage, message):
    shutil.copytree(job.folder, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    seen = len(hub.seen)
    result = shell("push", tmp_path / "damaged", "--repo_id", "me/damaged")
    assert (result.status, message in result.err, len(hub.seen)) == (2, True, seen), result.err


def test_invalid_repository_names_are_refused(small, shell):
    for name in ("a/b/c", "me/..", "me/ films"):
        result = shell("push", small, "--repo_id", name)
        assert (result.status, "is not a repository name: give user/name" in result.err) == (2, True)


def test_name_without_a_namespace_is_in_that_of_the_user(small, shell, hub):
    assert shell("push", small, "--repo_id", "alone").status == 0
    assert hub.repos["me/alone"].files()["model.safetensors"] == (small / "model.safetensors").read_bytes()


def test_push_that_the_hub_refuses_is_refused_before_a_model_without_head_is_fine_tuned(tmp_path, shell, hub):
    save_model(tmp_path / "model", BertModel(tiny_config(id2label=None, label2id=None)))
    for name in ("train.csv", "dev.csv"):
        write_reviews(tmp_path / name, 16)
    job = flags(tmp_path, target_flops=2, hub_model_id="other/films", max_steps=500)
    result = shell("compress", *job, "--push_to_hub")
    assert (result.status, "'loss'" in result.out) == (2, False)
    assert "other/films" in result.err
