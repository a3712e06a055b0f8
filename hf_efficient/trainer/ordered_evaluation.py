"""Evaluation in batches of texts of similar length, whose results are in the order of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import EvalLoopOutput, has_length
from transformers.utils import logging

from hf_efficient.data.length_order import Order, restore_order, sort_by_length

logger = logging.get_logger(__name__)


class LengthSortedSampler(Sampler[int]):
    """The indices of a dataset in a fixed order, those of long texts first."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order.tolist())


class _NotByRowError(Exception):
    """The results have no row for each row of the data."""


class OrderedEvaluation:
    """Sorts the data that a trainer evaluates on by length, and its predictions and labels back again.

    The order of the data is kept from the start where results could not be sorted back: for streamed data, for
    datasets that compute their rows, and with `batch_eval_metrics`, `dataloader_drop_last`, without
    `eval_do_concat_batches` or without `dataloader_in_order`. If the results turn out not to have a row for each row
    of the data, the evaluation is repeated in the order of the data.

    The loss is the parent's mean over batches: where each token has a label, it depends on which texts share a batch.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.results_are_rows = trainer, True

    def build_sampler(self, dataset: Any) -> LengthSortedSampler | None:
        """Return the sampler of `dataset` by length; None: in the order of the data."""
        args = self.trainer.args
        concatenates = args.eval_do_concat_batches and not args.batch_eval_metrics
        keeps_rows = args.dataloader_in_order and not args.dataloader_drop_last
        if not (self.results_are_rows and concatenates and keeps_rows and has_length(dataset)):
            return None
        order = sort_by_length(dataset, getattr(self.trainer.model, "main_input_name", "input_ids"))
        return None if order is None else LengthSortedSampler(order)

    def run(
        self, evaluation_loop: Callable[..., EvalLoopOutput], dataloader: DataLoader[Any], *args: Any, **kwargs: Any
    ) -> EvalLoopOutput:
        """Return the output of `evaluation_loop`; it and what `compute_metrics` gets are in the order of the data."""
        order = _find_order(dataloader)
        if order is None:
            return evaluation_loop(dataloader, *args, **kwargs)
        if self.results_are_rows:
            try:
                return self._run_sorted(order, evaluation_loop, dataloader, *args, **kwargs)
            except _NotByRowError:
                self.results_are_rows = False
                logger.warning("predictions are not one row a text: texts are evaluated in their order, not by length")
        return evaluation_loop(self.trainer.get_test_dataloader(dataloader.dataset), *args, **kwargs)

    def _run_sorted(
        self, order: Order, evaluation_loop: Callable[..., EvalLoopOutput], *args: Any, **kwargs: Any
    ) -> EvalLoopOutput:
        compute_metrics = self.trainer.compute_metrics
        restored: dict[str, Any] = {}

        def compute_in_order(prediction: EvalPrediction) -> dict[str, Any]:
            predictions, labels, inputs = self._restore(
                (prediction.predictions, prediction.label_ids, prediction.inputs), order
            )
            restored.update(predictions=predictions, label_ids=labels)
            # The loss of each batch is repeated as often as a complete batch has rows: there may be more than rows.
            losses = restore_order(prediction.losses, order)
            return compute_metrics(EvalPrediction(predictions, labels, inputs, losses))

        self.trainer.compute_metrics = None if compute_metrics is None else compute_in_order
        try:
            output = evaluation_loop(*args, **kwargs)
        finally:
            self.trainer.compute_metrics = compute_metrics
        if not restored:
            predictions, labels = self._restore((output.predictions, output.label_ids), order)
            restored.update(predictions=predictions, label_ids=labels)
        return output._replace(**restored)

    def _restore(self, results: Any, order: Order) -> Any:
        """Return `results` in the order of the data. Raises _NotByRowError if an array has another number of rows."""
        counts = set(_iterate_row_counts(results))
        # Several processes may predict the first rows again, so that all have equally many.
        has_copies = self.trainer.args.world_size > 1 and len(counts) == 1 and min(counts) > len(order)
        if counts - {len(order)} and not has_copies:
            raise _NotByRowError
        return restore_order(results, order)


def _iterate_row_counts(values: Any) -> Iterator[int]:
    """Yield the first dimension of each array in tuples, lists and mappings; 0 for a number."""
    if values is None:
        return
    if isinstance(values, Mapping):
        values = tuple(values.values())
    if isinstance(values, tuple | list):
        for value in values:
            yield from _iterate_row_counts(value)
    else:
        yield np.shape(values)[0] if np.ndim(values) else 0


def _find_order(dataloader: Any) -> Order | None:
    """Return the order of the `LengthSortedSampler` of a data loader, also of one that is split over processes."""
    sampler = dataloader
    while sampler is not None and not isinstance(sampler, LengthSortedSampler):
        batches = getattr(sampler, "batch_sampler", None)
        sampler = getattr(sampler, "sampler", None) if batches is None else batches
    return None if sampler is None else sampler.order
