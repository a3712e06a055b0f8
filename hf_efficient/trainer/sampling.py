"""Training data in an order that does not depend on interruptions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

EPOCH_TOLERANCE = 1e-6  # the trainer counts epochs as a sum of fractions


class EpochSeededSampler(Sampler[int]):
    """The indices of a `LengthGroupedSampler`, in an order drawn from the seed and the number of the epoch.

    The sampler itself draws from the global random state, which differs after a resumed run and between processes.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int, get_epoch: Callable[[], float | None]) -> None:
        self.sampler, self.seed, self.get_epoch = sampler, seed, get_epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        # The epoch is read from the trainer: accelerate's wrappers do not always call `set_epoch` of the sampler.
        epoch = int((self.get_epoch() or 0) + EPOCH_TOLERANCE)
        self.sampler.generator = torch.Generator().manual_seed(self.seed + epoch)
        return iter(self.sampler)


class QuerySampler(Sampler[int]):
    """All documents of a query, then those of another, in an order drawn from the seed and the number of the epoch."""

    def __init__(self, queries: Sequence[int], seed: int, get_epoch: Callable[[], float | None]) -> None:
        self.seed, self.get_epoch = seed, get_epoch
        self.rows: dict[int, list[int]] = {}
        for row, query in enumerate(queries):
            self.rows.setdefault(query, []).append(row)

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def __iter__(self) -> Iterator[int]:
        epoch = int((self.get_epoch() or 0) + EPOCH_TOLERANCE)
        generator = torch.Generator().manual_seed(self.seed + epoch)
        groups = list(self.rows.values())
        for index in torch.randperm(len(groups), generator=generator).tolist():
            yield from groups[index]


def seed_by_epoch(
    sampler: Sampler[int] | None,
    args: TrainingArguments,
    get_epoch: Callable[[], float | None],
    queries: Sequence[int] | None = None,
) -> Sampler[int] | None:
    """Return `sampler`, seeded anew in each epoch if it groups by length; the others are seeded already.

    With the number of the query of each row, the documents of a query come together instead.
    """
    seed = args.seed if args.data_seed is None else args.data_seed
    if queries is not None:
        return QuerySampler(queries, seed, get_epoch)
    if isinstance(sampler, LengthGroupedSampler):
        return EpochSeededSampler(sampler, seed, get_epoch)
    return sampler
