"""What a trainer writes beside its model and pushes to the Hub."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from huggingface_hub import CommitInfo
from transformers import Trainer
from transformers.trainer_utils import HubStrategy

from hf_efficient.hub.publisher import HubPublisher, initialize_repo
from hf_efficient.measurement.report import CompressionReport


class PublishingMixin(Trainer):
    """A trainer whose card is made from `report`, and whose pushes go through `publisher`."""

    report: Any
    publisher: HubPublisher

    def complete_report(self, report: CompressionReport) -> CompressionReport:
        """Return the report with what only the caller knows, such as the name of the data; override or replace it."""
        return report

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the report, its picture and the card made from it; the parent's card if nothing was measured."""
        if self.report is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            self.publisher.write_card(self.report, self.args.output_dir)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository; raise PushError, before anything is trained, if the Hub refuses."""
        private = self.args.hub_private_repo if private is None else private
        parent_init = super().init_hf_repo

        def create_repo() -> str | None:
            parent_init(token, private)
            return str(self.hub_model_id) if self.is_world_process_zero() else None

        initialize_repo(
            create_repo, self.args.output_dir, self.args.hub_model_id, private, token or self.args.hub_token
        )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Save the model, write the card and push both, with the code that loading needs; no tokens, no pickles."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token, revision = token or self.args.hub_token, revision or self.args.hub_revision
        private = self.args.hub_private_repo if private is None else private
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        repo_id = str(self.hub_model_id)
        self.create_model_card(**{"model_name": repo_id.rpartition("/")[2], **kwargs})
        return self.publisher.push(self.args.output_dir, repo_id, token, revision, private, commit_message, blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        args = self.args
        if self.is_world_process_zero() and args.hub_strategy != HubStrategy.END:
            self.push_in_progress = self.publisher.push_checkpoint(
                checkpoint_folder,
                str(self.hub_model_id),
                self.state.global_step,
                args.hub_token,
                args.hub_revision,
                args.hub_always_push,
            )
