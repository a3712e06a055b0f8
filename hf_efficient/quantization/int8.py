"""Uniform 8 bits: weights, and for `int8_dynamic` activations, as integers with a scale, by torchao."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.errors import UserError
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.module_selection import select_embeddings, select_linears
from hf_efficient.quantization.torchao_import import suppress_torchao_warnings

logger = logging.get_logger(__name__)


def quantize_int8(model: PreTrainedModel, config: QuantizationConfig) -> PreTrainedModel:
    """Return a copy of `model` in an 8-bit scheme, which `from_pretrained` loads as it is.

    Raises ValueError: nothing of it would be quantized.
    """
    with suppress_torchao_warnings():
        # Nothing is written on the way: of several processes only the first would.
        quantized: PreTrainedModel = type(model).from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            state_dict=copy.deepcopy(model.state_dict()),
            quantization_config=torchao_config(model, config),
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
        )
    quantized.config._name_or_path = model.config._name_or_path
    return quantized.to(model.device).eval()


def compile_model(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> Callable[..., Any] | None:
    """Return `model` under torch.compile, for any batch size and length, compiled by a first run on `inputs`.

    Eagerly, torchao unpacks a whole embedding table for every lookup, and quantizes activations in many small steps;
    compiled, both melt into the kernels around them. None where it cannot be compiled: no C++ compiler, say.
    """
    try:
        with suppress_torchao_warnings(), warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            result: Callable[..., Any] = torch.compile(model.eval(), dynamic=True)
            result(**inputs)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning(f"the 8-bit model is not measured under torch.compile, which does not work here: {reason}")
        return None
    return result


def torchao_config(model: PreTrainedModel, config: QuantizationConfig) -> Any:
    """Return the `TorchAoConfig` that says, by patterns of parameter names, what of `model` is quantized how.

    Raises ValueError: no parameter of `model` is to be quantized.
    """
    with suppress_torchao_warnings():
        from torchao.quantization import FqnToConfig, Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
        from transformers import TorchAoConfig

    linears: Any = Int8WeightOnlyConfig()
    if config.scheme == "int8_dynamic":
        linears = Int8DynamicActivationInt8WeightConfig(reduce_range=needs_reduced_range(model.device))
    wanted = dict.fromkeys(_patterns(model, list(select_linears(model, config))), linears)
    if not config.embeddings_are_codebooks:
        wanted |= dict.fromkeys(_patterns(model, list(select_embeddings(model, config))), Int8WeightOnlyConfig())
    if not wanted:
        raise UserError(f"nothing to quantize in {type(model).__name__} with skip_modules={config.skip_modules!r}")
    return TorchAoConfig(FqnToConfig(wanted))


def needs_reduced_range(device: torch.device) -> bool:
    """Whether 8-bit sums overflow on this device, so that fewer steps are safer: on CPUs without VNNI."""
    with suppress_torchao_warnings():
        from torchao.utils import should_reduce_range

    return bool(should_reduce_range(device))


def _patterns(model: PreTrainedModel, chosen: Sequence[tuple[str, nn.Module]]) -> Iterator[str]:
    """Yield patterns that match the weights of the chosen modules, whichever head stands around the base model."""
    names, kinds = {name for name, _ in chosen}, {type(module) for _, module in chosen}
    whole: dict[str, list[str]] = {}
    for name, module in model.base_model.named_modules():
        if type(module) in kinds:
            whole.setdefault(re.sub(r"\\\.\d+\\\.", lambda _: r"\.\d+\.", re.escape(name)), []).append(name)
    for generic, members in whole.items():
        left = [name for name in members if name in names]
        if left == members:
            yield rf"re:(.*\.)?{generic}\.weight"
        else:
            yield from (rf"re:(.*\.)?{re.escape(name)}\.weight" for name in left)
