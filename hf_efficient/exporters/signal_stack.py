"""The stack on which signal handlers run, which OpenVINO replaces by one that it frees later."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SS_DISABLE = 2


class _Stack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_ = [("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t)]


def use_ordinary_signal_stack() -> None:
    """Let signal handlers of this thread run on its own stack, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(None, SS_DISABLE, 0)), None)


@contextmanager
def ordinary_signal_stack() -> Iterator[None]:
    """Use the thread's own stack for signal handlers after the context.

    On CPUs with AMX, each model that OpenVINO compiles sets another stack, and the one of before when it is deleted,
    which may be freed by then. The next signal, such as that of a data loader's process that ends, would end Python.
    """
    try:
        yield
    finally:
        use_ordinary_signal_stack()
