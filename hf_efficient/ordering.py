"""Training data in an order that an interruption does not change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler


class Ordering(Trainer):
    """A trainer that draws the order of batches of like lengths anew for each epoch, from its number and the seed.

    The parent draws it from whatever random numbers come next, which are others once a run was interrupted, and others
    in each process.
    """

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[int] | None:
        sampler: Sampler[int] | None = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return _OfEpoch(sampler, seed)
        return sampler


class _OfEpoch(Sampler[int]):
    """Indices of like lengths beside each other, in the order of an epoch."""

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.sampler)
