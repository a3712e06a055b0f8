"""What a command may write into its output directory, and what it clears there first."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers.utils import logging

from hf_efficient.commands.config import JobConfig
from hf_efficient.errors import UserError
from hf_efficient.exporters.config import EXPORT_FORMATS
from hf_efficient.measurement.report import REPORT_NAME

logger = logging.get_logger(__name__)


def check_output_dir(job: JobConfig, output: Path) -> None:
    """Raises ValueError: `output` holds a model, or a half finished run, that nobody said to replace or continue."""
    held = [name for name in ("config.json", REPORT_NAME) if (output / name).exists()]
    begun = [path.name for path in output.glob("_*")] + [path.name for path in output.glob("checkpoint-*")]
    if job.model.overwrite_output_dir or job.training.resume_from_checkpoint or not (held or begun):
        return
    raise UserError(
        f"output_dir={str(output)!r} already holds {'a model' if held else 'a run that was begun'} "
        f"({', '.join(held or sorted(begun))}): name another folder, give --overwrite_output_dir to replace it, or "
        "--resume_from_checkpoint True to go on"
    )


def clear_output_dir(output: Path, keep: str) -> None:
    """Remove what an earlier run left to resume from, and the word that it was finished.

    The model itself is replaced once the new one is there; its exports would not be.
    """
    (output / REPORT_NAME).unlink(missing_ok=True)
    exports = [output / format for format in EXPORT_FORMATS if (output / format).is_dir()]
    for path in [*output.glob("_*"), *output.glob("checkpoint-*"), *output.glob("*.partial"), *exports]:
        if path.is_file():
            path.unlink()
        elif path.name != keep:
            shutil.rmtree(path)
