"""The settings of distillation: what a student learns from its teacher, and with which weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hf_efficient.distillation.layer_maps import LAYER_MAPS, parse_layer_map
from hf_efficient.errors import UserError
from hf_efficient.field_checks import check_field_types
from hf_efficient.registry import Registry

HIDDEN_DISTANCES: Registry[Any] = Registry(
    {
        "mse": "hf_efficient.distillation.losses:squared_error",
        "cosine": "hf_efficient.distillation.losses:cosine_distance",
    }
)
SIMILARITY_DISTANCES: Registry[Any] = Registry(
    {
        "order": "hf_efficient.distillation.embeddings:similarity_order_loss",
        "mse": "hf_efficient.distillation.embeddings:similarity_error",
    }
)
# Beyond these, the differences between softened probabilities are smaller than float32 rounds, or logits overflow.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
TARGET_SOURCES = ("gold", "teacher", "both")
RELATIONS = ("queries", "keys", "values")
TEACHER_DTYPES = ("auto", "float32", "bfloat16", "float16")
INTERMEDIATE_WEIGHTS = ("hidden_weight", "embedding_weight", "attention_weight", "relation_weight")
WEIGHTS = ("hard_label_weight", "logits_weight", *INTERMEDIATE_WEIGHTS)
OUTPUT_WEIGHTS = (*WEIGHTS, "margin_weight")
EMBEDDING_WEIGHTS = ("similarity_weight", "uniformity_weight")  # of sentence embedders


@dataclass(frozen=True)
class DistillationConfig:
    """What a student learns from its teacher, and with which weights.

    The loss is the sum of the terms with a weight above 0: the task's own loss on the labels (hard), and the distances
    to the teacher's soft labels (logits), hidden states, embeddings, attention scores and relations between tokens.

    Raises UserError if a field is out of its range, or if fields contradict each other.
    """

    temperature: float = field(
        default=2.0,
        metadata={
            "help": "Divides the logits of teacher and student. The higher, the smoother the distributions, and the "
            "more unlikely classes count."
        },
    )
    temperature_end: float | None = field(
        default=None, metadata={"help": "Change the temperature linearly to this value over the training."}
    )
    hard_label_weight: float = field(default=0.5, metadata={"help": "Weight of the task's own loss on the labels."})
    hard_label_weight_end: float | None = field(
        default=None, metadata={"help": "Change hard_label_weight linearly to this value over the training."}
    )
    logits_weight: float = field(
        default=0.5,
        metadata={
            "help": "Weight of the distance to the teacher's soft labels. Of sentence embeddings it is their cosine "
            "distance."
        },
    )
    logits_weight_end: float | None = field(
        default=None, metadata={"help": "Change logits_weight linearly to this value over the training."}
    )
    margin_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of MarginMSE: differences between scores of a query's documents. Batches then hold all "
            "documents of a query."
        },
    )
    hidden_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the distance between hidden states after each pair of layers. By default 10 for a "
            "student that is cut from its teacher, else 0."
        },
    )
    student_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Probability of dropout in the student while it is trained, where its config has one above 0. By "
            "default 0 for a student that is cut from its teacher, else as in its config."
        },
    )
    similarity_weight: float = field(
        default=0.5,
        metadata={
            "help": "Weight, for sentence embeddings, of the distance between the similarities of the texts "
            "of a batch."
        },
    )
    similarity_distance: str = field(
        default="order",
        metadata={
            "help": f"Distance between these similarities: {' or '.join(SIMILARITY_DISTANCES)}. order: which "
            "texts are nearest."
        },
    )
    uniformity_weight: float = field(
        default=0.0,
        metadata={"help": "Weight, for sentence embeddings, of a term that spreads them over all directions."},
    )
    keep_projection: bool = field(
        default=False,
        metadata={
            "help": "Keep, for sentence embeddings, the learned projection as a Dense module: a narrower student then "
            "has embeddings of the teacher's size, to be compared with those of the teacher."
        },
    )
    hidden_distance: str = field(
        default="mse", metadata={"help": f"Distance between hidden states: {' or '.join(HIDDEN_DISTANCES)}."}
    )
    embedding_weight: float = field(
        default=0.0, metadata={"help": "Weight of the mean squared error of the inputs of the first layers."}
    )
    attention_weight: float = field(
        default=0.0, metadata={"help": "Weight of the mean squared error of the attention scores (TinyBERT)."}
    )
    relation_weight: float = field(
        default=0.0, metadata={"help": "Weight of the divergence of the relations between tokens (MiniLM)."}
    )
    relations: str = field(
        default="queries,keys,values",
        metadata={
            "help": "Relations to compare: any of queries, keys and values, with commas; MiniLM v1 used values."
        },
    )
    relation_heads: int | None = field(
        default=None,
        metadata={"help": "Number of relation heads; by default the largest that divides both models' widths."},
    )
    layer_map: str = field(
        default="auto",
        metadata={
            "help": f"Layers to compare: {', '.join(LAYER_MAPS)}, or pairs student:teacher such as 0:1,1:3,2:5. "
            "auto: each layer of a pruned student with the teacher's last layer before the next kept one, otherwise "
            "uniform."
        },
    )
    teacher_weights: str | None = field(
        default=None, metadata={"help": "Weights of several teachers, such as 0.7,0.3; equal by default."}
    )
    teacher_dtype: str = field(
        default="auto",
        metadata={
            "help": f"Data type of the teacher: {', '.join(TEACHER_DTYPES)}. auto: that of mixed precision "
            "training (not float16 for encoder-decoders), otherwise the type of its weights."
        },
    )
    cache_teacher: bool = field(
        default=False, metadata={"help": "Run the teacher once on every example, before training."}
    )
    cache_top_k: int | None = field(
        default=None,
        metadata={"help": "Cache only the k highest logits of each token, and one for the sum of the others."},
    )

    stop_when_flat: bool = field(
        default=False,
        metadata={
            "help": "Stop when the student stops improving. It is compared with the teacher on held-out training "
            "rows, never on those that are reported, and trained for at least half of the steps. The best weights are "
            "kept, those before training included. Needs 4,000 training rows; no effect with load_best_model_at_end "
            "or FSDP."
        },
    )

    targets: str = field(
        default="gold",
        metadata={
            "help": "Targets of a sequence-to-sequence model: gold, those of the data; teacher, texts that the "
            "teacher generates once; both."
        },
    )
    target_beams: int = field(
        default=1, metadata={"help": "Number of beams with which the teacher generates targets."}
    )

    def __post_init__(self) -> None:
        check_field_types(self)
        if self.targets not in TARGET_SOURCES:
            raise UserError(f"targets={self.targets!r} is unknown: give one of {', '.join(TARGET_SOURCES)}")
        for name in ("temperature", "temperature_end"):
            value = getattr(self, name)
            if value is not None and not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
                raise UserError(
                    f"{name}={value} is out of range: give {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}; usual values "
                    "lie between 1 and 10"
                )
        if self.student_dropout is not None and not 0 <= self.student_dropout < 1:
            raise UserError(
                f"student_dropout={self.student_dropout} is no probability: give a number from 0 to below 1"
            )
        for name in (*OUTPUT_WEIGHTS, *EMBEDDING_WEIGHTS, "hard_label_weight_end", "logits_weight_end"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"{name}={value} must not be negative")
        if not any(getattr(self, name) or getattr(self, f"{name}_end", None) for name in OUTPUT_WEIGHTS):
            raise UserError(
                f"{', '.join(OUTPUT_WEIGHTS)} are all 0: nothing would be learned; set at least one of them"
            )
        for name, allowed in (
            ("hidden_distance", tuple(HIDDEN_DISTANCES)),
            ("similarity_distance", tuple(SIMILARITY_DISTANCES)),
            ("teacher_dtype", TEACHER_DTYPES),
        ):
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
                f"layer_map={self.layer_map!r} has no effect, since no layers are compared: set "
                f"{', '.join(INTERMEDIATE_WEIGHTS[:-1])} or {INTERMEDIATE_WEIGHTS[-1]}"
            )
        if self.teacher_weights is not None:
            self.normalized_teacher_weights(len(self.teacher_weights.split(",")))
        self._check_cache()

    def _check_cache(self) -> None:
        uncached = [name for name in INTERMEDIATE_WEIGHTS if getattr(self, name)]
        if self.cache_teacher and uncached:
            raise UserError(
                f"cache_teacher caches the teacher's logits, but {', '.join(uncached)} needs its intermediate outputs "
                "at every step: remove one of them"
            )
        if self.cache_top_k is not None and not self.cache_teacher:
            raise UserError(f"cache_top_k={self.cache_top_k} has no effect without a cache: add cache_teacher=True")
        if self.cache_top_k is not None and self.temperature_end is not None:
            raise UserError(
                "cache_top_k sums up the unlikely classes at one temperature: remove temperature_end or cache_top_k"
            )

    @property
    def relation_kinds(self) -> tuple[str, ...]:
        """The kinds of relations that are compared."""
        return tuple(part.strip() for part in self.relations.split(","))

    def describe(self, of_embeddings: bool = False) -> str:
        """Return the terms of the loss in words, for a report; `of_embeddings`: the student is a sentence embedder."""
        temperature = f"{self.temperature:g}"
        if self.temperature_end is not None:
            temperature += f" to {self.temperature_end:g}"
        targets = {
            "gold": "labels",
            "teacher": "targets generated by the teacher",
            "both": "labels and targets generated by the teacher",
        }
        terms = {
            targets[self.targets]: self.uses_labels and not of_embeddings,
            "scores or positives of texts": self.uses_labels and of_embeddings,
            f"the teacher's soft labels (T={temperature})": self.uses_logits and not of_embeddings,
            "the teacher's sentence embeddings": self.uses_logits and of_embeddings,
            f"its similarities of texts ({self.similarity_distance})": self.similarity_weight and of_embeddings,
            "spread embeddings": self.uniformity_weight and of_embeddings,
            "its differences between documents of a query": self.margin_weight,
            "its hidden states": self.hidden_weight,
            "its embeddings": self.embedding_weight,
            "its attention": self.attention_weight,
            f"its relations of {self.relations.replace(',', ', ')}": self.relation_weight,
        }
        words = ", ".join(term for term, is_used in terms.items() if is_used)
        return f"{words}, without dropout" if self.student_dropout == 0 else words

    @property
    def uses_labels(self) -> bool:
        """Whether the task's own loss has a weight at any time."""
        return bool(self.hard_label_weight or self.hard_label_weight_end)

    @property
    def uses_logits(self) -> bool:
        """Whether the teacher's logits have a weight at any time."""
        return bool(self.logits_weight or self.logits_weight_end)

    @property
    def uses_intermediate_outputs(self) -> bool:
        """Whether hidden states, embeddings, attention scores or relations are compared."""
        return any(getattr(self, name) for name in INTERMEDIATE_WEIGHTS)

    def value_at(self, name: str, progress: float) -> float:
        """Return the value of the scheduled field `name` after the fraction `progress`, in [0, 1], of the training."""
        start: float = getattr(self, name)
        end: float | None = getattr(self, f"{name}_end")
        return start if end is None else start + (end - start) * progress

    def normalized_teacher_weights(self, teachers: int) -> list[float]:
        """Return the weights of so many teachers, which sum to 1.

        Raises UserError if `teacher_weights` are not numbers, or not as many as there are teachers.
        """
        if self.teacher_weights is None:
            return [1 / teachers] * teachers
        try:
            weights = [float(part) for part in self.teacher_weights.split(",")]
        except ValueError:
            weights = []
        if not weights or min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise UserError(f"teacher_weights={self.teacher_weights!r} are not weights: give numbers such as 0.7,0.3")
        if len(weights) != teachers:
            raise UserError(
                f"teacher_weights={self.teacher_weights!r} are {len(weights)} weights for {teachers} teachers: give "
                "as many weights as teachers"
            )
        return [weight / sum(weights) for weight in weights]
