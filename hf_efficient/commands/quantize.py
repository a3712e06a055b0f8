"""Store a model in int8 or in codebooks, measure it, and save what from_pretrained loads."""

from __future__ import annotations

from collections.abc import Sequence

from hf_efficient.commands.arguments import NO_TRAINING, parse_flags
from hf_efficient.errors import UserError
from hf_efficient.quantization.config import SCHEMES

EXAMPLE = (
    "hf-efficient quantize --model_name_or_path MODEL --train_file train.csv --validation_file dev.csv \\\n"
    "      --scheme int8_static --output_dir out\n"
    "  hf-efficient quantize --model_name_or_path MODEL --scheme int8_dynamic --output_dir out    # without data"
)


def run(argv: Sequence[str]) -> None:
    """Run `hf-efficient quantize`, which is `compress` without training.

    Raises UserError if there is no scheme, or if something else is requested too.
    """
    groups = ("model", "quantization", "export", "hub")
    flags = parse_flags(argv, "quantize", str(__doc__), EXAMPLE, groups, NO_TRAINING)
    if flags.quantization.scheme is None:
        raise UserError(f"--scheme is required: give one of {', '.join(SCHEMES)}")
    if flags.prunes or flags.quantization.aware:
        raise UserError("quantize neither prunes nor trains: use `hf-efficient compress`, which quantizes at the end")
    from hf_efficient.commands.job import run_and_print

    run_and_print(flags)
