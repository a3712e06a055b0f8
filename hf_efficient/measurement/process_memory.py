"""How much memory a process holds at most: on a GPU what torch has allocated, on the processor what is resident."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch

if sys.platform != "win32":
    import resource

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_HIGH_WATER = "5"  # see proc_pid_clear_refs(5)
# Of glibc: what is freed goes back to the system at once, so that what is resident is what is in use.
MALLOC_SETTINGS = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class ProcessMemory:
    """The most memory that this process holds, in bytes, from each `start` on; None where nothing tells.

    | device | held | peak |
    | --- | --- | --- |
    | cuda | allocated by torch | `max_memory_allocated`, reset by `start` |
    | cpu, Linux | `VmRSS` | `VmHWM`, reset by `start` |
    | cpu, where that cannot be reset | `VmRSS`, or the peak so far | `ru_maxrss` since the process began |

    Resident memory counts the interpreter and its libraries too. It is worth something where freed memory goes back
    to the system: set `RETURN_FREED` in the environment before the process starts.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.starts_anew = False
        self.held: int | None = None
        self.start()

    def start(self) -> None:
        """Begins anew from what is held now; `starts_anew` tells whether earlier peaks are forgotten."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.held, self.starts_anew = torch.cuda.memory_allocated(), True
        elif self.device.type == "cpu":
            self.starts_anew = _forget_peak()
            self.held = _status("VmRSS") or _peak_of_process()

    def peak(self) -> int | None:
        """Return the most that was held."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        if self.device.type != "cpu":
            return None
        return (_status("VmHWM") if self.starts_anew else None) or _peak_of_process()

    def growth(self) -> int | None:
        """Return the most that was held beyond what was held at the start."""
        peak = self.peak()
        return None if peak is None or self.held is None else max(0, peak - self.held)


def _status(name: str) -> int | None:
    """Return the bytes that Linux reports of this process under `name`."""
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _forget_peak() -> bool:
    """Lets the kernel forget the high-water mark of this process; False where it does not."""
    try:
        CLEAR.write_text(RESET_HIGH_WATER, encoding="utf-8")
    except OSError:
        return False
    return _status("VmHWM") is not None


def _peak_of_process() -> int | None:
    if sys.platform == "win32":
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # bytes there, kilobytes elsewhere
