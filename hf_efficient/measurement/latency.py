"""How fast models run here: latencies taken in turn, and the machine that they were taken on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Latency:
    """Median and 90th percentile of one forward pass in milliseconds, and the circumstances."""

    p50: float
    p90: float
    batch_size: int
    sequence_length: int
    threads: int
    runtime: str


@dataclass(frozen=True)
class GenerationLatency:
    """Medians in milliseconds of writing greedily: until the first token is there, and for each one after it."""

    first_token: float
    next_token: float
    new_tokens: int
    batch_size: int
    sequence_length: int

    def seconds_for(self, tokens: int) -> float:
        """Return how long it takes to write so many tokens."""
        return (self.first_token + (tokens - 1) * self.next_token) / 1e3


def sample_inputs(
    vocab_size: int, batch_size: int, sequence_length: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return token ids drawn with a fixed seed, and a full mask, both (batch_size, sequence_length)."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (batch_size, sequence_length), generator=generator)
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], repeats: int = 60, warmup: int = 3, turn: int = 20
) -> dict[str, list[float]]:
    """Return, for each of `calls`, `repeats` durations in milliseconds, taken in turns of `turn` calls.

    Taking turns lets a slow moment of a shared machine fall on all of them, so that ratios of medians hold. A turn
    begins with `warmup` calls that do not count: what the others left in the caches is nobody's cost.
    """
    durations: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for start in range(0, repeats, turn):
            for name, call in calls.items():
                for number in range(warmup + min(turn, repeats - start)):
                    synchronize()
                    before = time.perf_counter()
                    call()
                    synchronize()
                    if number >= warmup:
                        durations[name].append((time.perf_counter() - before) * 1e3)
    return durations


def summarize_latency(durations: list[float], batch_size: int, sequence_length: int, runtime: str) -> Latency:
    """Return the latency that `durations` (milliseconds) amount to."""
    ordered = sorted(durations)
    return Latency(
        p50=statistics.median(ordered),
        p90=ordered[min(len(ordered) - 1, round(0.9 * (len(ordered) - 1)))],
        batch_size=batch_size,
        sequence_length=sequence_length,
        threads=torch.get_num_threads(),
        runtime=runtime,
    )


def synchronize() -> None:
    """Waits until what was asked of an accelerator is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
