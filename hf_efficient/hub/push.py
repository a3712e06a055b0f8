"""The way to the Hub: a folder, in one commit a repository; and what went wrong, in one sentence."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from transformers.utils import logging

from hf_efficient.errors import UserError
from hf_efficient.hub.config import PushConfig
from hf_efficient.hub.error_messages import explain_hub_errors
from hf_efficient.hub.files import RepoFiles, collect_files, find_stale_files, minimal_card
from hf_efficient.hub.onnx_repository import plan_repositories

logger = logging.get_logger(__name__)


_background_api = HfApi()  # does one thing after the other


def push_folder(folder: str | os.PathLike[str], config: PushConfig, token: str | None = None) -> dict[str, CommitInfo]:
    """Put what `folder` holds on the Hub and returns the commits, by repository; see `pushable.repositories`.

    The token is that of `hf auth login` or HF_TOKEN, unless one is given. A push can be repeated: what is there
    already is not sent again. The folder is only read.

    Raises ValueError: what others need to load the model is missing, or a repository is public that should not be;
    nothing is uploaded then. Raises PushError: the Hub refused, failed, or was not reached.
    """
    place, api = Path(folder), HfApi(library_name="hf_efficient", token=token)
    collect_files(place)
    repo_id = config.repo_id
    if "/" not in repo_id:
        with explain_hub_errors(place, repo_id):
            repo_id = f"{api.whoami()['name']}/{repo_id}"
    planned = plan_repositories(place, repo_id)
    with explain_hub_errors(place, repo_id):
        api.create_repo(repo_id, private=config.private, exist_ok=True)
        private = bool(api.model_info(repo_id).private)
    if config.private:
        _require_private(repo_id, private)
    commits = {}
    for name, contents in planned.items():  # the main one last: its card links to the other
        with explain_hub_errors(place, name):
            if name != repo_id:
                api.create_repo(name, private=private, exist_ok=True)
                if private and not api.model_info(name).private:
                    raise UserError(f"{name} is public and {repo_id} private: make both private on the Hub")
            if config.revision and not config.revision.startswith("refs/"):
                api.create_branch(name, branch=config.revision, exist_ok=True)
            written = (place / "README.md").exists() or name != repo_id
            commits[name] = _commit(api, name, contents, config, written)
        if config.tag:
            with explain_hub_errors(place, name, f"is pushed, but not tagged {config.tag}"):
                _tag(api, name, commits[name], config)
    return commits


def _commit(api: HfApi, repo_id: str, contents: RepoFiles, config: PushConfig, written: bool) -> CommitInfo:
    """Make the commit. A card that nobody has `written` replaces none."""
    info = api.model_info(repo_id, revision=config.revision)
    held = {each.rfilename for each in info.siblings or ()}
    added = {path: each for path, each in contents.items() if written or path != "README.md" or path not in held}
    additions = [CommitOperationAdd(path, each) for path, each in added.items()]
    if "onnx/model_quantized.onnx" in added:  # is onnx/model.onnx again: of what is there, nothing is sent
        once = [each for each in additions if each.path_in_repo == "onnx/model.onnx"]
        api.preupload_lfs_files(repo_id, once, revision=config.revision, create_pr=config.create_pr, free_memory=False)
    return api.create_commit(
        repo_id,
        [*(CommitOperationDelete(path) for path in find_stale_files(held, contents)), *additions],
        commit_message=config.commit_message,
        revision=config.revision,
        create_pr=config.create_pr,
        parent_commit=info.sha,
    )


def _tag(api: HfApi, repo_id: str, commit: CommitInfo, config: PushConfig) -> None:
    """Give the commit its tag. Raises ValueError: another commit has it."""
    api.create_tag(repo_id, tag=str(config.tag), revision=commit.oid, exist_ok=True)
    if api.model_info(repo_id, revision=config.tag).sha != commit.oid:
        raise UserError(
            f"{repo_id} is pushed as commit {commit.oid[:8]}, but the tag {config.tag} is that of another commit: "
            "give another tag, or remove that one on the Hub"
        )


def push_checkpoint(
    folder: str | os.PathLike[str], repo_id: str, step: int, token: str | None, revision: str | None
) -> Future[CommitInfo]:
    """Push a checkpoint while training goes on, with a card that says so; what only resuming needs stays.

    Its files are held on to from now on: the checkpoint may be removed meanwhile. A failure is a warning.
    """
    place, api = Path(folder), HfApi(library_name="hf_efficient", token=token)
    config = PushConfig(repo_id, revision=revision, commit_message=f"Training in progress, step {step}")
    job: Future[CommitInfo] = Future()
    try:
        contents = collect_files(place)
        kept = tempfile.TemporaryDirectory(prefix="_push-", dir=place.resolve().parent)
        for number, (path, file) in enumerate(contents.items()):
            contents[path] = _link_or_copy(Path(str(file)), Path(kept.name) / str(number))
        card = minimal_card(contents, f"A model in training, at step {step}: figures follow when it is finished.")
    except (ValueError, OSError) as error:
        job.set_exception(error)
    else:

        def run() -> CommitInfo:
            with kept, explain_hub_errors(place, repo_id):
                if revision and not revision.startswith("refs/"):
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
                return _commit(api, repo_id, {**contents, "README.md": card.encode()}, config, written=True)

        job = _background_api.run_as_future(run)
    job.add_done_callback(_warn_on_failure)
    return job


def push_folder_async(
    folder: str | os.PathLike[str], config: PushConfig, token: str | None = None
) -> Future[CommitInfo]:
    """Push in the background, after what is on its way; returns the commit of the model to come."""
    return _background_api.run_as_future(lambda: [*push_folder(folder, config, token).values()][-1])


def check_repo_is_private(repo_id: str, token: str | None) -> None:
    """Raises ValueError: the repository is public."""
    _require_private(repo_id, bool(HfApi(token=token).model_info(repo_id).private))


def _require_private(repo_id: str, private: bool) -> None:
    if not private:
        raise UserError(f"{repo_id} is there and public: make it private on the Hub, or leave out private")


def _link_or_copy(file: Path, path: Path) -> Path:
    """Make `path` a second name of `file`, or a copy where there can be none."""
    try:
        os.link(file.resolve(), path)
    except OSError:
        shutil.copyfile(file, path)
    return path


def _warn_on_failure(job: Future[CommitInfo]) -> None:
    if not job.cancelled() and (error := job.exception()):
        logger.warning(f"training goes on, but a checkpoint is not on the Hub: {error}")
