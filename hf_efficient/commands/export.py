"""Write a model for ONNX Runtime and OpenVINO, and measure it in each runtime next to torch."""

from __future__ import annotations

from collections.abc import Sequence

from hf_efficient.commands.arguments import NO_TRAINING, parse_flags
from hf_efficient.errors import UserError
from hf_efficient.exporters.config import EXPORT_FORMATS

EXAMPLE = "hf-efficient export --model_name_or_path MODEL --export onnx --output_dir out"


def run(argv: Sequence[str]) -> None:
    """Run `hf-efficient export`, which is `compress` that does not change the model.

    Data is used for calibration and metrics. Raises UserError if there is no format, or if the model would change.
    """
    flags = parse_flags(argv, "export", str(__doc__), EXAMPLE, ("model", "export", "hub"), NO_TRAINING)
    if not flags.export.formats:
        raise UserError(f"--export is required: give one or more of {', '.join(EXPORT_FORMATS)}")
    if flags.prunes or flags.quantization.scheme is not None:
        raise UserError("export does not change the model: use `hf-efficient compress`, which exports at the end")
    from hf_efficient.commands.job import run_and_print

    run_and_print(flags)
