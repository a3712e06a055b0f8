"""What a student learns from its teacher, and how much of each: the settings of distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hf_efficient.distillation.layer_maps import LAYER_MAPS, parse_layer_map
from hf_efficient.distillation.losses import cosine_distance, squared_error
from hf_efficient.errors import UserError

HIDDEN_DISTANCES = {"mse": squared_error, "cosine": cosine_distance}
TARGET_SOURCES = ("gold", "teacher", "both")
RELATIONS = ("queries", "keys", "values")
TEACHER_DTYPES = ("auto", "float32", "bfloat16", "float16")
INTERMEDIATE_WEIGHTS = ("hidden_weight", "embedding_weight", "attention_weight", "relation_weight")
WEIGHTS = ("hard_label_weight", "logits_weight", *INTERMEDIATE_WEIGHTS)
SCHEDULED = ("temperature", "hard_label_weight", "logits_weight")


@dataclass(frozen=True)
class DistillationConfig:
    """How much of the loss comes from the teacher, by which of its signals, and how soft its labels are.

    The loss is the sum of what has a weight: the task's own on the labels (hard), the distance to the teacher's soft
    labels (logits), to its hidden states, embeddings, attention scores and relations between tokens.

    Raises ValueError: a field is out of its range, or the fields contradict each other.
    """

    temperature: float = field(
        default=2.0,
        metadata={"help": "Divides the logits of teacher and student; larger shows more of the dark knowledge."},
    )
    temperature_end: float | None = field(
        default=None, metadata={"help": "Let the temperature go to this, linearly over the training."}
    )
    hard_label_weight: float = field(default=0.5, metadata={"help": "Weight of the task's own loss on the labels."})
    hard_label_weight_end: float | None = field(
        default=None, metadata={"help": "Let hard_label_weight go to this, linearly over the training."}
    )
    logits_weight: float = field(
        default=0.5, metadata={"help": "Weight of the distance to the teacher's soft labels."}
    )
    logits_weight_end: float | None = field(
        default=None, metadata={"help": "Let logits_weight go to this, linearly over the training."}
    )
    hidden_weight: float = field(
        default=0.0, metadata={"help": "Weight of the distance between hidden states after each pair of layers."}
    )
    hidden_distance: str = field(
        default="mse", metadata={"help": f"How hidden states compare: {' or '.join(HIDDEN_DISTANCES)}."}
    )
    embedding_weight: float = field(
        default=0.0, metadata={"help": "Weight of the squared difference of what the first layers read."}
    )
    attention_weight: float = field(
        default=0.0, metadata={"help": "Weight of the squared difference of attention scores (TinyBERT)."}
    )
    relation_weight: float = field(
        default=0.0, metadata={"help": "Weight of the divergence of relations between tokens (MiniLM)."}
    )
    relations: str = field(
        default="queries,keys,values",
        metadata={"help": "Which relations: any of queries, keys and values, with commas; MiniLM v1 took values."},
    )
    relation_heads: int | None = field(
        default=None, metadata={"help": "Relation heads; the most that both models' widths allow when left out."}
    )
    layer_map: str = field(
        default="auto",
        metadata={
            "help": f"Which layers compare: {', '.join(LAYER_MAPS)}, or pairs student:teacher such as 0:1,1:3,2:5. "
            "auto: what stays of a pruned student with the layers whose work it does, otherwise uniform."
        },
    )
    teacher_weights: str | None = field(
        default=None, metadata={"help": "Weights of several teachers, such as 0.7,0.3; equal when left out."}
    )
    teacher_dtype: str = field(
        default="auto",
        metadata={"help": f"One of {', '.join(TEACHER_DTYPES)}; auto: bfloat16 where training is, else its own."},
    )
    cache_teacher: bool = field(
        default=False, metadata={"help": "Ask the teacher once for every example, before training."}
    )
    cache_top_k: int | None = field(
        default=None,
        metadata={"help": "Keep only the teacher's most likely answers a token, and what the rest sum to."},
    )

    targets: str = field(
        default="gold",
        metadata={
            "help": "What a model that writes learns to write: gold, the data's targets; teacher, what the teacher "
            "makes of the texts, once; both."
        },
    )
    target_beams: int = field(default=1, metadata={"help": "Beams with which the teacher writes targets."})

    def __post_init__(self) -> None:
        if self.targets not in TARGET_SOURCES:
            raise UserError(f"targets={self.targets!r} is unknown: give one of {', '.join(TARGET_SOURCES)}")
        for name in ("temperature", "temperature_end"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}={value} must be above 0; usual values lie between 1 and 10")
        for name in (*WEIGHTS, "hard_label_weight_end", "logits_weight_end"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"{name}={value} must not be negative")
        if not any(getattr(self, name) or getattr(self, f"{name}_end", None) for name in WEIGHTS):
            raise UserError(f"{', '.join(WEIGHTS)} are all 0: nothing would be learned; give one a weight")
        for name, allowed in (("hidden_distance", tuple(HIDDEN_DISTANCES)), ("teacher_dtype", TEACHER_DTYPES)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name}={getattr(self, name)!r} is unknown: give one of {', '.join(allowed)}")
        if not set(self.relation_kinds) <= set(RELATIONS):
            raise UserError(
                f"relations={self.relations!r} is unknown: give any of {', '.join(RELATIONS)}, with commas between"
            )
        for name in ("relation_heads", "cache_top_k", "target_beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        parse_layer_map(self.layer_map)
        if self.layer_map != "auto" and not self.uses_intermediate_outputs:
            raise UserError(
                f"layer_map={self.layer_map!r} maps what is not compared: give one of {', '.join(INTERMEDIATE_WEIGHTS)} a weight"
            )
        if self.teacher_weights is not None:
            self.normalized_teacher_weights(len(self.teacher_weights.split(",")))
        self._check_cache()

    def _check_cache(self) -> None:
        inside = [name for name in INTERMEDIATE_WEIGHTS if getattr(self, name)]
        if self.cache_teacher and inside:
            raise UserError(
                f"cache_teacher keeps the teacher's answers, {', '.join(inside)} needs what is inside it at every "
                "step: leave out one of them"
            )
        if self.cache_top_k is not None and not self.cache_teacher:
            raise UserError(
                f"cache_top_k={self.cache_top_k} shrinks a cache that there is not: add cache_teacher=True"
            )
        if self.cache_top_k is not None and self.temperature_end is not None:
            raise UserError(
                "cache_top_k sums up unlikely answers at one temperature: leave out temperature_end, or cache_top_k"
            )

    @property
    def relation_kinds(self) -> tuple[str, ...]:
        """The kinds of relations that are compared."""
        return tuple(part.strip() for part in self.relations.split(","))

    def describe(self) -> str:
        """Return what is learned from, for a report."""
        soft = f"{self.temperature:g}"
        if self.temperature_end is not None:
            soft += f" to {self.temperature_end:g}"
        written = {
            "gold": "labels",
            "teacher": "what the teacher writes",
            "both": "labels and what the teacher writes",
        }
        named = {
            written[self.targets]: self.uses_labels,
            f"the teacher's soft labels (T={soft})": self.uses_logits,
            "its hidden states": self.hidden_weight,
            "its embeddings": self.embedding_weight,
            "its attention": self.attention_weight,
            f"its relations of {self.relations.replace(',', ', ')}": self.relation_weight,
        }
        return ", ".join(name for name, counts in named.items() if counts)

    @property
    def uses_labels(self) -> bool:
        """Whether the task's own loss counts at any time."""
        return bool(self.hard_label_weight or self.hard_label_weight_end)

    @property
    def uses_logits(self) -> bool:
        """Whether the teacher's answers count at any time."""
        return bool(self.logits_weight or self.logits_weight_end)

    @property
    def uses_intermediate_outputs(self) -> bool:
        """Whether anything but the teacher's answers counts."""
        return any(getattr(self, name) for name in INTERMEDIATE_WEIGHTS)

    def value_at(self, name: str, progress: float) -> float:
        """Return the value of the field `name` when `progress`, in [0, 1], of the training is done."""
        begin: float = getattr(self, name)
        end: float | None = getattr(self, f"{name}_end")
        return begin if end is None else begin + (end - begin) * progress

    def normalized_teacher_weights(self, teachers: int) -> list[float]:
        """Return the weights of so many teachers, which sum to 1.

        Raises ValueError: `teacher_weights` are no numbers, or not as many.
        """
        if self.teacher_weights is None:
            return [1 / teachers] * teachers
        try:
            weights = [float(part) for part in self.teacher_weights.split(",")]
        except ValueError:
            weights = []
        if not weights or min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise UserError(f"teacher_weights={self.teacher_weights!r} are no weights: give numbers such as 0.7,0.3")
        if len(weights) != teachers:
            raise UserError(
                f"teacher_weights={self.teacher_weights!r} weighs {len(weights)} teachers, there are {teachers}: "
                "give as many weights as teachers"
            )
        return [weight / sum(weights) for weight in weights]
