"""Scores for pruning, from batches of the training data and the same in all processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import Subset
from transformers import PreTrainedModel, TrainingArguments

from hf_efficient.errors import UserError
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.pruning.connection_criteria import CONNECTION_SAMPLES, ConnectionScores
from hf_efficient.pruning.criteria import CONNECTION_CRITERIA
from hf_efficient.pruning.losses import task_or_sampled_loss
from hf_efficient.pruning.scoring import score_units, take_examples
from hf_efficient.pruning.selection import Scores
from hf_efficient.trainer.loss import Batch, select_model_inputs

T = TypeVar("T")
Batches = list[Batch]


class PruningScorer:
    """Scores the units and connections of a model on training data.

    Every process scores its part of the data; the scores are averaged, so all processes have the same. Measured costs
    differ from process to process, so the main process makes the decisions that depend on them.
    """

    def __init__(self, config: PruningConfig, args: TrainingArguments, accelerator: Accelerator) -> None:
        self.config, self.args, self.accelerator = config, args, accelerator

    def draw_batches(
        self,
        model: PreTrainedModel,
        dataset: Any,
        get_dataloader: Callable[[Any], Iterable[Batch]],
        get_train_dataloader: Callable[[], Iterable[Batch]],
    ) -> Batches:
        """Return this process's batches of the examples to score on, drawn with the seed of the run.

        Streamed data have no length: of them it takes the first examples.
        """
        if dataset is None:
            raise UserError("pruning scores units on training data: give the trainer a train_dataset")
        samples = self.config.scoring_samples
        if hasattr(dataset, "__len__"):
            generator = torch.Generator().manual_seed(self.args.seed)
            indices = torch.randperm(len(dataset), generator=generator)[:samples]
            batches: Iterable[Batch] = get_dataloader(Subset(dataset, indices.tolist()))
        else:
            count = -(-samples // self.args.per_device_train_batch_size)
            batches = itertools.islice(get_train_dataloader(), count)
        return take_examples((select_model_inputs(model, batch) for batch in batches), samples, self.args.device)

    def score_units(
        self, model: PreTrainedModel, request: PruningConfig, batches: Batches, teacher: PreTrainedModel | None
    ) -> Scores:
        """Return the scores of heads, neurons and layers."""
        loss = task_or_sampled_loss(teacher, self.args.seed)
        return score_units(model, request, batches, loss).map(self.average_over_processes)

    def score_connections(
        self, model: PreTrainedModel, batches: Batches, teacher: PreTrainedModel | None
    ) -> ConnectionScores:
        """Return the scores of single connections, by the name of the weight that holds them."""
        loss = task_or_sampled_loss(teacher, self.args.seed)
        examples = take_examples(batches, CONNECTION_SAMPLES, self.args.device)
        scores = CONNECTION_CRITERIA[self.config.criterion](model, examples, loss)
        return {name: self.average_over_processes(value) for name, value in scores.items()}

    def average_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of `values` over the processes."""
        mean: torch.Tensor = self.accelerator.reduce(values.to(self.args.device), reduction="mean")
        return mean

    def gather_batches(self, batches: Batches) -> Batches:
        """Return the batches of all processes in the order in which one process would read them."""
        if self.args.world_size == 1:
            return batches
        by_process = gather_object([batches])
        return [batch for same_step in zip(*by_process, strict=True) for batch in same_step]

    def broadcast_from_main(self, value: T) -> T:
        """Return the value that the main process gives."""
        values = [value]
        if self.args.world_size > 1:
            broadcast_object_list(values)
        return values[0]
