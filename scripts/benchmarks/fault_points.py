"""The run that `faults.py` disturbs, and the file operations in it at which a disturbance can happen."""

from __future__ import annotations

import contextlib
import copy
import csv
import errno
import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, BertModel, modeling_utils, set_seed
from transformers.exporters import OnnxExporter

import hf_efficient.commands.job  # imported here, so that the processes of the runs start without delay
import hf_efficient.exporters.onnx_int8
import hf_efficient.quantization.calibration  # noqa: F401
from hf_efficient.cli import main as hf_efficient_cli
from hf_efficient.commands.demo_dataset import train_tokenizer

WORDS = (("bad", "awful", "dull", "poor"), ("good", "great", "lovely", "fine"))
FLAGS = "--heads 0.5 --neurons 0.5 --rounds 2 --multiple_of 4 --scheme int8_static --export onnx "
FLAGS += "--compile False --num_train_epochs 1 --save_steps 2 --save_total_limit 2 --learning_rate 5e-3 "
FLAGS += "--report_to none --use_cpu True --disable_tqdm True --per_device_train_batch_size 8"
WEIGHTS = ("model.safetensors", "_student/model.safetensors", "_teacher/model.safetensors")
EXPORTED = "onnx/model.onnx"
WRITE_MODES = ("w", "a", "x", "+")
MOVES = {"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
TIMEOUT_S = 300
HUNG = -1


def make_inputs(folder: Path) -> list[str]:
    """Write models and data into `folder`, and return the arguments of the run without its output directory."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=200, max_position_embeddings=32, **sizes)
    tokenizer = train_tokenizer([" ".join(("the film was", *WORDS[0], *WORDS[1]))], 200)
    set_seed(0)
    for name, model_class in (("model", BertModel), ("classifier", BertForSequenceClassification)):
        model_class(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, count in (("train", 32), ("dev", 8)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = [[f"the {WORDS[i % 2][i % 4]} film was {WORDS[i % 2][i * 7 % 4]}", i % 2] for i in range(count)]
            csv.writer(file).writerows([["sentence", "label"], *rows])
    data = ["--train_file", str(folder / "train.csv"), "--validation_file", str(folder / "dev.csv")]
    return ["compress", "--model_name_or_path", str(folder / "model"), *FLAGS.split(), *data]


class FileOperations:
    """Calls `act(number)` before each operation in `folder` that changes a file; numbers start at 0.

    Operations of Python are seen by an audit hook; those of safetensors and of `torch.save` by a wrapper, which also
    counts a file that is written in part. `fail_from` makes all writes from an operation on fail as on a full disk.
    `is_write` says whether the operation that `act` is called for writes content, and could fail in this way.
    """

    def __init__(self, folder: Path, act: Callable[[int], None], fail_from: int | None = None) -> None:
        self.folder, self.act, self.fail_from, self.count = str(folder), act, fail_from, 0
        self.is_acting = self.is_write = False

    def install(self) -> None:
        """Watch the operations of this process until it ends."""
        sys.addaudithook(self._audit)
        save_file, torch_save = safetensors.torch.save_file, torch.save
        wrapped = self._wrap(save_file, 1, SafetensorError("Error while serializing: No space left on device"))
        for module in list(sys.modules.values()):
            for name, value in list(vars(module).items()) if hasattr(module, "__dict__") else ():
                if value is save_file:
                    setattr(module, name, wrapped)
        modeling_utils.safe_save_file = wrapped
        torch.save = self._wrap(torch_save, 1, RuntimeError("PytorchStreamWriter failed writing file data/0"))

    @property
    def is_full(self) -> bool:
        """Whether the disk is full now."""
        return self.fail_from is not None and self.count > self.fail_from

    def _operation(self, path: Any, is_write: bool) -> bool:
        """Count an operation on `path`; return whether it is in the folder."""
        is_inside = isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(self.folder)
        if not is_inside or self.is_acting:
            return False
        self.is_acting, self.is_write = True, is_write
        try:
            self.act(self.count)
        finally:
            self.is_acting = False
            self.count += 1  # also if Ctrl-C is pressed now: once
        return True

    def _audit(self, event: str, values: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(values[1], str) and any(mode in values[1] for mode in WRITE_MODES):
            if self._operation(values[0], is_write=True) and self.is_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(values[0]))
        elif event in MOVES:
            self._operation(values[1] if event == "os.link" else values[0], is_write=False)

    def _wrap(self, write: Callable[..., Any], position: int, error: Exception) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            path = args[position] if len(args) > position else kwargs.get("filename", kwargs.get("f"))
            if not isinstance(path, (str, os.PathLike)):
                return write(*args, **kwargs)
            self._operation(path, is_write=False)
            result = write(*args, **kwargs)
            if os.path.abspath(path).startswith(self.folder):
                with _cut_short(path):
                    self._operation(path, is_write=True)
                    if self.is_full:
                        raise error
            return result

        return wrapped


@contextlib.contextmanager
def _cut_short(path: str | os.PathLike[str]) -> Iterator[None]:
    """Leave half of the file at `path` within the context, and if it ends in an error."""
    content = Path(path).read_bytes()
    os.truncate(path, len(content) // 2)
    yield
    Path(path).write_bytes(content)


def run(arguments: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Run `hf-efficient` in a fork of this process and return its status; a run that hangs is ended: `HUNG`."""
    pid = os.fork()
    if not pid:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        status = 70
        try:
            prepare()
            status = hf_efficient_cli(arguments)
        except SystemExit as error:
            status = int(error.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return HUNG


def convert_once() -> None:
    """Let the conversion to ONNX, most of the time of a run, be computed once for the same weights and data.

    It writes no files. Runs in later forks of this process use what an earlier run in this process computed.
    """
    kept: dict[str, tuple[Any, Any]] = {}
    export_program = OnnxExporter.export_program

    def export_once(self: Any, model: torch.nn.Module, sample_inputs: Any, config: Any) -> tuple[Any, Any]:
        batches = config.quantizer.calibration_dataset or ()
        values = model.state_dict()
        for number, batch in enumerate(batches):
            values |= {f"{number} {name}": value for name, value in batch.items()}
        digest = hashlib.sha256(config.to_json_string().encode())
        for name, value in sorted(values.items()):
            digest.update(name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
        key = digest.hexdigest()
        if key not in kept:
            kept[key] = export_program(self, model, sample_inputs, config)
        program, metadata = kept[key]
        return program.clone(), copy.deepcopy(metadata)

    OnnxExporter.export_program = export_once


def read_weights(folder: Path) -> dict[str, str]:
    """Return a hash of every tensor of the saved models, by file and name, and of the exported file."""
    hashes = {}
    for name in WEIGHTS:
        for tensor, value in load_file(folder / name).items() if (folder / name).exists() else ():
            content = value.contiguous().view(torch.uint8).numpy().tobytes()
            hashes[f"{name} {tensor}"] = hashlib.sha256(content).hexdigest()
    if (folder / EXPORTED).exists():
        hashes[EXPORTED] = hashlib.sha256((folder / EXPORTED).read_bytes()).hexdigest()
    return hashes


def hash_of_folder(folder: Path) -> str:
    """Return a hash of the names and contents in `folder`."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def snapshot(folder: Path, target: Path) -> None:
    """Copy `folder` as it is on the disk: what a process leaves that is killed now."""
    shutil.copytree(folder, target, symlinks=True)
