"""The distance of a student to its teacher, in the parts that a config gives a weight."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.distillation.activations import (
    EMBEDDINGS,
    HIDDEN,
    KEYS,
    QUERIES,
    ActivationKey,
    Activations,
    capture_activations,
    self_attention_blocks,
    token_masks,
)
from hf_efficient.distillation.config import HIDDEN_DISTANCES, DistillationConfig
from hf_efficient.distillation.layer_maps import layer_sources, map_layers
from hf_efficient.distillation.losses import attention_loss, relation_loss, squared_error
from hf_efficient.distillation.teacher import Teacher
from hf_efficient.distillation.teacher_cache import read_cached_outputs
from hf_efficient.errors import UserError
from hf_efficient.models import family_of
from hf_efficient.models.family import PrunedConfig

Batch = Mapping[str, torch.Tensor]
Pair = tuple[str, str]
SOFT_LABEL_UNIT = "soft"
PROJECTIONS_NAME = "projections.safetensors"


@dataclass(frozen=True)
class LossTerm:
    """A term of the loss.

    `sum` () is a sum over positions, to be divided by the `unit`'s count over the whole accumulation window: "soft"
    for what is answered, or the name of a stack for its tokens.
    """

    name: str
    weight: float
    sum: torch.Tensor
    unit: str


def check_same_task(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raises ValueError: teacher and student read other tokens or predict other labels, so nothing compares."""
    ours, theirs = student.config, teacher.config
    if ours.vocab_size != theirs.vocab_size:
        raise UserError(
            f"the teacher has a vocabulary of {theirs.vocab_size} tokens and the student one of {ours.vocab_size}: "
            "they must share a tokenizer"
        )
    if ours.num_labels != theirs.num_labels or _label_names(ours.id2label) != _label_names(theirs.id2label):
        raise UserError(
            f"the teacher predicts {theirs.id2label} and the student {ours.id2label}: give both the same label map "
            "(id2label in config.json), in the same order"
        )


def _label_names(id2label: Mapping[int, str]) -> dict[int, str] | None:
    """Return the label map, or None when it only holds the names that transformers makes up."""
    if all(name == f"LABEL_{index}" for index, name in id2label.items()):
        return None
    return {int(index): name.lower() for index, name in id2label.items()}


