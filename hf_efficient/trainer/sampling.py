"""Training data in an order that an interruption does not change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

EPOCH_TOLERANCE = 1e-6  # of an epoch: the count of epochs is a sum of fractions


class Ordering(Trainer):
    """A trainer that draws the order of batches of like lengths anew for each epoch, from its number and the seed.

    The parent draws it from whatever random numbers come next, which are others once a run was interrupted, and others
    in each process.
    """

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[int] | None:
        sampler: Sampler[int] | None = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return EpochSeededSampler(sampler, seed, self)
        return sampler


class EpochSeededSampler(Sampler[int]):
    """Indices of like lengths beside each other, in the order of an epoch."""

    def __init__(self, sampler: LengthGroupedSampler, seed: int, trainer: Trainer) -> None:
        self.sampler, self.seed, self.trainer = sampler, seed, trainer

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        # Asked of the trainer: what accelerate wraps around a sampler does not always tell it of the epoch.
        epoch = int((self.trainer.state.epoch or 0) + EPOCH_TOLERANCE)
        self.sampler.generator = torch.Generator().manual_seed(self.seed + epoch)
        return iter(self.sampler)
