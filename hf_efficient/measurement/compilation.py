"""Models under torch.compile: compiled once, for any batch size and length, within a time limit."""

from __future__ import annotations

import ctypes
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_efficient.measurement.runtimes import suppress_output

logger = logging.getLogger(__name__)

COMPILE_SECONDS = 120.0


class _TimeLimitError(BaseException):
    """The time limit has passed; compilers catch and wrap every `Exception`."""


def compile_model(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], limit_seconds: float = COMPILE_SECONDS
) -> Callable[..., Any] | None:
    """Return `model` under torch.compile, put into eval mode and compiled by a first run on `inputs`.

    It runs batches of other sizes and lengths too, and whatever the compiled code cannot run without compilation:
    nothing is compiled again.

    Return None, and log a warning, where the model cannot be compiled, for example without a C++ compiler, or where
    that takes longer than `limit_seconds`.
    """
    # Torch compiles other code for a single example than for several.
    single = next(iter(inputs.values())).shape[0] == 1
    batches = [inputs, {name: torch.cat([value, value]) for name, value in inputs.items()}] if single else [inputs]
    try:
        with time_limit(limit_seconds), suppress_output(), warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            compiled = torch.compile(model.eval(), dynamic=True)
            for batch in batches:
                compiled(**_inference_tensors(batch))
    except _TimeLimitError:
        logger.warning(f"the model is not measured under torch.compile, which takes longer than {limit_seconds:g} s")
        return None
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning(f"the model is not measured under torch.compile, which fails on this machine: {reason}")
        return None

    def forward(**arguments: Any) -> Any:
        with torch.inference_mode(), torch.compiler.set_stance("eager_on_recompile"):
            return compiled(**_inference_tensors(arguments))

    return forward


def _inference_tensors(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return copies of tensors that are made in inference mode: other tensors need other compiled code."""
    return {name: value.clone() if torch.is_tensor(value) else value for name, value in arguments.items()}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `_TimeLimitError` in the context after so many seconds, when the next Python instruction is executed.

    A thread raises it, not a signal: on CPUs with AMX, OpenVINO leaves a freed stack for signal handlers behind, and
    the next signal would end the process.
    """
    thread = ctypes.c_ulong(threading.get_ident())
    lock, ended = threading.Lock(), False

    def stop() -> None:
        with lock:
            if not ended:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_TimeLimitError))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            ended = True
            timer.cancel()
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)
