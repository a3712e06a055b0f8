"""What a run is: its settings, its model, its data, its process and its files, as a file in the output directory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import DatasetDict

from hf_efficient.commands.config import JobConfig
from hf_efficient.files.replacing import replacing

MANIFEST_NAME = ".hf_efficient_run.json"
LOCK_NAME = ".hf_efficient_run.lock"
FILES_OF_A_MODEL = ("*.safetensors", "*.bin", "*.json", "*.model", "*.txt", "*.py")
ROWS_OF_A_BATCH, BYTES_OF_A_BLOCK = 10_000, 2**20
# The training arguments that change the weights; others, such as those of logging and pushing, may differ on resuming.
TRAINING_SETTINGS = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm"),
    *("label_smoothing_factor", "seed", "data_seed", "bf16", "fp16"),
)
MODEL_SETTINGS = ("student_layers", "student_config", "task", "distil")


@dataclasses.dataclass(frozen=True)
class RunManifest:
    """The record of a run.

    | field | meaning |
    | --- | --- |
    | settings | what the result depends on, by name; models and data by a hash of their content |
    | stage | "running", or "finished" |
    | foreign | files that were in the output directory before the run |
    | files | files that a finished run wrote |
    | process, host | the id of the process that writes, and the name of its machine |
    """

    settings: Mapping[str, Any]
    stage: str = "running"
    foreign: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    process: int = dataclasses.field(default_factory=os.getpid)
    host: str = dataclasses.field(default_factory=socket.gethostname)

    @classmethod
    def load(cls, folder: Path) -> RunManifest | None:
        """Return the record in `folder`; None if there is none, or none that can be read."""
        try:
            values = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
            lists = {name: tuple(map(str, values[name])) for name in ("foreign", "files")}
            return cls(**{**values, **lists, "settings": dict(values["settings"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def save(self, folder: Path) -> None:
        """Write the record into `folder` in one atomic step."""
        with replacing(folder / MANIFEST_NAME) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    def differences(self, settings: Mapping[str, Any]) -> str:
        """Return "rounds was 2 and is 1, ..." for the settings that differ from those of the run."""
        names = sorted(self.settings.keys() | settings.keys())
        differing = [name for name in names if self.settings.get(name) != settings.get(name)]
        return ", ".join(
            f"{name} is another one"
            if name in ("model", "tokenizer", "teachers", "data")
            else f"{name} was {self.settings.get(name)!r} and is {settings.get(name)!r}"
            for name in differing
        )


def settings_of_job(config: JobConfig, splits: DatasetDict) -> dict[str, Any]:
    """Return what the result of a job depends on, in the form that JSON has."""
    settings: dict[str, Any] = {name: getattr(config.training, name) for name in TRAINING_SETTINGS}
    settings |= {name: getattr(config.model, name) for name in MODEL_SETTINGS}
    for part in (config.distillation, config.pruning, config.quantization, config.export):
        settings |= dataclasses.asdict(part)
    settings |= {
        "model": hash_of_model(config.model.model_name_or_path),
        "tokenizer": hash_of_model(config.model.tokenizer_name or config.model.model_name_or_path),
        "teachers": [hash_of_model(name) for name in config.model.teacher_name_or_path or ()],
        "data": hash_of_data(splits),
        "max_length": config.data.max_length,
        "max_target_length": config.data.max_target_length,
    }
    readable: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return readable


def hash_of_model(name: str) -> str:
    """Return a hash of the files of a model in a folder; the name itself of a model on the Hub."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted({path for pattern in FILES_OF_A_MODEL for path in folder.glob(pattern) if path.is_file()}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(BYTES_OF_A_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def hash_of_data(splits: DatasetDict) -> str:
    """Return a hash of all rows of all splits: of the table that a split selects from, and of what it selects."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        digest.update(name.encode())
        for part in (splits[name].data, splits[name]._indices):  # the rows in their order would be copied one by one
            if part is not None:
                table = part.table.replace_schema_metadata(None).combine_chunks()
                for batch in table.to_batches(ROWS_OF_A_BATCH):
                    sink = pa.BufferOutputStream()
                    with pa.ipc.new_stream(sink, batch.schema) as writer:
                        writer.write_batch(batch)
                    digest.update(memoryview(sink.getvalue()))
    return digest.hexdigest()
