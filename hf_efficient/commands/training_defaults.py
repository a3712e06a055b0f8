"""How a student is trained, where the user says nothing about it: how long, how fast, how gradually it is cut."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from statistics import mean

from transformers import TrainingArguments
from transformers.utils import logging

from hf_efficient.pruning.callbacks import GRADIENT_SCORES
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.pruning.fractions import parse_fractions

logger = logging.get_logger(__name__)

# The best in scripts/benchmarks/recipe.py; training ends earlier where the student stops improving.
DISTILLATION_STEPS, MAX_EPOCHS = 3000, 20
LEARNING_RATE, MAX_LEARNING_RATE = 5e-5, 5e-4  # of a student as large as its teacher, and of the smallest ones
WARMUP = 0.1  # of the steps
# Where less is removed, or with fewer steps, removing at once is as good, and faster.
RAMP, MIN_RAMP_RATIO, MIN_RAMP_STEPS = 0.3, 5.0, 200
NEURONS_SHARE = 2 / 3  # of the operations of a layer, where the feed-forward network is four times as wide


def complete_training_arguments(
    args: TrainingArguments, given: Container[str], pruning: PruningConfig, rows: int
) -> None:
    """Set the epochs, the learning rate and the warmup of a distillation on `rows` rows that are not in `given`."""
    chosen = []
    if "num_train_epochs" not in given and "max_steps" not in given:
        args.num_train_epochs = choose_epochs(args, rows)
        steps = f"about {DISTILLATION_STEPS:,} steps, 1 to {MAX_EPOCHS} epochs"
        chosen.append(f"{args.num_train_epochs:g} epochs at most ({steps}; --num_train_epochs or --max_steps)")
    if "learning_rate" not in given:
        args.learning_rate = choose_learning_rate(pruning)
        chosen.append(f"learning rate {args.learning_rate:.2g} (--learning_rate)")
    if "warmup_steps" not in given:
        args.warmup_steps = WARMUP
    if chosen:
        logger.warning(f"distillation, unless other values are given: {', '.join(chosen)}")


def complete_pruning(pruning: PruningConfig, args: TrainingArguments, rows: int) -> PruningConfig:
    """Return `pruning`, with a ramp if much is removed at once before a training on `rows` rows that is long enough.

    `args` are complete. A ramp, rounds or a rewind that was given stays as it is, and `ramp=0` too.
    """
    steps = args.max_steps if args.max_steps > 0 else args.num_train_epochs * rows / _rows_per_step(args)
    is_open = pruning.ramp is None and pruning.rounds == 1 and not pruning.rewind and not pruning.before_training
    has_gates = pruning.removes_units and not pruning.removes_connections and pruning.criterion in GRADIENT_SCORES
    if not (is_open and has_gates and steps >= MIN_RAMP_STEPS and _expected_ratio(pruning) >= MIN_RAMP_RATIO):
        return pruning
    logger.warning(f"units are removed gradually, in the first {RAMP:.0%} of the training (--ramp 0: all at once)")
    return replace(pruning, ramp=RAMP)


def choose_epochs(args: TrainingArguments, rows: int) -> int:
    """Return how many epochs of `rows` training rows make about `DISTILLATION_STEPS` steps, 1 to `MAX_EPOCHS`."""
    return min(MAX_EPOCHS, max(1, round(DISTILLATION_STEPS * _rows_per_step(args) / rows)))


def _rows_per_step(args: TrainingArguments) -> int:
    rows: int = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return rows


def choose_learning_rate(pruning: PruningConfig) -> float:
    """Return the learning rate of a student: the more is removed, the more it has to learn again."""
    return min(MAX_LEARNING_RATE, LEARNING_RATE * _expected_ratio(pruning))


def _expected_ratio(pruning: PruningConfig) -> float:
    """Return about how many times fewer operations the student has, its target if it has one."""
    if pruning.target is not None:
        return max(1.0, pruning.target[1])

    def kept(name: str) -> float:
        return 1 - mean(parse_fractions(name, getattr(pruning, name)).values() or [0.0])

    units = (1 - NEURONS_SHARE) * kept("heads") + NEURONS_SHARE * kept("neurons")
    return 1 / (units * kept("blocks") * kept("layers"))
