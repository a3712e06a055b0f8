"""How fast models run here: latencies taken in turn, and the machine that they were taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

INSTRUCTIONS = ("avx2", "avx512_f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
PACKAGES = ("hf_efficient", "torch", "transformers", "torchao", "datasets", "accelerate", "optimum")


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
class Generation:
    """Medians in milliseconds of writing greedily: until the first token is there, and for each one after it."""

    first_token: float
    next_token: float
    new_tokens: int
    batch_size: int
    sequence_length: int

    def seconds_for(self, tokens: int) -> float:
        """Returns how long it takes to write so many tokens."""
        return (self.first_token + (tokens - 1) * self.next_token) / 1e3


def sample_inputs(
    vocab_size: int, batch_size: int, sequence_length: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Returns token ids drawn with a fixed seed, and a full mask, both (batch_size, sequence_length)."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (batch_size, sequence_length), generator=generator)
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


def time_in_turn(
    calls: Mapping[str, Callable[[], object]], repeats: int = 60, warmup: int = 3, turn: int = 20
) -> dict[str, list[float]]:
    """Returns, for each of `calls`, `repeats` durations in milliseconds, taken in turns of `turn` calls.

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


def summarize(durations: list[float], batch_size: int, sequence_length: int, runtime: str) -> Latency:
    """Returns the latency that `durations` (milliseconds) amount to."""
    ordered = sorted(durations)
    return Latency(
        p50=statistics.median(ordered),
        p90=ordered[min(len(ordered) - 1, round(0.9 * (len(ordered) - 1)))],
        batch_size=batch_size,
        sequence_length=sequence_length,
        threads=torch.get_num_threads(),
        runtime=runtime,
    )


def environment() -> dict[str, Any]:
    """Returns the processor, its cores, the accelerator, the operating system and the versions of the libraries."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": [name for name in INSTRUCTIONS if torch.cpu.get_capabilities().get(name)],
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def synchronize() -> None:
    """Waits until what was asked of an accelerator is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
