"""Runtimes that a forward pass can be timed in: torch, torch.compile, ONNX Runtime and OpenVINO."""

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

# Packages that a runtime needs besides torch; the optional extra of its name installs them.
RUNTIME_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
RUNTIME_TITLES = {"compiled": "torch.compile", "onnx": "onnxruntime"}
_ORT_LOG_LEVEL_ERROR = 3
_OPENVINO_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def check_runtime(name: str) -> None:
    """Check the name of a runtime. Raises UserError if it is not in `RUNTIMES` or its packages are not installed."""
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

    It returns the outputs of `model`, computed in the precision of its weights. The model is put into eval mode, and
    exported or compiled here for the shapes of `inputs`, with the number of threads that torch uses.

    Raises UserError if the runtime is unknown or not installed.
    """
    check_runtime(name)
    return RUNTIMES[name](model.eval(), inputs)


def torch_runner(model: nn.Module, inputs: Inputs) -> Call:
    """Return the forward pass in eager mode."""

    def call() -> Any:
        with torch.inference_mode():
            return model(**inputs)

    return call


def compiled_torch_runner(model: nn.Module, inputs: Inputs) -> Call:
    """Return the forward pass under torch.compile, already compiled into one graph for these shapes."""

    def forward() -> Any:
        return model(**inputs)

    # torch.compile silently falls back to eager mode when one code object has been compiled too often.
    forward.__code__ = forward.__code__.replace()
    compiled = torch.compile(forward, fullgraph=True, dynamic=False)

    def call() -> Any:
        with torch.inference_mode():
            return compiled()

    with suppress_output():
        call()
    return call


def onnx_runtime_runner(model: nn.Module, inputs: Inputs) -> Call:
    """Return the forward pass of the model, exported to ONNX, in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _ORT_LOG_LEVEL_ERROR
    with suppress_output():
        exported = transformers.exporters.OnnxExporter().export(
            model, dict(inputs), transformers.exporters.OnnxConfig()
        )
        exported.to(_device(model), session_options=options)
    return _exported_call(exported, inputs)


def openvino_runner(model: nn.Module, inputs: Inputs) -> Call:
    """Return the forward pass of the model, exported to OpenVINO, in the precision of its weights.

    By default OpenVINO would compute in bfloat16 on processors that support it.
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
    return _exported_call(exported, inputs)


RUNTIMES: dict[str, Callable[[nn.Module, Inputs], Call]] = {
    "torch": torch_runner,
    "compiled": compiled_torch_runner,
    "onnx": onnx_runtime_runner,
    "openvino": openvino_runner,
}


def _exported_call(exported: Any, inputs: Inputs) -> Call:
    def call() -> Any:
        with torch.inference_mode():
            return exported(**inputs)

    return call


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def suppress_output() -> Iterator[None]:
    """Suppress what exporters and compilers print, log and warn; exceptions are not affected."""
    previous_level = logging.root.manager.disable
    logging.disable(max(previous_level, logging.WARNING))
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous_level)
