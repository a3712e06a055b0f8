"""Errors of the Hub's client as messages that say what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from transformers.utils import logging

from hf_efficient.errors import PushError

logger = logging.get_logger(__name__)

# The base class of errors of the HTTP library that the client uses, which differs between its versions.
HTTP_CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
# ConnectionError and TimeoutError come from the client's own transfer library for large files.
CLIENT_ERRORS: tuple[type[Exception], ...] = (
    HTTP_CLIENT_ERROR,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    json.JSONDecodeError,
    ConnectionError,
    TimeoutError,
)
LOGIN_HINT = (
    "log in with `hf auth login`, or set HF_TOKEN to a token with write access (there is no flag for it, since flags "
    "are visible in the list of processes)"
)
STATUS_MESSAGES = {
    401: f"the token is missing or invalid (401): {LOGIN_HINT}",
    403: "the token has no write access there (403): use one that has, or push to a repository of your own",
    404: "the repository or branch does not exist, or the token has no access to it (404): check both names",
    409: "the repository is in conflict with this push (409): check the repository on the Hub, and push again",
    412: "the repository was changed during the push (412): check the repository on the Hub, and push again",
    429: "there were too many requests (429): wait a few minutes, and push again",
}


@contextmanager
def explain_hub_errors(folder: str | os.PathLike[str], repo_id: str, state: str = "is not pushed") -> Iterator[None]:
    """Turn errors of the Hub's client into a `PushError` that says what happened and what to do.

    `state` says what was not done to `repo_id`; `folder` is what was to be pushed.
    """
    try:
        yield
    except CLIENT_ERRORS as error:
        raise PushError(_message(error, folder, repo_id, state)) from error
    except RuntimeError as error:  # the client wraps the error of one file among several
        if not isinstance(error.__cause__, (*CLIENT_ERRORS, RuntimeError)):
            raise
        raise PushError(_message(error, folder, repo_id, state)) from error


def _message(error: BaseException, folder: str | os.PathLike[str], repo_id: str, state: str) -> str:
    """Return the message of a push error."""
    return (
        f"{repo_id} {state}: {_explain(error)}. {os.fspath(folder)} is unchanged; files that were uploaded already "
        "are not sent again"
    )


def _explain(error: BaseException) -> str:
    """Return what happened and what to do about it."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub's client is in offline mode: unset HF_HUB_OFFLINE"
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token: {LOGIN_HINT}"
    response: Any = getattr(error, "response", None)
    if response is None:
        is_unreadable = isinstance(error, json.JSONDecodeError)
        what = "the response of the Hub is not valid JSON" if is_unreadable else "the connection to the Hub failed"
        return f"{what} ({type(error).__name__}: {error}): push again, later if it happens again"
    status = int(response.status_code)
    if status >= 500:
        return f"the Hub had an internal error ({status}): push again, later if it happens again"
    retry_after = response.headers.get("Retry-After", "")
    if status == 429 and retry_after.isdigit():
        return f"there were too many requests (429): wait {retry_after} seconds, and push again"
    server_message = str(getattr(error, "server_message", None) or f"status {status}").strip().rstrip(".")
    return STATUS_MESSAGES.get(status, f"the Hub refused the push ({status}): {server_message}")
