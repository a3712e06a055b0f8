"""What a model answers, by its task head: which outputs compare, at which positions, and by which objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hf_efficient.distillation.activations import token_masks
from hf_efficient.distillation.losses import SumAndCount, independent_soft_label_loss, soft_label_loss, squared_error
from hf_efficient.errors import UserError

OutputLoss = Callable[[torch.Tensor, torch.Tensor, float, torch.Tensor | None], SumAndCount]
TOKEN_HEADS = ("TokenClassification", "MaskedLM", "ConditionalGeneration")


def _regression_loss(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, mask: torch.Tensor | None
) -> SumAndCount:
    return squared_error(student, teacher, mask)


def _span_loss(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, mask: torch.Tensor | None
) -> SumAndCount:
    # The distribution is over the tokens of an example; a position that is padding takes no part in it.
    if mask is not None:
        least = torch.finfo(torch.float32).min / 4
        student, teacher = (scores.float().masked_fill(~mask, least) for scores in (student, teacher))
    return soft_label_loss(student, teacher, temperature)


def _replaced_token_loss(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, mask: torch.Tensor | None
) -> SumAndCount:
    return independent_soft_label_loss(student[..., None], teacher[..., None], temperature, mask)


@dataclass(frozen=True)
class HeadOutputs:
    """How the answers of a task head compare.

    | field | meaning |
    | --- | --- |
    | outputs | names of the outputs, whose losses are averaged |
    | loss_function | of student, teacher, temperature and mask |
    | per_token | every token is answered for, not every example |
    | needs_padding_mask | the loss is given which tokens are no padding, though examples are counted |
    | decoder_reads_labels | the labels are what the decoder reads |
    | detects_replaced_tokens | labels are judgements of the input's tokens, 0 or 1, and all of them count |
    """

    outputs: tuple[str, ...]
    loss_function: OutputLoss
    per_token: bool = False
    needs_padding_mask: bool = False
    decoder_reads_labels: bool = False
    detects_replaced_tokens: bool = False

    def mask(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Return which positions of the outputs count: tokens with a label, or else those that are no padding."""
        if not self.has_token_axis:
            return None
        labels = inputs.get("labels")
        if self.per_token and labels is not None and not self.detects_replaced_tokens:
            return labels.ne(-100)
        return self.padding_mask(inputs)

    @property
    def has_token_axis(self) -> bool:
        """Whether the outputs are as long as a text, (rows, tokens, ...)."""
        return self.per_token or self.needs_padding_mask

    def padding_mask(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return which positions of outputs that have a length are no padding, (rows, tokens).

        Raises ValueError: a decoder has nothing to read.
        """
        if self.decoder_reads_labels and "labels" not in inputs and "decoder_input_ids" not in inputs:
            raise UserError(
                f"the batches hold {', '.join(inputs)}, and nothing for the decoder to read: give labels, such as "
                "texts that the teacher wrote"
            )
        return token_masks(inputs, ["decoder" if self.decoder_reads_labels else "encoder"]).popitem()[1]

    def count(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return how many positions of a batch are compared, shape ()."""
        mask = self.mask(inputs) if self.per_token else None
        return torch.tensor(next(iter(inputs.values())).shape[0]) if mask is None else mask.sum()

    def loss(
        self,
        student: Mapping[str, torch.Tensor],
        teacher: Mapping[str, torch.Tensor],
        temperature: float,
        inputs: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return the sum of the distances between the answers of student and teacher to a batch, shape ().

        Raises ValueError: the outputs differ in shape.
        """
        total = torch.zeros((), device=next(iter(teacher.values())).device)
        mask = self.mask(inputs)
        for name in self.outputs:
            ours, theirs = student[name], teacher[name]
            if ours.shape != theirs.shape:
                raise UserError(
                    f"the student's {name} have the shape {tuple(ours.shape)} and the teacher's "
                    f"{tuple(theirs.shape)}: both must see the same tokens and know the same labels"
                )
            total = total + self.loss_function(ours, theirs, temperature, mask)[0]
        return total / len(self.outputs)


def get_head_outputs(model: PreTrainedModel) -> HeadOutputs | None:
    """Return how the answers of `model` compare; None when it has no task head, or one that is not known here."""
    head = type(model).__name__.partition("For")[2]
    config = model.config
    if head == "QuestionAnswering":
        return HeadOutputs(("start_logits", "end_logits"), _span_loss, needs_padding_mask=True)
    if head == "PreTraining" and config.model_type.endswith("electra"):
        return HeadOutputs(("logits",), _replaced_token_loss, per_token=True, detects_replaced_tokens=True)
    if head in TOKEN_HEADS:
        generates = bool(config.is_encoder_decoder and model.can_generate())
        return HeadOutputs(("logits",), soft_label_loss, per_token=True, decoder_reads_labels=generates)
    if head == "MultipleChoice":
        return HeadOutputs(("logits",), soft_label_loss)
    if head != "SequenceClassification":
        return None
    if config.problem_type == "multi_label_classification":
        return HeadOutputs(("logits",), independent_soft_label_loss)
    if config.problem_type == "regression" or config.num_labels == 1:
        return HeadOutputs(("logits",), _regression_loss)
    return HeadOutputs(("logits",), soft_label_loss)
