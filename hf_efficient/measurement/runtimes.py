"""Where a forward pass runs: torch as it is, compiled, ONNX Runtime or OpenVINO, each behind one kind of callable."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from torch import nn

from hf_efficient.errors import UserError

Inputs = Mapping[str, torch.Tensor]
Call = Callable[[], Any]

# What a runtime needs besides torch, in the optional extra of its name.
RUNTIME_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
TITLES = {"compiled": "torch.compile", "onnx": "onnxruntime"}
_ORT_ERRORS = 3
_OPENVINO_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def check_runtime(name: str) -> None:
    """Raises ValueError where `name` is not one of `RUNTIMES`, or needs packages that are not installed."""
    if name not in RUNTIMES:
        raise UserError(f"runtime {name!r} is unknown: give one of {', '.join(RUNTIMES)}")
    missing = [package for package in RUNTIME_PACKAGES.get(name, ()) if find_spec(package) is None]
    if missing:
        raise UserError(
            f"runtime {name!r} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f"installed: pip install 'hf_efficient[{name}]'"
        )


def build_runner(name: str, model: nn.Module, inputs: Inputs) -> Call:
    """Return a callable that runs one forward pass of `model` on `inputs` in the runtime `name`, without gradients.

    It answers as `model` does, and in the precision of its weights. All that is made once is made here: the model is
    exported or compiled for the shapes of `inputs`, on as many threads as torch has now, and put into eval mode.

    Raises ValueError: the runtime is unknown, not installed, or does not run on the model's device.
    """
    check_runtime(name)
    return RUNTIMES[name](model.eval(), inputs)


def torch_runner(model: nn.Module, inputs: Inputs) -> Call:
    """Return the forward pass as torch runs it, operation by operation."""

    def call() -> Any:
        with torch.inference_mode():
            return model(**inputs)

    return call


def compiled_torch_runner(model: nn.Module, inputs: Inputs) -> Call:
    """Return the forward pass under torch.compile, one graph for these shapes, compiled by a first run."""

    def forward() -> Any:
        return model(**inputs)

    # The compiler keeps what it compiled by code object, and gives up, in silence, when one has too many.
    forward.__code__ = forward.__code__.replace()
    compiled = torch.compile(forward, fullgraph=True, dynamic=False)

    def call() -> Any:
        with torch.inference_mode():
            return compiled()

    with suppress_output():
        call()
    return call


def onnx_runtime_runner(model: nn.Module, inputs: Inputs) -> Call:
    """Return the forward pass of the model's ONNX form in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _ORT_ERRORS
    with suppress_output():
        exported = transformers.exporters.OnnxExporter().export(
            model, dict(inputs), transformers.exporters.OnnxConfig()
        )
        exported.to(_device(model), session_options=options)
    return _call_of(exported, inputs)


def openvino_runner(model: nn.Module, inputs: Inputs) -> Call:
    """Return the forward pass of the model's OpenVINO form, in the weights' precision.

    Left to itself OpenVINO computes in bfloat16 wherever the processor can.
    """
    properties = {
        "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISIONS[next(model.parameters()).dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    with suppress_output():
        exported = transformers.exporters.OpenVINOExporter().export(
            model, dict(inputs), transformers.exporters.OpenVINOConfig()
        )
        exported.to(_device(model), config=properties)
    return _call_of(exported, inputs)


RUNTIMES: dict[str, Callable[[nn.Module, Inputs], Call]] = {
    "torch": torch_runner,
    "compiled": compiled_torch_runner,
    "onnx": onnx_runtime_runner,
    "openvino": openvino_runner,
}


def _call_of(exported: Any, inputs: Inputs) -> Call:
    def call() -> Any:
        with torch.inference_mode():
            return exported(**inputs)

    return call


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def suppress_output() -> Iterator[None]:
    """Keeps what exporters and compilers print, log and warn on their way off the screen; errors pass."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
