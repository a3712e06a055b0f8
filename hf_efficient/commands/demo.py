"""`hf-efficient demo`: compress a small model on this machine, without network or downloads."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from hf_efficient.errors import UserError

# Marks a directory that the demo created, and that it may therefore replace.
MARKER_NAME = ".hf_efficient_demo"
OUTPUT_NAMES = ("untrained", "python-docstrings", "teacher", "student")


def run(argv: Sequence[str]) -> None:
    """Run `hf-efficient demo`. Raises UserError if the output directory holds files that the demo did not write."""
    parser = argparse.ArgumentParser(
        prog="hf-efficient demo",
        description="Train a small BERT on the docstrings of this Python, halve its latency by pruning and "
        "distillation, quantize it to 8 bits, measure teacher and student, and load the result in a process "
        "without this package. Nothing is downloaded; it takes less than five minutes on two cores.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--output_dir",
        default="demo-output",
        help="directory of the data, the teacher and the student; an earlier demo in it is replaced "
        "(default: %(default)s)",
    )
    parser.add_argument("--overwrite_output_dir", action="store_true", help=argparse.SUPPRESS)  # is always done now
    output_dir = Path(parser.parse_args(argv).output_dir)
    prepare_output_dir(output_dir)

    from hf_efficient.commands.stage_display import StageDisplay

    with StageDisplay() as display:
        display.start("Import PyTorch and Transformers")
        from hf_efficient.commands.demo_pipeline import run_demo

        display.finish()
        run_demo(output_dir, display)


def prepare_output_dir(output_dir: Path) -> None:
    """Create `output_dir`, or remove what an earlier demo wrote into it.

    Raises UserError if it is not a directory that the demo created, or cannot be written.
    """
    try:
        if output_dir.is_dir() and any(output_dir.iterdir()):
            if not (output_dir / MARKER_NAME).is_file():
                raise UserError(
                    f"output_dir={str(output_dir)!r} contains files that the demo did not write, which it does not "
                    "remove: give a new or an empty directory"
                )
            for path in (output_dir / name for name in OUTPUT_NAMES):
                if path.is_symlink() or path.is_file():
                    path.unlink()
                elif path.exists():
                    shutil.rmtree(path)
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / MARKER_NAME).touch()
    except OSError as error:
        raise UserError(f"output_dir={str(output_dir)!r} cannot be written: {error.strerror}") from error
