"""Memory: the peak of tensors during one call, and the peak of a process while it trains."""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

if sys.platform != "win32":
    import resource

PROCESS_STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see proc_pid_clear_refs(5)
# For glibc: freed memory returns to the system immediately, so that resident memory is memory in use.
MALLOC_SETTINGS = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Return the peak of the memory that torch allocates on `device` during `call`, in bytes, beyond what it held.

    On a CUDA device the allocator reports it. On a CPU it is computed from torch's profile of all allocations; memory
    that a library allocates without torch is not included. None on other devices.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        allocated = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - allocated
    if device.type != "cpu":
        return None
    with suppress_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    allocated = peak = 0
    for _, change in changes:
        allocated += change
        peak = max(peak, allocated)
    return peak


@contextmanager
def suppress_stderr() -> Iterator[None]:
    """Suppress what native code writes to the standard error, which Python cannot redirect."""
    sys.stderr.flush()
    original = os.dup(2)
    try:
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


class ProcessMemory:
    """Peak memory of this process in bytes since the last `start`; None where it cannot be measured.

    | device | held | peak |
    | --- | --- | --- |
    | cuda | allocated by torch | `max_memory_allocated`, reset by `start` |
    | cpu, Linux | `VmRSS` | `VmHWM`, reset by `start` |
    | cpu, where the peak cannot be reset | `VmRSS`, or the peak so far | `ru_maxrss` since the process started |

    Resident memory includes the interpreter and its libraries. It shows memory in use only where freed memory returns
    to the system: set `MALLOC_SETTINGS` in the environment before the process starts.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.can_reset = False
        self.held: int | None = None
        self.start()

    def start(self) -> None:
        """Start a new measurement; `can_reset` is then whether earlier peaks are excluded from it."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.held, self.can_reset = torch.cuda.memory_allocated(), True
        elif self.device.type == "cpu":
            self.can_reset = _reset_resident_peak()
            self.held = _read_process_status("VmRSS") or _process_lifetime_peak()

    def peak(self) -> int | None:
        """Return the peak of the memory held."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        if self.device.type != "cpu":
            return None
        return (_read_process_status("VmHWM") if self.can_reset else None) or _process_lifetime_peak()

    def growth(self) -> int | None:
        """Return how far the peak is above what was held at the start."""
        peak = self.peak()
        return None if peak is None or self.held is None else max(0, peak - self.held)


def _read_process_status(name: str) -> int | None:
    """Return the bytes that Linux reports for this process under `name`; None on other systems."""
    try:
        lines = PROCESS_STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _reset_resident_peak() -> bool:
    """Reset the kernel's peak of this process's resident memory; False if the kernel does not allow it."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK, encoding="utf-8")
    except OSError:
        return False
    return _read_process_status("VmHWM") is not None


def _process_lifetime_peak() -> int | None:
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, kilobytes elsewhere
