"""How a student is trained, where the user says nothing about it: how long, how fast, how gradually it is cut."""

from __future__ import annotations

import copy
import dataclasses
from statistics import mean

from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from hf_efficient.commands.config import JobConfig
from hf_efficient.models import find_family
from hf_efficient.pruning.callbacks import GRADIENT_SCORES
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.pruning.fractions import ALL_STACKS

logger = logging.get_logger(__name__)

# The best in scripts/benchmarks/recipe.py; training ends earlier where the student stops improving.
DISTILLATION_STEPS, MAX_EPOCHS = 3000, 20
LEARNING_RATE, MAX_LEARNING_RATE = 5e-5, 5e-4  # of a student as large as its teacher, and of the smallest ones
WARMUP = 0.1  # of the steps
# Where less is removed, or with fewer steps, removing at once is as good, and faster.
RAMP, MIN_RAMP_RATIO, MIN_RAMP_STEPS = 0.3, 5.0, 200
NEURONS_SHARE = 2 / 3  # of the operations of a layer, where the feed-forward network is four times as wide
INT8_SPEEDUP = 2.0  # about, of int8 alone: a target that counts it leaves the rest to pruning


def complete_training(config: JobConfig, model: PreTrainedModel, rows: int) -> JobConfig:
    """Return `config` with how a student of `model` is trained on `rows` rows, where `given_arguments` leaves it open.

    A teacher that is fine-tuned first keeps the arguments as they are.
    """
    given = config.given_arguments
    if given is None or not config.uses_distillation:
        return config
    args, chosen = copy.copy(config.training), []
    ratio = _expected_ratio(config.pruning, model)
    if "num_train_epochs" not in given and "max_steps" not in given:
        args.num_train_epochs = choose_epochs(args, rows)
        chosen.append(f"{args.num_train_epochs:g} epochs at most (--num_train_epochs, --max_steps)")
    if "learning_rate" not in given:
        args.learning_rate = choose_learning_rate(ratio)
        chosen.append(f"learning rate {args.learning_rate:.2g} (--learning_rate)")
    if "warmup_steps" not in given:
        args.warmup_steps = WARMUP
        chosen.append(f"warmup in {WARMUP:.0%} of the steps (--warmup_steps)")
    steps = args.max_steps if args.max_steps > 0 else args.num_train_epochs * rows / _rows_per_step(args)
    pruning = config.pruning
    if ratio >= MIN_RAMP_RATIO and steps >= MIN_RAMP_STEPS and _is_open_to_a_ramp(pruning):
        pruning = dataclasses.replace(pruning, ramp=RAMP)
        chosen.append(f"units removed gradually in the first {RAMP:.0%} of the steps (--ramp)")
    if chosen:
        logger.warning(f"not given, and chosen for this student: {', '.join(chosen)}")
    return dataclasses.replace(config, training=args, pruning=pruning, fine_tuning=config.training)


def choose_epochs(args: TrainingArguments, rows: int) -> int:
    """Return how many epochs of `rows` training rows make about `DISTILLATION_STEPS` steps, 1 to `MAX_EPOCHS`."""
    return min(MAX_EPOCHS, max(1, round(DISTILLATION_STEPS * _rows_per_step(args) / rows)))


def choose_learning_rate(ratio: float) -> float:
    """Return the learning rate of a student with so many times fewer operations: it has more to learn again."""
    return min(MAX_LEARNING_RATE, LEARNING_RATE * ratio)


def _rows_per_step(args: TrainingArguments) -> int:
    rows: int = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return rows


def _is_open_to_a_ramp(pruning: PruningConfig) -> bool:
    """Whether units are removed once, before the training, by scores that training computes; `ramp=0` is an answer."""
    is_once = pruning.ramp is None and pruning.rounds == 1 and not pruning.rewind and not pruning.before_training
    has_gates = pruning.removes_units and not pruning.removes_connections and pruning.criterion in GRADIENT_SCORES
    return is_once and has_gates


def _expected_ratio(pruning: PruningConfig, model: PreTrainedModel) -> float:
    """Return about how many times fewer operations than `model` the student will have."""
    if pruning.target is not None:
        counts_int8 = pruning.target_speedup is not None and pruning.latency_runtime in ("int8", "fastest")
        return max(1.0, pruning.target[1] / (INT8_SPEEDUP if counts_int8 else 1.0))

    family = find_family(model.config)
    stacks = [ALL_STACKS] if family is None else list(family.stacks(model))

    def kept(name: str) -> float:
        return 1 - mean(pruning.fraction_for(name, stack) for stack in stacks)

    units = (1 - NEURONS_SHARE) * kept("heads") + NEURONS_SHARE * kept("neurons")
    return 1 / (units * kept("blocks") * kept("layers"))
