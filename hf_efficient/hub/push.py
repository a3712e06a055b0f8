"""Pushing a folder or a checkpoint to the Hub, in one commit per repository."""

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


_background_api = HfApi()  # runs one push after the other


def push_folder(folder: str | os.PathLike[str], config: PushConfig, token: str | None = None) -> dict[str, CommitInfo]:
    """Push the files of `folder` to the Hub and return the commits, by repository; see `plan_repositories`.

    The token defaults to that of `hf auth login` or HF_TOKEN. A push can be repeated: files that were uploaded already
    are not sent again. The folder is only read.

    Raises UserError, before anything is uploaded, if a file that loading needs is missing or a repository is public
    that should be private; PushError if the Hub refuses the push or cannot be reached.
    """
    folder, api = Path(folder), HfApi(library_name="hf_efficient", token=token)
    collect_files(folder)
    repo_id = config.repo_id
    if "/" not in repo_id:
        with explain_hub_errors(folder, repo_id):
            repo_id = f"{api.whoami()['name']}/{repo_id}"
    planned = plan_repositories(folder, repo_id)
    with explain_hub_errors(folder, repo_id):
        api.create_repo(repo_id, private=config.private, exist_ok=True)
        private = bool(api.model_info(repo_id).private)
    if config.private:
        _require_private(repo_id, private)
    commits = {}
    for name, contents in planned.items():  # the main repository last: its card links to the other
        with explain_hub_errors(folder, name):
            if name != repo_id:
                api.create_repo(name, private=private, exist_ok=True)
                if private and not api.model_info(name).private:
                    raise UserError(f"{name} is public and {repo_id} is private: make both private on the Hub")
            if config.revision and not config.revision.startswith("refs/"):
                api.create_branch(name, branch=config.revision, exist_ok=True)
            has_card = (folder / "README.md").exists() or name != repo_id
            commits[name] = _commit(api, name, contents, config, has_card)
        if config.tag:
            with explain_hub_errors(folder, name, f"is pushed but not tagged {config.tag}"):
                _tag(api, name, commits[name], config)
    return commits


def _commit(api: HfApi, repo_id: str, contents: RepoFiles, config: PushConfig, has_card: bool) -> CommitInfo:
    """Create the commit. Without `has_card` the card in `contents` is generated, and does not replace another one."""
    info = api.model_info(repo_id, revision=config.revision)
    remote_files = {file.rfilename for file in info.siblings or ()}
    added = {
        path: content
        for path, content in contents.items()
        if has_card or path != "README.md" or path not in remote_files
    }
    additions = [CommitOperationAdd(path, content) for path, content in added.items()]
    if "onnx/model_quantized.onnx" in added:  # equal to onnx/model.onnx, so that it need not be sent a second time
        graph = [addition for addition in additions if addition.path_in_repo == "onnx/model.onnx"]
        api.preupload_lfs_files(
            repo_id, graph, revision=config.revision, create_pr=config.create_pr, free_memory=False
        )
    return api.create_commit(
        repo_id,
        [*(CommitOperationDelete(path) for path in find_stale_files(remote_files, contents)), *additions],
        commit_message=config.commit_message,
        revision=config.revision,
        create_pr=config.create_pr,
        parent_commit=info.sha,
    )


def _tag(api: HfApi, repo_id: str, commit: CommitInfo, config: PushConfig) -> None:
    """Tag the commit. Raises UserError if another commit has the tag."""
    api.create_tag(repo_id, tag=str(config.tag), revision=commit.oid, exist_ok=True)
    if api.model_info(repo_id, revision=config.tag).sha != commit.oid:
        raise UserError(
            f"{repo_id} is pushed as commit {commit.oid[:8]}, but another commit has the tag {config.tag}: give "
            "another tag, or delete that one on the Hub"
        )


def push_checkpoint(
    folder: str | os.PathLike[str], repo_id: str, step: int, token: str | None, revision: str | None
) -> Future[CommitInfo]:
    """Push a checkpoint in the background, with a card that says that training is in progress.

    Files that only resuming needs are not pushed. The others are linked into a temporary folder first, so that the
    checkpoint may be deleted during the push. An error is logged as a warning and is in the future.
    """
    folder, api = Path(folder), HfApi(library_name="hf_efficient", token=token)
    config = PushConfig(repo_id, revision=revision, commit_message=f"Training in progress, step {step}")
    job: Future[CommitInfo] = Future()
    try:
        contents = collect_files(folder)
        snapshot_dir = tempfile.TemporaryDirectory(prefix="_push-", dir=folder.resolve().parent)
        for number, (path, file) in enumerate(contents.items()):
            contents[path] = _link_or_copy(Path(str(file)), Path(snapshot_dir.name) / str(number))
        card = minimal_card(
            contents, f"A model in training, at step {step}. Measurements follow at the end of training."
        )
    except (ValueError, OSError) as error:
        job.set_exception(error)
    else:

        def run() -> CommitInfo:
            with snapshot_dir, explain_hub_errors(folder, repo_id):
                if revision and not revision.startswith("refs/"):
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
                return _commit(api, repo_id, {**contents, "README.md": card.encode()}, config, has_card=True)

        job = _background_api.run_as_future(run)
    job.add_done_callback(_warn_on_failure)
    return job


def push_folder_async(
    folder: str | os.PathLike[str], config: PushConfig, token: str | None = None
) -> Future[CommitInfo]:
    """Push `folder` in the background, after pushes that are in progress; return a future of the model's commit."""
    return _background_api.run_as_future(lambda: [*push_folder(folder, config, token).values()][-1])


def check_repo_is_private(repo_id: str, token: str | None) -> None:
    """Raise UserError if the repository is public."""
    _require_private(repo_id, bool(HfApi(token=token).model_info(repo_id).private))


def _require_private(repo_id: str, private: bool) -> None:
    if not private:
        raise UserError(f"{repo_id} exists and is public: make it private on the Hub, or leave out private")


def _link_or_copy(file: Path, path: Path) -> Path:
    """Make `path` a hard link to `file`, or a copy where the file system has no links."""
    try:
        os.link(file.resolve(), path)
    except OSError:
        shutil.copyfile(file, path)
    return path


def _warn_on_failure(job: Future[CommitInfo]) -> None:
    if not job.cancelled() and (error := job.exception()):
        logger.warning(f"training continues, but a checkpoint is not on the Hub: {error}")
