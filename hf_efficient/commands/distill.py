"""Train a student with a teacher, measure it, and save what from_pretrained loads."""

from __future__ import annotations

from collections.abc import Sequence

from hf_efficient.commands.arguments import parse_flags
from hf_efficient.errors import UserError

EXAMPLE = (
    "hf-efficient distill --model_name_or_path TEACHER --student_layers 3 --train_file train.csv \\\n"
    "      --validation_file dev.csv --output_dir out"
)
GROUPS = ("model", "distillation", "export", "training", "hub")


def run(argv: Sequence[str]) -> None:
    """Run `hf-efficient distill`, which is `compress` with a teacher and no other technique.

    Raises UserError if something else is requested too, or if the student would be its own teacher.
    """
    flags = parse_flags(argv, "distill", str(__doc__), EXAMPLE, GROUPS, ("--distil=True",))
    if flags.prunes or flags.quantization.scheme is not None:
        raise UserError("distill neither prunes nor quantizes: use `hf-efficient compress`, which distils too")
    if not (flags.model.creates_student or flags.model.teacher_name_or_path):
        raise UserError(
            "there is no teacher: name one (--teacher_name_or_path), or create a student from the model "
            "(--student_layers 3, --student_config hidden_size=128,...)"
        )
    from hf_efficient.commands.job import run_and_print

    run_and_print(flags)
