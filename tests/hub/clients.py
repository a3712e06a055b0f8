"""Processes that use the real client of the Hub, with a token that must not leak."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

EXPORTS = [format for format, package in (("onnx", "onnxruntime"), ("openvino", "openvino")) if find_spec(package)]
TOKEN = "hf_canaryXYZthatMustNotLeak000000042"
OTHERS_TOKEN = "hf_canaryXYZofSomebodyElse0000000007"
RUN = "import sys; from hf_efficient.cli import main; sys.exit(main(sys.argv[1:]))"
# Runs a command for each line that it reads, so that the libraries are imported once.
SHELL = """
import contextlib, io, json, os, sys, traceback
from hf_efficient.cli import main

for line in sys.stdin:
    arguments, token = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except BaseException:
            status = "raised"
            traceback.print_exc()
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


class Shell:
    """A process that runs commands one after the other, with the token in its environment."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHELL],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )

    def __call__(self, *arguments: object, token: str | None = TOKEN) -> SimpleNamespace:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([[str(argument) for argument in arguments], token]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        status, out, err = json.loads(line)
        self.output += out + err
        return SimpleNamespace(status=status, out=out, err=err)


def run(environment: dict[str, str], arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=1200
    )


def hashes(folder: Path) -> dict[str, str]:
    """Returns the hash of every file in `folder`."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
