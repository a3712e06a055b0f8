"""The way to the Hub: a folder, in one commit a repository; and what went wrong, in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers.utils import logging

from hf_efficient.pushable import COMPANION, Contents, collect, repositories, small_card, stale

logger = logging.get_logger(__name__)

HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # of the HTTP library that the client uses
LOGIN = (
    "log in by `hf auth login`, or set HF_TOKEN to a token that may write (there is no flag for it: flags show in the "
    "list of processes)"
)
REASONS = {
    401: f"the Hub takes no such token, or there is none (401): {LOGIN}",
    403: "the token may not write there (403): take one with write access, or name a repository of your own",
    404: "the Hub does not find it, or the token may not see it (404): look at the name and the branch",
    409: "something else is there, or happens there at the same time (409): look at the repository, and push again",
    412: "it was changed by somebody else meanwhile (412): look at the repository, and push again",
    429: "the Hub was asked too often (429): wait a few minutes, and push again",
}


_QUEUE = HfApi()  # does one thing after the other


class PushError(OSError):
    """A push that came to nothing, in one sentence: what happened, and what to do."""


@dataclass(frozen=True)
class PushConfig:
    """Where a folder is pushed to, and how.

    | field | meaning |
    | --- | --- |
    | repo_id | user/name or organisation/name; a name alone is in your own namespace |
    | private | True: private, where the repository is new; an old one that is public is refused |
    | revision | a branch, made where there is none; None: main |
    | tag | name of the commit that the push makes |
    | create_pr | propose the commit in a pull request |

    Raises ValueError: the name is no name of a repository, or two settings contradict each other.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    tag: str | None = None
    create_pr: bool = False
    commit_message: str = "Add compressed model"

    def __post_init__(self) -> None:
        try:
            validate_repo_id(f"{self.repo_id}{COMPANION}")
        except HFValidationError as error:
            raise ValueError(
                f"repo_id={self.repo_id!r} is no name on the Hub: give user/name, of letters, digits, -, _ and ."
            ) from error
        if self.create_pr and (self.revision or self.tag):
            raise ValueError("create_pr proposes a commit to main: leave out revision and tag, or create_pr")
        if not self.commit_message:
            raise ValueError("commit_message is empty: say what the commit does")


def push(folder: str | os.PathLike[str], config: PushConfig, token: str | None = None) -> dict[str, CommitInfo]:
    """Puts what `folder` holds on the Hub and returns the commits, by repository; see `pushable.repositories`.

    The token is that of `hf auth login` or HF_TOKEN, unless one is given. A push can be repeated: what is there
    already is not sent again. The folder is only read.

    Raises ValueError: what others need to load the model is missing, or a repository is public that should not be;
    nothing is uploaded then. Raises PushError: the Hub refused, failed, or was not reached.
    """
    place, api = Path(folder), HfApi(library_name="hf_efficient", token=token)
    collect(place)
    repo_id = config.repo_id
    if "/" not in repo_id:
        with told(place, repo_id):
            repo_id = f"{api.whoami()['name']}/{repo_id}"
    planned = repositories(place, repo_id)
    with told(place, repo_id):
        api.create_repo(repo_id, private=config.private, exist_ok=True)
        private = bool(api.model_info(repo_id).private)
    if config.private:
        _refuse_public(repo_id, private)
    commits = {}
    for name, contents in planned.items():  # the main one last: its card links to the other
        with told(place, name):
            if name != repo_id:
                api.create_repo(name, private=private, exist_ok=True)
                if private and not api.model_info(name).private:
                    raise ValueError(f"{name} is public and {repo_id} private: make both private on the Hub")
            if config.revision and not config.revision.startswith("refs/"):
                api.create_branch(name, branch=config.revision, exist_ok=True)
            written = (place / "README.md").exists() or name != repo_id
            commits[name] = _commit(api, name, contents, config, written)
        if config.tag:
            with told(place, name, f"is pushed, but not tagged {config.tag}"):
                _tag(api, name, commits[name], config)
    return commits


def _commit(api: HfApi, repo_id: str, contents: Contents, config: PushConfig, written: bool) -> CommitInfo:
    """Makes the commit. A card that nobody has `written` replaces none."""
    info = api.model_info(repo_id, revision=config.revision)
    held = {each.rfilename for each in info.siblings or ()}
    added = {path: each for path, each in contents.items() if written or path != "README.md" or path not in held}
    additions = [CommitOperationAdd(path, each) for path, each in added.items()]
    if "onnx/model_quantized.onnx" in added:  # is onnx/model.onnx again: of what is there, nothing is sent
        once = [each for each in additions if each.path_in_repo == "onnx/model.onnx"]
        api.preupload_lfs_files(repo_id, once, revision=config.revision, create_pr=config.create_pr, free_memory=False)
    return api.create_commit(
        repo_id,
        [*(CommitOperationDelete(path) for path in stale(held, contents)), *additions],
        commit_message=config.commit_message,
        revision=config.revision,
        create_pr=config.create_pr,
        parent_commit=info.sha,
    )


