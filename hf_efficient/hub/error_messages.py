"""Errors of the Hub's client, explained in one sentence each."""

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

HTTP_CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # of the HTTP library that the client uses
LOGIN_HINT = (
    "log in by `hf auth login`, or set HF_TOKEN to a token that may write (there is no flag for it: flags show in the "
    "list of processes)"
)
STATUS_MESSAGES = {
    401: f"the Hub takes no such token, or there is none (401): {LOGIN_HINT}",
    403: "the token may not write there (403): take one with write access, or name a repository of your own",
    404: "the Hub does not find it, or the token may not see it (404): look at the name and the branch",
    409: "something else is there, or happens there at the same time (409): look at the repository, and push again",
    412: "it was changed by somebody else meanwhile (412): look at the repository, and push again",
    429: "the Hub was asked too often (429): wait a few minutes, and push again",
}


@contextmanager
def explain_hub_errors(folder: str | os.PathLike[str], repo_id: str, state: str = "is not pushed") -> Iterator[None]:
    """Turns the errors of the Hub's client into one sentence each. Raises PushError."""
    try:
        yield
    except (
        HTTP_CLIENT_ERROR,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RuntimeError,
        json.JSONDecodeError,
    ) as error:
        raise PushError(
            f"{repo_id} {state}: {_explain(error)}. Nothing in {os.fspath(folder)} is changed; what has arrived "
            "already will not be sent again"
        ) from error


def _explain(error: BaseException) -> str:
    """Return what happened and what to do."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # of one file among several
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub's client is offline: unset HF_HUB_OFFLINE"
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token: {LOGIN_HINT}"
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
    return STATUS_MESSAGES.get(status, f"the Hub refused ({status}): {said}")
