"""Publishing what a trainer made."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitInfo
from transformers import TrainingArguments
from transformers.utils import logging

from hf_efficient.hub.config import PushConfig
from hf_efficient.hub.push import push_folder

logger = logging.get_logger(__name__)


def push_output_dir(folder: Path, args: TrainingArguments) -> CommitInfo:
    """Uploads a finished folder as `Trainer.push_to_hub` would have; see `push_folder`."""
    name = args.hub_model_id or folder.resolve().name
    *_, commit = push_folder(
        folder, PushConfig(name, args.hub_private_repo, args.hub_revision), args.hub_token
    ).values()
    return commit
