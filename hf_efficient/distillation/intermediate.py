"""The losses between intermediate outputs of a student and its teacher: hidden states, attention, relations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.distillation.activations import (
    EMBEDDINGS,
    HIDDEN,
    KEYS,
    QUERIES,
    ActivationKey,
    Activations,
    self_attention_blocks,
)
from hf_efficient.distillation.config import HIDDEN_DISTANCES, DistillationConfig
from hf_efficient.distillation.layer_pairs import LayerPair, layer_sources, map_layers
from hf_efficient.distillation.losses import LossTerm, SumAndCount, attention_loss, relation_loss, squared_error
from hf_efficient.errors import UserError
from hf_efficient.models import family_of
from hf_efficient.models.family import PrunedConfig

STUDENT, TEACHER = 0, 1  # positions in a LayerPair
MAX_RELATION_HEADS = 12


class IntermediateLosses:
    """The losses between pairs of layers of a student and its teacher, with the weights of a config.

    Where the widths differ, `projections` maps the student's states to the teacher's width: one for the hidden states
    and one for the embeddings of each stack of layers.
    """

    def __init__(self, teacher: PreTrainedModel, config: DistillationConfig) -> None:
        self.teacher, self.config = teacher, config
        self.projections = nn.ModuleDict()
        self.student: PreTrainedModel
        self.pairs: list[LayerPair] = []
        # For each pair of layers with heads, the positions of the student's heads among the teacher's heads, (heads,);
        # None if they are not known, so that the means over the heads are compared.
        self.matching_heads: dict[LayerPair, torch.Tensor | None] = {}
        self._original_layer_indices: dict[str, list[int]] | None = None

    def prepare(self, student: PreTrainedModel) -> None:
        """Map the layers of `student` to the teacher's, and create projections that do not exist yet.

        An explicit layer map refers to the layers of the first student that this is called with.

        Raises UserError if the layers cannot be mapped, or if attention is compared but no mapped layer has heads, or
        its scores cannot be computed.
        """
        self.student = student
        config = self.config
        if not config.uses_intermediate_outputs:
            return
        if self._original_layer_indices is None:
            self._original_layer_indices = layer_sources(student)
        self.pairs = map_layers(student, self.teacher, config.layer_map, self._original_layer_indices)
        self._add_projections(student)
        if config.attention_weight:
            _check_attention_scores(student, self.teacher)
        if config.attention_weight or config.relation_weight:
            self.matching_heads = _match_heads(student, self.teacher, self.pairs)
            for stack in self.stacks:
                if not any(pair[STUDENT].startswith(f"{stack}.") for pair in self.matching_heads):
                    raise UserError(
                        f"no layer of the student's {stack} in the layer_map has attention heads: remove "
                        "attention_weight and relation_weight, or keep heads (keep_at_least)"
                    )

    def _add_projections(self, student: PreTrainedModel) -> None:
        config = self.config
        student_size, teacher_size = _hidden_size(student), _hidden_size(self.teacher)
        if student_size == teacher_size:
            return
        if config.hidden_distance == "cosine" and config.hidden_weight:
            raise UserError(
                f"hidden_distance='cosine' needs hidden states of one width, the student's has {student_size} "
                f"dimensions and the teacher's {teacher_size}: use mse, which learns a projection"
            )
        for weight, kind in ((config.hidden_weight, "hidden"), (config.embedding_weight, "embeddings")):
            for stack in self.stacks if weight else ():
                name = f"{kind}_{stack}"
                if name not in self.projections:
                    self.projections[name] = nn.Linear(student_size, teacher_size, bias=False).to(student.device)

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks of layers that are compared."""
        return tuple(dict.fromkeys(pair[STUDENT].partition(".")[0] for pair in self.pairs))

    @property
    def relation_pairs(self) -> list[LayerPair]:
        """The last pair of layers with heads of every stack, whose relations are compared."""
        return list({pair[STUDENT].partition(".")[0]: pair for pair in self.matching_heads}.values())

    def required_activations(self, side: int) -> list[ActivationKey]:
        """Return the activations that are compared, of the STUDENT or the TEACHER."""
        config = self.config
        keys: list[ActivationKey] = []
        if config.hidden_weight:
            keys += [(HIDDEN, pair[side]) for pair in self.pairs]
        if config.embedding_weight:
            keys += [(EMBEDDINGS, stack) for stack in self.stacks]
        if config.attention_weight:
            keys += [(kind, pair[side]) for pair in self.matching_heads for kind in (QUERIES, KEYS)]
        if config.relation_weight:
            keys += [(kind, pair[side]) for pair in self.relation_pairs for kind in config.relation_kinds]
        return list(dict.fromkeys(keys))

    def terms(self, stack: str, mask: torch.Tensor, student: Activations, teacher: Activations) -> Iterable[LossTerm]:
        """Yield the loss terms of one stack of layers: means over its pairs, sums over its tokens.

        | argument | meaning |
        | --- | --- |
        | mask | (rows, tokens) the tokens of the stack that are not padding |
        | student, teacher | the captured activations of both |
        """
        config = self.config
        pairs = [pair for pair in self.pairs if pair[STUDENT].startswith(f"{stack}.")]
        pairs_with_heads = [pair for pair in self.matching_heads if pair in pairs]
        if config.hidden_weight:
            distance: Callable[..., SumAndCount] = HIDDEN_DISTANCES[config.hidden_distance]
            sums = [
                distance(
                    self._project("hidden", stack, student[HIDDEN, student_layer]),
                    _check_same_tokens(teacher[HIDDEN, teacher_layer], mask),
                    mask,
                )[0]
                for student_layer, teacher_layer in pairs
            ]
            yield LossTerm("hidden_loss", config.hidden_weight, torch.stack(sums).mean(), stack)
        if config.embedding_weight:
            projected = self._project("embeddings", stack, student[EMBEDDINGS, stack])
            error, _ = squared_error(projected, _check_same_tokens(teacher[EMBEDDINGS, stack], mask), mask)
            yield LossTerm("embedding_loss", config.embedding_weight, error, stack)
        if config.attention_weight:
            sums = [
                attention_loss(*self._attention_scores(pair, student, teacher), mask)[0] for pair in pairs_with_heads
            ]
            yield LossTerm("attention_loss", config.attention_weight, torch.stack(sums).mean(), stack)
        if config.relation_weight:
            sums = [
                self._relation_loss(kind, pairs_with_heads[-1], student, teacher, mask)
                for kind in config.relation_kinds
            ]
            yield LossTerm("relation_loss", config.relation_weight, torch.stack(sums).mean(), stack)

    def _project(self, kind: str, stack: str, states: torch.Tensor) -> torch.Tensor:
        name = f"{kind}_{stack}"
        return self.projections[name](states.float()) if name in self.projections else states

    def _relation_loss(
        self, kind: str, pair: LayerPair, student: Activations, teacher: Activations, mask: torch.Tensor
    ) -> torch.Tensor:
        student_states = student[kind, pair[STUDENT]]
        teacher_states = _check_same_tokens(teacher[kind, pair[TEACHER]], mask)
        sizes = student_states.shape[-1], teacher_states.shape[-1]
        heads = self.config.relation_heads or _default_relation_heads(*sizes)
        if sizes[STUDENT] % heads or sizes[TEACHER] % heads:
            raise UserError(
                f"relation_heads={heads} does not divide the widths of the {kind}, {sizes[STUDENT]} of the student "
                f"and {sizes[TEACHER]} of the teacher: leave it out, or give a divisor of both"
            )
        return relation_loss(student_states, teacher_states, heads, mask)[0]

    def _attention_scores(
        self, pair: LayerPair, student: Activations, teacher: Activations
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores (batch, heads, tokens, tokens) of both models: of the same heads, or their mean."""
        student_scores = _scaled_dot_products(self.student, pair[STUDENT], student)
        teacher_scores = _scaled_dot_products(self.teacher, pair[TEACHER], teacher)
        positions = self.matching_heads[pair]
        if positions is None:
            return student_scores.mean(1, keepdim=True), teacher_scores.mean(1, keepdim=True)
        return student_scores, teacher_scores.index_select(1, positions.to(teacher_scores.device))


def _check_attention_scores(*models: PreTrainedModel) -> None:
    """Raise UserError if the attention scores of a model are not the products of its queries and keys."""
    for model in models:
        reason = family_of(model).attention_scores_differ
        if reason is not None:
            raise UserError(
                f"attention_weight is not possible with {type(model).__name__}: {reason}; use relation_weight or "
                "hidden_weight"
            )


def _match_heads(
    student: PreTrainedModel, teacher: PreTrainedModel, pairs: Iterable[LayerPair]
) -> dict[LayerPair, torch.Tensor | None]:
    """Return, for the pairs whose layers both have heads, which of the teacher's heads the student's are."""
    student_blocks, teacher_blocks = self_attention_blocks(student), self_attention_blocks(teacher)
    matching: dict[LayerPair, torch.Tensor | None] = {}
    for pair in pairs:
        if pair[STUDENT] not in student_blocks or pair[TEACHER] not in teacher_blocks:
            continue
        student_heads, teacher_heads = _kept_heads(student, pair[STUDENT]), _kept_heads(teacher, pair[TEACHER])
        # The config of a stock model with fewer heads does not tell which of the teacher's heads they were.
        is_known = len(student_heads) == len(teacher_heads) or isinstance(student.config, PrunedConfig)
        has_same_size = student_blocks[pair[STUDENT]].unit_size == teacher_blocks[pair[TEACHER]].unit_size
        if is_known and has_same_size and set(student_heads) <= set(teacher_heads):
            positions = [teacher_heads.index(head) for head in student_heads]
            matching[pair] = torch.tensor(positions, device=teacher.device)
        else:
            matching[pair] = None
    return matching


def _kept_heads(model: PreTrainedModel, layer: str) -> tuple[int, ...]:
    """Return the indices, in the unpruned network, of the heads of a layer's self attention."""
    stack, _, index = layer.partition(".")
    short_name = self_attention_blocks(model)[layer].name.rpartition(".")[2]
    return family_of(model).structure(model.config).stacks[stack][int(index)].heads[short_name]


def _scaled_dot_products(model: PreTrainedModel, layer: str, activations: Activations) -> torch.Tensor:
    """Return the attention scores of a layer before the softmax, (batch, heads, tokens, tokens)."""
    size = self_attention_blocks(model)[layer].unit_size
    queries, keys = (_split_heads(activations[kind, layer], size) for kind in (QUERIES, KEYS))
    return queries @ keys.transpose(-1, -2) / math.sqrt(size)


def _split_heads(states: torch.Tensor, size: int) -> torch.Tensor:
    """Return (batch, tokens, heads * size) as (batch, heads, tokens, size), in single precision."""
    return states.float().view(*states.shape[:-1], -1, size).transpose(1, 2)


def _check_same_tokens(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the teacher's states. Raises UserError if there is not one for each of the student's tokens."""
    if states.shape[:2] != mask.shape:
        raise UserError(
            f"the teacher's states are of {tuple(states.shape[:2])} rows and tokens, the student's of "
            f"{tuple(mask.shape)}: both need the same tokens"
        )
    return states


def _hidden_size(model: PreTrainedModel) -> int:
    """Return the size of the hidden states of `model`."""
    return int(model.config.hidden_size)


def _default_relation_heads(student_size: int, teacher_size: int) -> int:
    """Return the largest number of relation heads, at most 12, that divides both widths."""
    common = math.gcd(student_size, teacher_size)
    return max(heads for heads in range(1, MAX_RELATION_HEADS + 1) if common % heads == 0)
