"""Int8 quantization by torchao, for models that must load without code of this package."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.errors import UserError
from hf_efficient.models.sentence_modules import copy_sentence_modules
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.int8 import linears_in_float
from hf_efficient.quantization.module_selection import select_embeddings, select_linears
from hf_efficient.quantization.torchao_import import suppress_torchao_warnings


def quantize_torchao(model: PreTrainedModel, config: QuantizationConfig) -> PreTrainedModel:
    """Return a copy of `model` with int8 tensors of torchao; `from_pretrained` loads it where torchao is installed.

    Raises UserError if no module of `model` would be quantized.
    """
    with suppress_torchao_warnings():
        # From memory, not through a folder: every process quantizes, and only the first one may write.
        quantized: PreTrainedModel = type(model).from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            state_dict=copy.deepcopy(model.state_dict()),
            quantization_config=torchao_config(model, config),
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
        )
    quantized.config._name_or_path = model.config._name_or_path
    copy_sentence_modules(model, quantized)
    return quantized.to(model.device).eval()


def torchao_config(model: PreTrainedModel, config: QuantizationConfig) -> Any:
    """Return the `TorchAoConfig` that maps patterns of parameter names of `model` to how they are quantized.

    Raises UserError if no parameter of `model` would be quantized.
    """
    with suppress_torchao_warnings():
        from torchao.quantization import FqnToConfig, Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
        from transformers import TorchAoConfig

    # Without its settings for Inductor, which would hold for the whole process and make compilation take minutes.
    weight_only: Any = Int8WeightOnlyConfig(set_inductor_config=False)
    linear_config = weight_only
    if config.scheme == "int8_dynamic":
        linear_config = Int8DynamicActivationInt8WeightConfig(
            reduce_range=needs_reduced_range(model.device), set_inductor_config=False
        )
    in_float = linears_in_float(model, config)
    linears = [(name, linear) for name, linear in select_linears(model, config) if name not in in_float]
    configs = dict.fromkeys(_weight_patterns(model, linears), linear_config)
    if not config.embeddings_are_codebooks:
        embeddings = list(select_embeddings(model, config))
        configs |= dict.fromkeys(_weight_patterns(model, embeddings), weight_only)
    if not configs:
        raise UserError(f"nothing to quantize in {type(model).__name__} with skip_modules={config.skip_modules!r}")
    return TorchAoConfig(FqnToConfig(configs))


def needs_reduced_range(device: torch.device) -> bool:
    """Whether int8 sums can overflow on this device, so that a smaller range is needed: on CPUs without VNNI."""
    with suppress_torchao_warnings():
        from torchao.utils import should_reduce_range

    return bool(should_reduce_range(device))


def _weight_patterns(model: PreTrainedModel, modules: Sequence[tuple[str, nn.Module]]) -> Iterator[str]:
    """Yield patterns that match the weights of `modules` with any head: one for all layers where they allow it."""
    names, classes = {name for name, _ in modules}, {type(module) for _, module in modules}
    names_by_pattern: dict[str, list[str]] = {}
    for name, module in model.base_model.named_modules():
        if type(module) in classes:
            pattern = re.sub(r"\\\.\d+\\\.", lambda _: r"\.\d+\.", re.escape(name))
            names_by_pattern.setdefault(pattern, []).append(name)
    for pattern, matching in names_by_pattern.items():
        selected = [name for name in matching if name in names]
        if selected == matching:
            yield rf"re:(.*\.)?{pattern}\.weight"
        else:
            yield from (rf"re:(.*\.)?{re.escape(name)}\.weight" for name in selected)
