"""Timing of models, call by call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch

from hf_efficient.measurement.report_rows import Latency

THROUGHPUT_PASSES = 3
THROUGHPUT_TEXTS = 128

T = TypeVar("T")


def sample_inputs(
    vocab_size: int, batch_size: int, sequence_length: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return random token ids from a fixed seed, and a full mask, both (batch_size, sequence_length)."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (batch_size, sequence_length), generator=generator)
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], repeats: int = 60, warmup: int = 3, turn: int = 20
) -> dict[str, list[float]]:
    """Return `repeats` durations in milliseconds for each of `calls`, measured alternately, `turn` calls at a time.

    When a shared machine slows down for a moment, that affects all calls alike, so ratios of medians stay reliable.
    Each turn starts with `warmup` calls that are not counted, because the other calls have replaced what was cached.
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


def measure_throughput(passes: Mapping[str, Callable[[], object]], num_texts: Mapping[str, int]) -> dict[str, float]:
    """Return texts a second by name, from calls that each process so many texts of the same kind, timed alternately.

    Each is called `THROUGHPUT_PASSES` times and the median counts. The first call is not left out: what is compiled or
    packed at first use has to be ready.
    """
    durations = time_interleaved(passes, THROUGHPUT_PASSES, warmup=0, turn=1)
    return {name: num_texts[name] / statistics.median(times) * 1e3 for name, times in durations.items()}


def sample_batches(batches: Iterable[T], batch_size: int) -> list[T]:
    """Return about as many batches as hold `THROUGHPUT_TEXTS` texts, evenly spread over all `batches`.

    Of batches in the order of their lengths they are a fair sample of all lengths.
    """
    every = list(batches)
    count = min(len(every), -(-THROUGHPUT_TEXTS // batch_size))
    return [every[(2 * number + 1) * len(every) // (2 * count)] for number in range(count)]


def summarize_latency(durations: list[float], batch_size: int, sequence_length: int, runtime: str) -> Latency:
    """Return the median and the 90th percentile of `durations` (milliseconds)."""
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
    """Wait until a CUDA device has finished all work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
