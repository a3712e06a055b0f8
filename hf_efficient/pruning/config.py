"""Settings of pruning: what to remove, by which criterion, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hf_efficient.errors import UserError
from hf_efficient.field_checks import check_field_types
from hf_efficient.pruning.criteria import CONNECTION_CRITERIA, CRITERIA
from hf_efficient.pruning.fractions import ALL_STACKS, format_fractions, parse_fractions

TARGETS = ("target_speedup", "target_generation_speedup", "target_flops", "target_size")
FRACTIONS = ("heads", "neurons", "blocks", "layers")
COUNTS = (
    "rounds",
    "scoring_samples",
    "multiple_of",
    "latency_batch_size",
    "latency_sequence_length",
    "latency_new_tokens",
)
MAX_ROUNDS = 100
SCOPES = ("global", "layer")
REWINDS = ("weights", "learning_rate")
# Scopes in which single connections are compared, by criterion; "global" for all others.
DEFAULT_SCOPES = {"wanda": "row"}


def parse_n_m(text: str) -> tuple[int, int]:
    """Return (n, m) of an N:M pattern such as "2:4".

    Raises UserError if `text` is not such a pattern.
    """
    n, colon, m = text.partition(":")
    if not (colon and n.isdecimal() and m.isdecimal() and 1 <= int(n) < int(m)):
        raise UserError(
            f'n_m={text!r} is not a pattern: give "n:m" with 1 <= n < m, such as "2:4", which keeps 2 of every 4 '
            "consecutive input weights"
        )
    return int(n), int(m)


@dataclass(frozen=True)
class PruningConfig:
    """What to remove: as much as a target requires, explicit fractions, or single connections.

    Fractions, and `keep_at_least`, are numbers, or differ by stack of layers: "encoder=0.25,decoder=0.5".

    Raises UserError if a field is out of its range, or the fields contradict each other.
    """

    target_speedup: float | None = field(
        default=None,
        metadata={"help": "Latency of the teacher divided by that of the student, measured here: 2 halves it."},
    )
    target_generation_speedup: float | None = field(
        default=None,
        metadata={"help": "Time the teacher takes to generate text, greedily with a cache, divided by the student's."},
    )
    target_flops: float | None = field(
        default=None, metadata={"help": "Floating point operations of the teacher divided by those of the student."}
    )
    target_size: float | None = field(
        default=None, metadata={"help": "Parameters of the teacher divided by those of the student."}
    )
    heads: float | str | None = field(
        default=None,
        metadata={
            "help": "Fraction of the attention heads to remove, in [0, 1), or by stack: encoder=0.2,decoder=0.5."
        },
    )
    neurons: float | str | None = field(
        default=None, metadata={"help": "Fraction of all feed-forward neurons to remove, in [0, 1), or by stack."}
    )
    blocks: float | str | None = field(
        default=None,
        metadata={"help": "Fraction of the attention and feed-forward blocks to remove, in [0, 1), or by stack."},
    )
    layers: float | str | None = field(
        default=None, metadata={"help": "Fraction of the layers to remove, in [0, 1), or by stack."}
    )
    weights: float | None = field(
        default=None,
        metadata={"help": "Fraction of single connections to set to zero, in [0, 1): smaller, not faster."},
    )
    n_m: str | None = field(
        default=None,
        metadata={"help": "Keep n of every m consecutive input weights, such as 2:4, and set the others to zero."},
    )
    vocabulary: bool = field(
        default=False, metadata={"help": "Keep only the rows of the embeddings that the training data uses."}
    )
    criterion: str = field(default="fisher", metadata={"help": f"How units are scored: one of {', '.join(CRITERIA)}."})
    scope: str = field(
        default="global",
        metadata={
            "help": "Compare units across the network (global), or remove the same fraction of each layer (layer)."
        },
    )
    keep_at_least: float | str | None = field(
        default=0.0,
        metadata={"help": "Fraction of the units of every block that is kept whatever the scores, or by stack."},
    )
    multiple_of: int | None = field(
        default=None,
        metadata={"help": "Feed-forward widths are multiples of this; by default of 8, on an accelerator of 32."},
    )
    portable: bool = field(
        default=False,
        metadata={"help": "Only shapes that the stock class of the model can hold: loads without additional code."},
    )
    rounds: int = field(
        default=1,
        metadata={"help": "Prune in this many steps of equal ratio, each followed by an equal part of the training."},
    )
    ramp: float | None = field(
        default=None,
        metadata={
            "help": "Fraction of the training in which gates close by a cubic schedule, before the removal. By "
            "default, in the commands, 0.3 for a student of a fifth of the operations or fewer, trained for 200 steps "
            "or more."
        },
    )
    rewind: str | None = field(
        default=None,
        metadata={"help": "Train, prune, reset the weights or the learning_rate to the initial ones, train again."},
    )
    before_training: bool = field(
        default=False, metadata={"help": "Prune a model without a trained task head before it is fine-tuned."}
    )
    recovery: bool = field(
        default=True, metadata={"help": "Reconstruct the outputs of the pruned blocks by least squares."}
    )
    scoring_samples: int = field(
        default=2048, metadata={"help": "Number of training examples for the criterion and the reconstruction."}
    )
    latency_batch_size: int = field(default=1, metadata={"help": "Batch size for measuring latency."})
    latency_sequence_length: int = field(
        default=128, metadata={"help": "Number of tokens per example for measuring latency."}
    )
    latency_new_tokens: int = field(
        default=20, metadata={"help": "Number of tokens that are generated for measuring latency."}
    )
    latency_runtime: str = field(
        default="torch",
        metadata={
            "help": "Form of the student that target_speedup counts: torch, compiled, onnx or openvino, which stay in "
            "float; int8: native 8 bits; fastest: the faster of torch and int8 on this machine."
        },
    )

    def __post_init__(self) -> None:
        check_field_types(self)
        for name in TARGETS:
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise UserError(
                    f"{name}={value} requests a larger model: give a ratio of at least 1, such as 2 to halve"
                )
        for name in (*FRACTIONS, "keep_at_least"):
            parse_fractions(name, getattr(self, name))
        for name in ("weights", "ramp"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name}={value} is not a fraction: give a number in [0, 1)")
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if self.rounds > MAX_ROUNDS:
            raise UserError(
                f"rounds={self.rounds} would prune and train more than {MAX_ROUNDS} times: give at most {MAX_ROUNDS}"
            )
        if self.n_m is not None:
            parse_n_m(self.n_m)
        self._check_choices()
        self._check_contradictions()

    def _check_choices(self) -> None:
        criteria_of_both = tuple(dict.fromkeys((*CRITERIA, *CONNECTION_CRITERIA)))
        for name, allowed in (
            ("criterion", criteria_of_both),
            ("scope", SCOPES),
            ("rewind", (*REWINDS, None)),
        ):
            if getattr(self, name) not in allowed:
                choices = ", ".join(choice for choice in allowed if choice)
                raise UserError(f"{name}={getattr(self, name)!r} is unknown: give one of {choices}")
        for is_requested, kind, criteria in (
            (self.removes_units, "units", tuple(CRITERIA)),
            (self.removes_connections, "single connections", tuple(CONNECTION_CRITERIA)),
        ):
            if is_requested and self.criterion not in criteria:
                raise UserError(
                    f"criterion={self.criterion!r} does not score {kind}: give one of {', '.join(criteria)}"
                )

    def _check_contradictions(self) -> None:
        targets = [name for name in TARGETS if getattr(self, name) is not None]
        fractions = [name for name in FRACTIONS if getattr(self, name) is not None]
        if len(targets) > 1 or (targets and fractions):
            raise UserError(f"{', '.join(targets + fractions)} cannot be combined: give one target or fractions")
        if self.weights is not None and self.n_m is not None:
            raise UserError(f"weights={self.weights} and n_m={self.n_m!r} cannot be combined: give one of them")
        if self.portable and any(self._removes(name) for name in FRACTIONS if name != "layers"):
            raise UserError(
                "portable=True allows only shapes that a stock class can hold, which fractions of heads, neurons or "
                "blocks are not: give a target, or only layers"
            )
        if self.target_generation_speedup is not None and self.latency_runtime != "torch":
            raise UserError(
                f"latency_runtime={self.latency_runtime!r} is for target_speedup; generation is timed in torch: leave "
                "it out"
            )
        if self.portable and self.scope == "layer":
            raise UserError("portable=True keeps every head, scope='layer' removes some of each layer: give one")
        if self.ramp and (self.rounds > 1 or self.rewind):
            raise UserError("ramp closes gates within one training run: leave out rounds and rewind")
        if self.ramp and self.target is None and all(getattr(self, n) is None for n in (*FRACTIONS, "weights")):
            raise UserError(f"ramp={self.ramp} has nothing to remove: give a target, a fraction, or weights")
        if self.rewind == "weights" and self.removes_units and self.removes_connections:
            raise UserError(
                "rewind='weights' is supported for units or for single connections, not for both: give one of them"
            )

    @property
    def target(self) -> tuple[str, float] | None:
        """The (name, ratio) of the target, if there is one."""
        return next(((name, getattr(self, name)) for name in TARGETS if getattr(self, name) is not None), None)

    @property
    def removes_units(self) -> bool:
        """Whether heads, neurons, blocks or layers are to be removed."""
        return self.target is not None or any(self._removes(name) for name in FRACTIONS)

    @property
    def removes_connections(self) -> bool:
        """Whether single connections are to be set to zero."""
        return bool(self.weights) or self.n_m is not None

    @property
    def removes_anything(self) -> bool:
        """Whether heads, neurons, blocks, layers or connections are to be removed."""
        return self.removes_units or self.removes_connections

    def _removes(self, name: str) -> bool:
        return any(parse_fractions(name, getattr(self, name)).values())

    def fraction_for(self, name: str, stack: str) -> float:
        """Return the fraction that the field `name` gives for a stack of layers, 0 if it gives none."""
        fractions = parse_fractions(name, getattr(self, name))
        return fractions.get(stack, fractions.get(ALL_STACKS, 0.0))

    def check_stacks(self, stacks: tuple[str, ...]) -> None:
        """Raise UserError if a field names a stack of layers that is not one of `stacks`, those of the model."""
        for name in (*FRACTIONS, "keep_at_least"):
            unknown = parse_fractions(name, getattr(self, name)).keys() - {ALL_STACKS, *stacks}
            if unknown:
                raise UserError(
                    f"{name}={getattr(self, name)!r} names {', '.join(sorted(unknown))}: the model has the stacks "
                    f"{', '.join(stacks)}"
                )

    def units_only(self) -> PruningConfig:
        """Return the config without single connections."""
        return replace(self, weights=None, n_m=None)

    def connection_settings(self) -> dict[str, Any]:
        """Return what is requested for single connections, as arguments of `remove_connections`."""
        if self.n_m is not None:
            scope = None
        else:
            scope = "layer" if self.scope == "layer" else DEFAULT_SCOPES.get(self.criterion, "global")
        return {"fraction": self.weights, "n_m": self.n_m, "scope": scope}

    def for_round(self, number: int) -> PruningConfig:
        """Return what round `number`, counted from 1, of `rounds` requests: the same ratio in every round.

        Targets and fractions of connections refer to the unpruned model, other fractions to the result of the previous
        round.
        """
        power = number / self.rounds
        changes = self._with_fractions(lambda fraction: 1 - (1 - fraction) ** (1 / self.rounds))
        if self.target is not None:
            changes[self.target[0]] = self.target[1] ** power
        if self.weights is not None:
            changes["weights"] = 1 - (1 - self.weights) ** power
        return replace(self, **changes, rounds=1)

    def at_progress(self, progress: float) -> PruningConfig:
        """Return what a gradual schedule requests at `progress`, in [0, 1], of the removal."""
        changes = self._with_fractions(lambda fraction: fraction * progress)
        if self.target is not None:
            changes[self.target[0]] = 1 / (1 - progress * (1 - 1 / self.target[1]))
        if self.weights is not None:
            changes["weights"] = self.weights * progress
        return replace(self, **changes)

    def _with_fractions(self, function: Callable[[float], float]) -> dict[str, Any]:
        """Return the fields that hold fractions, with `function` applied to each fraction."""
        return {
            name: format_fractions(
                {stack: function(value) for stack, value in parse_fractions(name, getattr(self, name)).items()}
            )
            for name in FRACTIONS
            if getattr(self, name)
        }