def _tag(api: HfApi, repo_id: str, commit: CommitInfo, config: PushConfig) -> None:
    """Gives the commit its tag. Raises ValueError: another commit has it."""
    api.create_tag(repo_id, tag=str(config.tag), revision=commit.oid, exist_ok=True)
    if api.model_info(repo_id, revision=config.tag).sha != commit.oid:
        raise ValueError(
            f"{repo_id} is pushed as commit {commit.oid[:8]}, but the tag {config.tag} is that of another commit: "
            "give another tag, or remove that one on the Hub"
        )


def push_in_background(
    folder: str | os.PathLike[str], repo_id: str, step: int, token: str | None, revision: str | None
) -> Future[CommitInfo]:
    """Pushes a checkpoint while training goes on, with a card that says so; what only resuming needs stays.

    Its files are held on to from now on: the checkpoint may be removed meanwhile. A failure is a warning.
    """
    place, api = Path(folder), HfApi(library_name="hf_efficient", token=token)
    config = PushConfig(repo_id, revision=revision, commit_message=f"Training in progress, step {step}")
    job: Future[CommitInfo] = Future()
    try:
        contents = collect(place)
        kept = tempfile.TemporaryDirectory(prefix="_push-", dir=place.resolve().parent)
        for number, (path, file) in enumerate(contents.items()):
            contents[path] = _link(Path(str(file)), Path(kept.name) / str(number))
        card = small_card(contents, f"A model in training, at step {step}: figures follow when it is finished.")
    except (ValueError, OSError) as error:
        job.set_exception(error)
    else:

        def run() -> CommitInfo:
            with kept, told(place, repo_id):
                if revision and not revision.startswith("refs/"):
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
                return _commit(api, repo_id, {**contents, "README.md": card.encode()}, config, written=True)

        job = _QUEUE.run_as_future(run)
    job.add_done_callback(_warn)
    return job


def push_later(folder: str | os.PathLike[str], config: PushConfig, token: str | None = None) -> Future[CommitInfo]:
    """Pushes in the background, after what is on its way; returns the commit of the model to come."""
    return _QUEUE.run_as_future(lambda: [*push(folder, config, token).values()][-1])


def check_private(repo_id: str, token: str | None) -> None:
    """Raises ValueError: the repository is public."""
    _refuse_public(repo_id, bool(HfApi(token=token).model_info(repo_id).private))


def _refuse_public(repo_id: str, private: bool) -> None:
    if not private:
        raise ValueError(f"{repo_id} is there and public: make it private on the Hub, or leave out private")


def _link(file: Path, path: Path) -> Path:
    """Makes `path` a second name of `file`, or a copy where there can be none."""
    try:
        os.link(file.resolve(), path)
    except OSError:
        shutil.copyfile(file, path)
    return path


def _warn(job: Future[CommitInfo]) -> None:
    if not job.cancelled() and (error := job.exception()):
        logger.warning(f"training goes on, but a checkpoint is not on the Hub: {error}")


@contextmanager
def told(folder: str | os.PathLike[str], repo_id: str, state: str = "is not pushed") -> Iterator[None]:
    """Turns the errors of the Hub's client into one sentence each. Raises PushError."""
    try:
        yield
    except (HTTP_ERROR, LocalTokenNotFoundError, OfflineModeIsEnabled, RuntimeError, json.JSONDecodeError) as error:
        raise PushError(
            f"{repo_id} {state}: {_reason(error)}. Nothing in {os.fspath(folder)} is changed; what has arrived "
            "already will not be sent again"
        ) from error


def _reason(error: BaseException) -> str:
    """Returns what happened and what to do."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # of one file among several
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub's client is offline: unset HF_HUB_OFFLINE"
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token: {LOGIN}"
    response: Any = getattr(error, "response", None)
    if response is None:
        unreadable = isinstance(error, json.JSONDecodeError)
        what = "the Hub's answer was unreadable" if unreadable else "the connection to the Hub was lost, or not made"
        return f"{what} ({type(error).__name__}: {error}): push again, later if it happens again"
    status = int(response.status_code)
    if status >= 500:
        return f"the Hub failed ({status}): push again, later if it happens again"
    after = response.headers.get("Retry-After", "")
    if status == 429 and after.isdigit():
        return f"the Hub was asked too often (429): wait {after} seconds, and push again"
    said = str(getattr(error, "server_message", None) or f"status {status}").strip().rstrip(".")
    return REASONS.get(status, f"the Hub refused ({status}): {said}")
