"""Prune, distil and quantize a model, measure it against the original, and save what from_pretrained loads."""

from __future__ import annotations

from collections.abc import Sequence

from hf_efficient.commands.arguments import parse_flags

EXAMPLE = (
    "hf-efficient compress --model_name_or_path MODEL --train_file train.csv --validation_file dev.csv \\\n"
    "      --target_speedup 2 --scheme int8_static --output_dir out"
)


def run(argv: Sequence[str]) -> None:
    """Run `hf-efficient compress`. Raises UserError if the flags or the data cannot work."""
    flags = parse_flags(argv, "compress", str(__doc__), EXAMPLE)
    from hf_efficient.commands.job import run_and_print

    run_and_print(flags)
