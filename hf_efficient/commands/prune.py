"""Remove parts of a model without training it, measure it, and save what from_pretrained loads."""

from __future__ import annotations

from collections.abc import Sequence

from hf_efficient.commands.arguments import NO_TRAINING, parse_flags
from hf_efficient.errors import UserError

EXAMPLE = (
    "hf-efficient prune --model_name_or_path MODEL --train_file train.csv --validation_file dev.csv \\\n"
    "      --target_speedup 2 --output_dir out"
)


def run(argv: Sequence[str]) -> None:
    """Run `hf-efficient prune`, which is `compress` without training.

    Raises UserError if nothing is to be pruned, or if something else is requested too.
    """
    flags = parse_flags(argv, "prune", str(__doc__), EXAMPLE, ("model", "pruning", "export", "hub"), NO_TRAINING)
    if not flags.prunes:
        raise UserError(
            "nothing is to be pruned: give --target_speedup 2, --target_flops 2, --heads 0.3, --layers 0.5, "
            "--weights 0.5, --vocabulary or another pruning flag (--help)"
        )
    if flags.quantization.scheme is not None:
        raise UserError("prune does not quantize: leave out --scheme, or use `hf-efficient compress`")
    from hf_efficient.commands.job import run_and_print

    run_and_print(flags)