class Distiller(nn.Module):
    """Compares a student with its teacher, by the signals that `config` gives a weight.

    `prepare` it for a student, run the student within `watch`, then call it. Learned projections, one for the hidden
    states and one for the embeddings of each stack, are made where the widths differ; they are parameters of this
    module and no part of the student.

    Raises ValueError: the config asks for answers of a teacher that has no task head, or looks into several teachers.
    """

    def __init__(self, teacher: Teacher, config: DistillationConfig) -> None:
        super().__init__()
        self.teacher, self.config = teacher, config
        self.projections = nn.ModuleDict()
        self.student: PreTrainedModel
        self.pairs: list[Pair] = []
        self._counted_in: dict[str, list[int]] | None = None
        self._heads: dict[Pair, tuple[list[int] | None, list[int] | None]] = {}
        if config.uses_logits and teacher.head_outputs is None:
            raise UserError(
                f"{type(teacher.model).__name__} has no task head whose answers compare: set logits_weight=0 and give "
                "hidden_weight or relation_weight one"
            )
        if config.uses_intermediate_outputs and len(teacher.models) > 1:
            raise UserError(
                f"{len(teacher.models)} teachers answer together, but hidden states, embeddings, attention and "
                "relations compare with one: give one teacher, or soft labels alone"
            )

    def prepare(self, student: PreTrainedModel) -> None:
        """Maps the layers of `student` to the teacher's, and makes the projections that are missing.

        An explicit layer map counts the layers of the first student that it is called with.

        Raises ValueError: the layers cannot be mapped, or none that compare attend.
        """
        self.__dict__["student"] = student  # watched, not owned: its weights are not this module's
        if not self.config.uses_intermediate_outputs:
            return
        teacher, config = self.teacher.model, self.config
        self._counted_in = self._counted_in or layer_sources(student)
        self.pairs = map_layers(student, teacher, config.layer_map, self._counted_in)
        widths = _hidden_size(student), _hidden_size(teacher)
        if config.hidden_distance == "cosine" and config.hidden_weight and widths[0] != widths[1]:
            raise UserError(
                f"hidden_distance='cosine' compares directions of one space, the student's has {widths[0]} dimensions "
                f"and the teacher's {widths[1]}: use mse, which learns a projection"
            )
        if widths[0] != widths[1]:
            for weight, kind in ((config.hidden_weight, "hidden"), (config.embedding_weight, "embeddings")):
                for stack in self.stacks if weight else ():
                    name = f"{kind}_{stack}"
                    if name not in self.projections:
                        self.projections[name] = nn.Linear(*widths, bias=False).to(student.device)
        self._prepare_attention(student, teacher)

    def _prepare_attention(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        """Finds the pairs in which both layers attend, and which of their heads are the same."""
        if not (self.config.attention_weight or self.config.relation_weight):
            return
        ours, theirs = self_attention_blocks(student), self_attention_blocks(teacher)
        self._heads = {}
        for mine, its in self.pairs:
            if mine in ours and its in theirs:
                kept = _kept_heads(student, mine), _kept_heads(teacher, its)
                # A stock network of fewer heads does not say which of the teacher's they were, if any.
                known = len(kept[0]) == len(kept[1]) or isinstance(student.config, PrunedConfig)
                alike = known and ours[mine].unit_size == theirs[its].unit_size and set(kept[0]) <= set(kept[1])
                if alike:
                    self._heads[mine, its] = None, [kept[1].index(head) for head in kept[0]]
                else:
                    self._heads[mine, its] = ours[mine].units, theirs[its].units  # type: ignore[assignment]
        for stack in self.stacks:
            if not any(mine.startswith(f"{stack}.") for mine, _ in self._heads):
                raise UserError(
                    f"no layer of the student's {stack} that the layer_map names attends any more: leave out "
                    "attention_weight and relation_weight, or keep heads (keep_at_least)"
                )

    def save_projections(self, folder: str | os.PathLike[str]) -> None:
        """Write the projections into `folder`: training goes on with them, the student does without."""
        state = self.projections.state_dict()
        if state:
            save_file({name: value.contiguous() for name, value in state.items()}, Path(folder) / PROJECTIONS_NAME)

    def load_projections(self, folder: str | os.PathLike[str]) -> None:
        """Read what `save_pretrained` wrote, for the same student and teacher."""
        if len(self.projections):
            self.projections.load_state_dict(load_file(Path(folder) / PROJECTIONS_NAME))

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks of layers that are looked into."""
        return tuple(dict.fromkeys(mine.partition(".")[0] for mine, _ in self.pairs))

    @property
    def relation_pairs(self) -> list[Pair]:
        """The last pair of attending layers of every stack: relations of these are compared."""
        return list({mine.partition(".")[0]: (mine, its) for mine, its in self._heads}.values())

    def counts(self, inputs: Batch) -> dict[str, torch.Tensor]:
        """Return what the sums over a batch are divided by, by unit, each of shape ()."""
        found = {}
        if self.config.uses_logits and self.teacher.head_outputs is not None:
            found[SOFT_LABEL_UNIT] = self.teacher.head_outputs.count(inputs)
        return found | {stack: mask.sum() for stack, mask in token_masks(inputs, self.stacks).items()}

    def capture(self) -> AbstractContextManager[Activations]:
        """Give the student's signals, of one run of it within the context."""
        wanted = self._wanted(0)
        return capture_activations(self.student, wanted) if wanted else nullcontext({})

    def _wanted(self, side: int) -> list[ActivationKey]:
        """Return the signals that are compared, of the student (0) or the teacher (1)."""
        config = self.config
        wanted: list[ActivationKey] = []
        if config.hidden_weight:
            wanted += [(HIDDEN, pair[side]) for pair in self.pairs]
        if config.embedding_weight:
            wanted += [(EMBEDDINGS, stack) for stack in self.stacks]
        if config.attention_weight:
            wanted += [(what, pair[side]) for pair in self._heads for what in (QUERIES, KEYS)]
        if config.relation_weight:
            wanted += [(what, pair[side]) for pair in self.relation_pairs for what in config.relation_kinds]
        return list(dict.fromkeys(wanted))

    def forward(self, inputs: Batch, outputs: Any, signals: Activations, progress: float = 0.0) -> list[LossTerm]:
        """Return the parts of the distance to the teacher on a batch.

        | argument | meaning |
        | --- | --- |
        | inputs | the batch, with the teacher's answers where they are cached |
        | outputs, signals | what the student answered to it, and what `watch` saw |
        | progress | how much of the training is done, in [0, 1] |

        Raises ValueError: student and teacher see other tokens, or know other labels.
        """
        config, answers = self.config, self.teacher.head_outputs
        wanted = self._wanted(1)
        temperature = config.value_at("temperature", progress)
        cached = (
            None if wanted or answers is None else read_cached_outputs(inputs, outputs, answers.outputs, temperature)
        )
        if cached is not None:
            ours, theirs = cached
        else:
            ours, (theirs, its_signals) = outputs, self.teacher.predict(inputs, wanted)
        parts = []
        weight = config.value_at("logits_weight", progress)
        if weight and answers is not None:
            total = answers.loss(ours, theirs, temperature, inputs)
            parts.append(LossTerm("soft_label_loss", weight, total, SOFT_LABEL_UNIT))
        if wanted:
            masks = token_masks(inputs, self.stacks)
            for stack in self.stacks:
                parts += self._inside(stack, masks[stack], signals, its_signals)
        return parts

    def _inside(self, stack: str, mask: torch.Tensor, ours: Activations, theirs: Activations) -> Iterable[LossTerm]:
        """Yield what is compared inside one stack of layers: means over its pairs, sums over tokens."""
        config = self.config
        pairs = [pair for pair in self.pairs if pair[0].startswith(f"{stack}.")]
        if config.hidden_weight:
            distance = HIDDEN_DISTANCES[config.hidden_distance]
            totals = [
                distance(
                    self._projected("hidden", stack, ours[HIDDEN, mine]),
                    _check_same_tokens(theirs[HIDDEN, its], mask),
                    mask,
                )[0]
                for mine, its in pairs
            ]
            yield LossTerm("hidden_loss", config.hidden_weight, torch.stack(totals).mean(), stack)
        if config.embedding_weight:
            projected = self._projected("embeddings", stack, ours[EMBEDDINGS, stack])
            total, _ = squared_error(projected, _check_same_tokens(theirs[EMBEDDINGS, stack], mask), mask)
            yield LossTerm("embedding_loss", config.embedding_weight, total, stack)
        attending = [pair for pair in self._heads if pair in pairs]
        if config.attention_weight:
            totals = [attention_loss(*self._scores(pair, ours, theirs), mask)[0] for pair in attending]
            yield LossTerm("attention_loss", config.attention_weight, torch.stack(totals).mean(), stack)
        if config.relation_weight:
            mine, its = attending[-1]
            totals = []
            for what in config.relation_kinds:
                student, teacher = ours[what, mine], _check_same_tokens(theirs[what, its], mask)
                heads = config.relation_heads or _relation_heads(student.shape[-1], teacher.shape[-1])
                if student.shape[-1] % heads or teacher.shape[-1] % heads:
                    raise UserError(
                        f"relation_heads={heads} does not divide the widths of the {what}, {student.shape[-1]} of the "
                        f"student and {teacher.shape[-1]} of the teacher: leave it out, or give a divisor of both"
                    )
                totals.append(relation_loss(student, teacher, heads, mask)[0])
            yield LossTerm("relation_loss", config.relation_weight, torch.stack(totals).mean(), stack)

    def _projected(self, kind: str, stack: str, states: torch.Tensor) -> torch.Tensor:
        name = f"{kind}_{stack}"
        return self.projections[name](states.float()) if name in self.projections else states

    def _scores(self, pair: Pair, ours: Activations, theirs: Activations) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the attention scores of both, (batch, heads, tokens, tokens), of the same heads or their mean."""
        found = []
        for side, signals in enumerate((ours, theirs)):
            block = self_attention_blocks(self.student if side == 0 else self.teacher.model)[pair[side]]
            queries, keys = (_split_heads(signals[what, pair[side]], block.unit_size) for what in (QUERIES, KEYS))
            found.append(queries @ keys.transpose(-1, -2) / math.sqrt(block.unit_size))
        _, same = self._heads[pair]
        if isinstance(same, list):
            return found[0], found[1][:, same]
        return found[0].mean(1, keepdim=True), found[1].mean(1, keepdim=True)


def _split_heads(states: torch.Tensor, size: int) -> torch.Tensor:
    """Return (batch, tokens, heads * size) as (batch, heads, tokens, size), in single precision."""
    return states.float().view(*states.shape[:-1], -1, size).transpose(1, 2)


def _check_same_tokens(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the teacher's states. Raises ValueError: they are not one for each of the student's tokens."""
    if states.shape[:2] != mask.shape:
        raise UserError(
            f"the teacher's states are of {tuple(states.shape[:2])} rows and tokens, the student's of "
            f"{tuple(mask.shape)}: both must see the same tokens"
        )
    return states


def _hidden_size(model: PreTrainedModel) -> int:
    """Return the size of the hidden states of `model`."""
    block = next(iter(family_of(model).blocks(model).values()))
    return int(block.output.out_features)


def _kept_heads(model: PreTrainedModel, layer: str) -> tuple[int, ...]:
    """Return the indices, in the unpruned network, of the heads of a layer's self attention."""
    stack, _, index = layer.partition(".")
    short = self_attention_blocks(model)[layer].name.rpartition(".")[2]
    return family_of(model).structure(model.config).stacks[stack][int(index)].heads[short]


def _relation_heads(student: int, teacher: int, most: int = 12) -> int:
    """Return the largest number of relation heads, 12 at most, that divides both widths."""
    common = math.gcd(student, teacher)
    return max(heads for heads in range(1, most + 1) if common % heads == 0)
