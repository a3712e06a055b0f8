"""The training loss: exact over accumulated batches and over processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_efficient.distillation.distiller import Distiller
from hf_efficient.distillation.head_outputs import get_head_outputs
from hf_efficient.distillation.losses import LossTerm
from hf_efficient.distillation.teacher_cache import drop_teacher_columns
from hf_efficient.errors import UserError
from hf_efficient.models.inputs import QUERY, is_label, select_inputs
from hf_efficient.trainer.finite import waits_for_device

TASK_UNIT = "hard"  # what the loss of the task is a mean of: examples or labelled tokens
IGNORED_LABEL = -100
Batch: TypeAlias = dict[str, Any]
# Trainer.compute_loss: (model, inputs, return_outputs=True) -> (loss, outputs)
TaskLoss: TypeAlias = Callable[..., tuple[torch.Tensor, Any]]


class AccumulatedLoss(TrainerCallback):
    """The weighted sum of the task's loss and of the terms of a distiller.

    Each term is its sum over the batch divided by its count over the whole accumulation window and all processes, so
    the gradient of several batches is that of one large batch, whatever their lengths. `window_counts` holds the
    counts of the current window by unit, each of shape ().
    """

    def __init__(self, args: TrainingArguments, accelerator: Accelerator, labels_are_sampled: bool = False) -> None:
        self.args, self.accelerator = args, accelerator
        self.labels_are_sampled = labels_are_sampled  # masked tokens: a batch may have none
        self.distiller: Distiller | None = None
        self.window_counts: dict[str, torch.Tensor] = {}
        self.has_empty_window: torch.Tensor | None = None  # (): a window had no label, whether or not it was noticed
        self.term_sums: dict[str, torch.Tensor] = {}
        self.last_logged_step = 0

    def uses_parent_loss(self, model: PreTrainedModel) -> bool:
        """Whether the loss of `Trainer` is exact already, or cannot be taken apart because the head is unknown.

        It is exact if one process reads a step as one batch. A mean over labelled tokens may be one over none: NaN.
        """
        head = get_head_outputs(model)
        one_batch = self.args.world_size == 1 and self.args.gradient_accumulation_steps == 1
        return self.distiller is None and (head is None or (one_batch and not head.per_token))

    def count_window(self, model: PreTrainedModel, batches: Sequence[Batch], device: torch.device) -> None:
        """Count what the losses of an accumulation window are divided by, on all processes together."""
        if not batches or self.uses_parent_loss(model):
            return
        counts = [self._count_items(model, batch) for batch in batches]
        totals = torch.stack([torch.stack(list(count.values())).to(device) for count in counts]).sum(0)
        if self.args.world_size > 1:
            totals = self.accelerator.gather(totals[None]).sum(0)
        self.window_counts = dict(zip(counts[0], totals, strict=True))

    def __call__(
        self, model: nn.Module, unwrapped: PreTrainedModel, batch: Batch, task_loss: TaskLoss, progress: float
    ) -> tuple[torch.Tensor, Any]:
        """Return the loss, of shape (), and the outputs of the model.

        `model` may be wrapped, by DDP for example, `unwrapped` is the model in it. `progress` in [0, 1] is the
        fraction of the training that is done, which schedules of weights depend on.
        """
        counts = self.window_counts or {
            unit: count.to(self.args.device) for unit, count in self._count_items(unwrapped, batch).items()
        }
        terms, outputs = self._compute_terms(model, unwrapped, batch, task_loss, progress)
        loss = torch.zeros((), device=self.args.device)
        for term in terms:
            # DDP averages gradients over the processes, while the counts are those of all of them.
            value = term.sum * self.accelerator.num_processes / counts[term.unit].clamp(min=1)
            loss = loss + term.weight * value
            if self.distiller is not None:
                self.term_sums[term.name] = self.term_sums.get(term.name, 0) + value.detach()
        return loss, outputs

    def add_logs(self, logs: dict[str, float], step: int) -> None:
        """Add the terms to `logs`, averaged over the steps since the last log and over the processes."""
        if "loss" not in logs:
            return
        self.check_labels()
        if self.term_sums:
            steps = max(step - self.last_logged_step, 1)
            means = self.accelerator.reduce(torch.stack(list(self.term_sums.values())), "mean").tolist()
            logs |= {name: mean / steps for name, mean in zip(self.term_sums, means, strict=True)}
            self.term_sums, self.last_logged_step = {}, step

    def check_labels(self) -> None:
        """Raise UserError if a training step had no label that counts."""
        has_empty_window, self.has_empty_window = self.has_empty_window, None
        if has_empty_window is not None and has_empty_window:
            raise UserError(
                "no label of a whole training step counts, all of them are -100: are they cut off by max_length?"
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start with nothing to log."""
        self.term_sums, self.last_logged_step, self.has_empty_window = {}, state.global_step, None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the labels of the steps since the last log."""
        self.check_labels()

    def _compute_terms(
        self, model: nn.Module, unwrapped: PreTrainedModel, batch: Batch, task_loss: TaskLoss, progress: float
    ) -> tuple[list[LossTerm], Any]:
        inputs = select_model_inputs(unwrapped, batch)
        if self.distiller is None:
            term, outputs = self._task_term(model, unwrapped, inputs, task_loss, weight=1.0)
            return [term], outputs
        terms: list[LossTerm] = []
        weight = self.distiller.config.value_at("hard_label_weight", progress)
        with self.distiller.capture() as activations:
            if weight:
                term, outputs = self._task_term(model, unwrapped, inputs, task_loss, weight)
                terms.append(term)
            else:
                # A decoder's inputs are made from the labels; other heads would compute a loss that is not used.
                head = self.distiller.teacher.head_outputs
                needs_labels = head is not None and head.decoder_reads_labels
                outputs = model(**{name: v for name, v in inputs.items() if needs_labels or not is_label(name)})
        return [*terms, *self.distiller(batch, outputs, activations, progress)], outputs

    def _task_term(
        self, model: nn.Module, unwrapped: PreTrainedModel, inputs: Batch, task_loss: TaskLoss, weight: float
    ) -> tuple[LossTerm, Any]:
        """Return the loss of the task as a sum over what it is the mean of, and the outputs."""
        if not any(is_label(name) for name in inputs):
            raise UserError(
                f"the batches have no labels, only {', '.join(inputs)}: give labels, or train on the outputs of a "
                "teacher alone (hard_label_weight=0)"
            )
        if self.window_counts and not self.labels_are_sampled:
            is_empty = self.window_counts[TASK_UNIT].eq(0)
            self.has_empty_window = is_empty if self.has_empty_window is None else self.has_empty_window | is_empty
            if not waits_for_device(is_empty):
                self.check_labels()
        count = self._count_items(unwrapped, inputs)[TASK_UNIT]
        inputs = add_decoder_inputs(self.args, unwrapped, _with_a_label(inputs, count))
        loss, outputs = task_loss(model, inputs, return_outputs=True)
        return LossTerm("hard_label_loss", weight, loss * count.to(loss.device), TASK_UNIT), outputs

    def _count_items(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return, by unit, how many items of a batch each term is a mean of, each of shape ()."""
        inputs = select_model_inputs(model, batch)
        labels, head = inputs.get("labels"), get_head_outputs(model)
        if head is not None and head.detects_replaced_tokens:  # its loss is the mean over all tokens but padding
            count = head.count(inputs)
        elif labels is None or labels.is_floating_point():
            first = next(iter(inputs.values()))
            count = torch.full((), first.shape[0], device=first.device)
        else:
            count = labels.ne(IGNORED_LABEL).sum()
        read = inputs | {QUERY: batch[QUERY]} if QUERY in batch else inputs
        return {TASK_UNIT: count, **(self.distiller.counts(read) if self.distiller is not None else {})}


def _with_a_label(inputs: Batch, count: torch.Tensor) -> Batch:
    """Return the inputs; the first label of a batch without any that counts is 0.

    The mean over no label would be NaN, also after it is multiplied by the `count` () of labels. Nothing is read from
    the device to find out.
    """
    labels = inputs.get("labels")
    if labels is None or labels.is_floating_point():
        return inputs
    labels = labels.clone(memory_format=torch.contiguous_format)
    first = labels.view(-1)[:1]
    first.copy_(torch.where(count.eq(0), 0, first))
    return {**inputs, "labels": labels}


def select_model_inputs(model: PreTrainedModel, batch: Mapping[str, Any]) -> Batch:
    """Return what `model` accepts of a batch, without the outputs of a teacher that the batch may hold."""
    return select_inputs(model, drop_teacher_columns(batch))


def add_decoder_inputs(args: TrainingArguments, model: PreTrainedModel, inputs: Batch) -> Batch:
    """Return the inputs with those of a decoder, which are made from the labels that the Trainer removes to smooth."""
    prepare = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if not args.label_smoothing_factor or prepare is None or "labels" not in inputs or "decoder_input_ids" in inputs:
        return inputs
    return {**inputs, "decoder_input_ids": prepare(labels=inputs["labels"])}
