"""Publishing a trained model: its report and card, its repository, its checkpoints, its final push."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitInfo
from transformers import TrainingArguments
from transformers.utils import PushInProgress

from hf_efficient.hub.config import PushConfig
from hf_efficient.hub.error_messages import explain_hub_errors
from hf_efficient.hub.model_card import write_report_and_card
from hf_efficient.hub.push import check_repo_is_private, push_checkpoint, push_folder, push_folder_async
from hf_efficient.measurement.report import CompressionReport


class HubPublisher:
    """Writes the card of a trained model and pushes the output folder and checkpoints to the Hub.

    | attribute | meaning |
    | --- | --- |
    | base_model | name on the Hub, or folder, of the model that training started from |
    | push_in_progress | pushes of checkpoints that were started last; None before the first |
    """

    def __init__(self, base_model: str) -> None:
        self.base_model = base_model
        self.push_in_progress: PushInProgress | None = None

    def write_card(self, report: CompressionReport, output_dir: str | os.PathLike[str]) -> None:
        """Write `compression_report.json`, its plot and the model card rendered from it into `output_dir`."""
        write_report_and_card(report, output_dir, base_model=self.base_model)

    def push(
        self,
        output_dir: str | os.PathLike[str],
        repo_id: str,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        commit_message: str | None = "End of training",
        blocking: bool = True,
    ) -> CommitInfo | Future[CommitInfo]:
        """Push a finished `output_dir` once the checkpoints before it have arrived; see `push_folder`.

        Return the commit of the model, or a future of it if `blocking` is False.

        Raises UserError if the folder cannot be loaded by others or a public repository should be private, PushError
        if the Hub refuses or cannot be reached.
        """
        if self.push_in_progress is not None:
            self.push_in_progress.wait_until_done()
        config = PushConfig(repo_id, private, revision, commit_message=commit_message or "End of training")
        if not blocking:
            return push_folder_async(output_dir, config, token)
        *_, commit = push_folder(output_dir, config, token).values()
        return commit

    def push_checkpoint(
        self,
        checkpoint_dir: str | os.PathLike[str],
        repo_id: str,
        step: int,
        token: str | None = None,
        revision: str | None = None,
        always_push: bool = False,
    ) -> PushInProgress:
        """Start pushing a checkpoint in the background and return all pushes that are in progress.

        While an earlier push is in progress a checkpoint is skipped, unless `always_push` is True. A push that fails
        is a warning; training continues.
        """
        pushes = self.push_in_progress
        if pushes is None or pushes.is_done() or always_push:
            pending = [] if pushes is None else [job for job in pushes.jobs if not job.done()]
            push = push_checkpoint(checkpoint_dir, repo_id, step, token, revision)
            pushes = self.push_in_progress = PushInProgress([*pending, push])
        return pushes


def initialize_repo(
    create_repo: Callable[[], str | None],
    output_dir: str | os.PathLike[str],
    repo_id: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> None:
    """Create the repository of a training run before it starts, and check that it is private if it should be.

    `create_repo` creates it and returns its full name, or None in a process that does not push. `repo_id` is the name
    that was requested, for messages; None: that of `output_dir`.

    Raises PushError if the Hub refuses or cannot be reached, UserError if `private` is True and the repository public.
    """
    name = repo_id or Path(output_dir).absolute().name
    with explain_hub_errors(output_dir, name):
        created = create_repo()
        if private and created is not None:
            check_repo_is_private(created, token)


def push_output_dir(folder: Path, args: TrainingArguments) -> CommitInfo:
    """Push a finished folder to the repository that `args` name, as `Trainer.push_to_hub` does; see `push_folder`."""
    config = PushConfig(args.hub_model_id or folder.resolve().name, args.hub_private_repo, args.hub_revision)
    *_, commit = push_folder(folder, config, args.hub_token).values()
    return commit
