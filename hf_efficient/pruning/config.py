"""What to remove, by what, and when: the settings of pruning."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hf_efficient.errors import UserError
from hf_efficient.pruning.criteria import CONNECTION_CRITERIA, CRITERIA
from hf_efficient.pruning.sparsity import DEFAULT_SCOPES, parse_n_m

TARGETS = ("target_speedup", "target_generation_speedup", "target_flops", "target_size")
FRACTIONS = ("heads", "neurons", "blocks", "layers")
SCOPES = ("global", "layer")
REWINDS = ("weights", "learning_rate")
ALL_STACKS = ""


@dataclass(frozen=True)
class PruningConfig:
    """What to remove: a target that is reached by the cheapest loss, explicit fractions, or single connections.

    Fractions, and `keep_at_least`, are numbers, or differ by stack: "encoder=0.25,decoder=0.5".

    Raises ValueError: a field is out of its range, or the fields contradict each other.
    """

    target_speedup: float | None = field(
        default=None, metadata={"help": "Latency of the teacher divided by the student's, measured here: 2 halves it."}
    )
    target_generation_speedup: float | None = field(
        default=None,
        metadata={"help": "Time of the teacher to write a text, greedily and with a cache, divided by the student's."},
    )
    target_flops: float | None = field(
        default=None, metadata={"help": "Floating point operations of the teacher divided by the student's."}
    )
    target_size: float | None = field(
        default=None, metadata={"help": "Parameters of the teacher divided by the student's."}
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
        metadata={"help": "Fraction of whole attention and feed-forward blocks to remove, in [0, 1), or by stack."},
    )
    layers: float | str | None = field(
        default=None, metadata={"help": "Fraction of the layers to remove, in [0, 1), or by stack."}
    )
    weights: float | None = field(
        default=None,
        metadata={"help": "Fraction of single connections to make zero, in [0, 1): smaller compressed, not faster."},
    )
    n_m: str | None = field(
        default=None, metadata={"help": "Keep n of every m consecutive input weights, such as 2:4; the rest is zero."}
    )
    vocabulary: bool = field(
        default=False, metadata={"help": "Keep only the rows of the embeddings that the training data uses."}
    )
    criterion: str = field(default="fisher", metadata={"help": f"How units are scored: one of {', '.join(CRITERIA)}."})
    scope: str = field(
        default="global",
        metadata={"help": "Units compete in the whole network (global), or each layer loses the same share (layer)."},
    )
    keep_at_least: float | str | None = field(
        default=0.0,
        metadata={"help": "Fraction of the units of every block that stays whatever its score, or by stack."},
    )
    multiple_of: int = field(
        default=8, metadata={"help": "Feed-forward widths are multiples of this, which matrix hardware likes."}
    )
    portable: bool = field(
        default=False,
        metadata={"help": "Only shapes that the stock class of the model can hold: loads without any code of ours."},
    )
    rounds: int = field(
        default=1,
        metadata={"help": "Prune in this many steps of equal ratio, with an equal share of training after each."},
    )
    ramp: float | None = field(
        default=None,
        metadata={"help": "Fraction of the training in which gates close by a cubic schedule; then it is cut."},
    )
    rewind: str | None = field(
        default=None,
        metadata={"help": "Train, prune, go back to the weights or the learning_rate of the start, train again."},
    )
    before_training: bool = field(
        default=False, metadata={"help": "Prune a model that has no task head yet before it is fine-tuned."}
    )
    recovery: bool = field(
        default=True, metadata={"help": "Fit what is left of each block to what it wrote, by least squares."}
    )
    scoring_samples: int = field(
        default=2048, metadata={"help": "Training examples that the criterion and the recovery look at."}
    )
    latency_batch_size: int = field(default=1, metadata={"help": "Batch size at which latency is measured."})
    latency_sequence_length: int = field(
        default=128, metadata={"help": "Tokens an example where latency is measured."}
    )
    latency_new_tokens: int = field(default=20, metadata={"help": "Tokens that are written where that is timed."})
    latency_runtime: str = field(
        default="torch", metadata={"help": "Where target_speedup is measured: torch, compiled, onnx or openvino."}
    )

    def __post_init__(self) -> None:
        for name in TARGETS:
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise UserError(
                    f"{name}={value} asks for a larger model: give a ratio of at least 1, such as 2 to halve"
                )
        for name in (*FRACTIONS, "keep_at_least"):
            _parse_fractions(name, getattr(self, name))
        for name in ("weights", "ramp"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name}={value} is no fraction: give a number in [0, 1)")
        for name in (
            "rounds",
            "scoring_samples",
            "multiple_of",
            "latency_batch_size",
            "latency_sequence_length",
            "latency_new_tokens",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.n_m is not None:
            parse_n_m(self.n_m)
        self._check_choices()
        self._check_contradictions()

    def _check_choices(self) -> None:
        known = {**CRITERIA, **CONNECTION_CRITERIA}
        for name, allowed in (("criterion", known), ("scope", SCOPES), ("rewind", (*REWINDS, None))):
            if getattr(self, name) not in allowed:
                choices = ", ".join(choice for choice in allowed if choice)
                raise UserError(f"{name}={getattr(self, name)!r} is unknown: give one of {choices}")
        for wanted, scored, criteria in (
            (self.removes_units, "units", tuple(CRITERIA)),
            (self.removes_connections, "single connections", tuple(CONNECTION_CRITERIA)),
        ):
            if wanted and self.criterion not in criteria:
                raise UserError(
                    f"criterion={self.criterion!r} does not score {scored}: give one of {', '.join(criteria)}"
                )

    def _check_contradictions(self) -> None:
        targets = [name for name in TARGETS if getattr(self, name) is not None]
        fractions = [name for name in FRACTIONS if getattr(self, name) is not None]
        if len(targets) > 1 or (targets and fractions):
            raise UserError(
                f"{', '.join(targets + fractions)} cannot be asked for together: give one target or fractions"
            )
        if self.weights is not None and self.n_m is not None:
            raise UserError(f"weights={self.weights} and n_m={self.n_m!r} cannot be asked for together: give one")
        if self.portable and any(any(_parse_fractions(n, getattr(self, n)).values()) for n in FRACTIONS[:-1]):
            raise UserError(
                "portable=True keeps shapes that a stock class holds, which fractions of heads, neurons or blocks are "
                "not: give a target, or only layers"
            )
        if self.target_generation_speedup is not None and self.latency_runtime != "torch":
            raise UserError(
                f"latency_runtime={self.latency_runtime!r} is where target_speedup is measured; writing is timed in "
                "torch: leave it out"
            )
        if self.portable and self.scope == "layer":
            raise UserError("portable=True keeps every head, scope='layer' removes some of each layer: give one")
        if self.ramp and (self.rounds > 1 or self.rewind):
            raise UserError("ramp closes gates within one run of training: leave out rounds and rewind")
        if self.ramp and self.target is None and all(getattr(self, n) is None for n in (*FRACTIONS, "weights")):
            raise UserError(f"ramp={self.ramp} has nothing to grow: give a target, a fraction, or weights")
        if self.rewind == "weights" and self.removes_units and self.removes_connections:
            raise UserError("rewind='weights' goes back with units or with single connections: ask for one of them")

    @property
    def target(self) -> tuple[str, float] | None:
        """The (name, ratio) of the target, if there is one."""
        return next(((name, getattr(self, name)) for name in TARGETS if getattr(self, name) is not None), None)

    @property
    def removes_units(self) -> bool:
        """Whether heads, neurons, blocks or layers are to go."""
        return self.target is not None or any(any(_parse_fractions(n, getattr(self, n)).values()) for n in FRACTIONS)

    @property
    def removes_connections(self) -> bool:
        """Whether single connections are to become zeros."""
        return bool(self.weights) or self.n_m is not None

    @property
    def removes_anything(self) -> bool:
        """Whether heads, neurons, blocks, layers or connections are to go."""
        return self.removes_units or self.removes_connections

    def fraction_for(self, name: str, stack: str) -> float:
        """Return the fraction that the field `name` gives for a stack of layers, 0 where it gives none."""
        shares = _parse_fractions(name, getattr(self, name))
        return shares.get(stack, shares.get(ALL_STACKS, 0.0))

    def check_stacks(self, stacks: tuple[str, ...]) -> None:
        """Raises ValueError: a field names a stack of layers that the model does not have."""
        for name in (*FRACTIONS, "keep_at_least"):
            unknown = _parse_fractions(name, getattr(self, name)).keys() - {ALL_STACKS, *stacks}
            if unknown:
                raise UserError(
                    f"{name}={getattr(self, name)!r} names {', '.join(sorted(unknown))}: the model has the stacks "
                    f"{', '.join(stacks)}"
                )

    def units_only(self) -> PruningConfig:
        """Return what is asked for besides single connections."""
        return replace(self, weights=None, n_m=None)

    def connection_settings(self) -> dict[str, Any]:
        """Return what is asked for of single connections, as `remove_connections` takes it."""
        scope = (
            None if self.n_m else "layer" if self.scope == "layer" else DEFAULT_SCOPES.get(self.criterion, "global")
        )
        return {"fraction": self.weights, "n_m": self.n_m, "scope": scope}

    def for_round(self, number: int) -> PruningConfig:
        """Return what round `number`, counted from 1, of `rounds` asks for: the same ratio in every round.

        Targets and fractions of connections count from the unpruned model, other fractions from what the round before
        left.
        """
        kept = 1 / self.rounds
        changes: dict[str, Any] = {
            name: _format_fractions(
                {s: 1 - (1 - v) ** kept for s, v in _parse_fractions(name, getattr(self, name)).items()}
            )
            for name in FRACTIONS
            if getattr(self, name)
        }
        power = number / self.rounds
        if self.target is not None:
            changes[self.target[0]] = self.target[1] ** power
        if self.weights is not None:
            changes["weights"] = 1 - (1 - self.weights) ** power
        return replace(self, **changes, rounds=1)

    def at_progress(self, progress: float) -> PruningConfig:
        """Return what a gradual schedule asks for when `progress`, in [0, 1], of the removal is done."""
        changes: dict[str, Any] = {
            name: _format_fractions({s: v * progress for s, v in _parse_fractions(name, getattr(self, name)).items()})
            for name in FRACTIONS
            if getattr(self, name)
        }
        if self.target is not None:
            changes[self.target[0]] = 1 / (1 - progress * (1 - 1 / self.target[1]))
        if self.weights is not None:
            changes["weights"] = self.weights * progress
        return replace(self, **changes)


def _parse_fractions(name: str, value: float | str | None) -> dict[str, float]:
    """Return the fractions in the field `name` by stack. Raises ValueError: it holds anything else."""
    if value is None:
        return {}
    shares: dict[str, float] = {}
    for part in str(value).split(","):
        stack, _, number = part.strip().rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not 0 <= share < 1 or stack in shares:
            raise UserError(
                f"{name}={value!r} is no fraction: give a number in [0, 1), or one for each stack, such as "
                "'encoder=0.25,decoder=0.5'"
            )
        shares[stack] = share
    return shares


def _format_fractions(shares: dict[str, float]) -> float | str:
    if shares.keys() == {ALL_STACKS}:
        return shares[ALL_STACKS]
    return ",".join(f"{stack}={share!r}" if stack else repr(share) for stack, share in shares.items())
