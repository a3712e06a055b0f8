"""Int8 quantization: weights and, except for `int8_weight_only`, the inputs of the layers' Linears are integers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.models import family_of, find_family
from hf_efficient.models.batches import Batch
from hf_efficient.models.blocks import EmptyBlock, FeedForwardBlock
from hf_efficient.models.int8_kernels import WEIGHT_LIMIT
from hf_efficient.quantization.calibration import InputStatistics, observe_inputs
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.quantization.module_selection import check_selection, select_embeddings, select_linears
from hf_efficient.quantization.quantized_model import build_quantized_model
from hf_efficient.quantization.rounding import quantize_rows, round_with_compensation

ACTIVATIONS = {"int8_static": "static", "int8_dynamic": "dynamic", "int8_weight_only": None}
EMBEDDING_LIMIT = 127
LARGE_NEURON = 20.0  # times the median neuron
MAX_LISTED = 4

logger = logging.get_logger(__name__)


def quantize_int8(
    model: PreTrainedModel, config: QuantizationConfig, statistics: Mapping[str, InputStatistics] | None = None
) -> PreTrainedModel:
    """Return a copy of `model` in an int8 scheme.

    `statistics` are those of the inputs of its Linears, by name in the base model. `int8_static` computes fixed ranges
    from them, and keeps the inputs of a Linear without any in float; with second moments, weights are rounded so that
    the errors of outputs are small.

    Raises UserError if no module of `model` would be quantized; UnsupportedModelError if its family is unknown.
    """
    check_selection(model, config)
    statistics = {} if statistics is None else statistics
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    weights = model.state_dict()
    activations = ACTIVATIONS[str(config.scheme)]
    settings: dict[str, Any] = {"activations": activations, "linears": {}, "embeddings": []}
    linears = dict(select_linears(model, config))
    for name in linears_in_float(model, config):
        del linears[name]
        logger.warning(f"{name} stays in float: it reads neurons that are far larger than the others")
    for name, members in merged_linears(model, linears).items():
        observed = statistics.get(members[0])
        fixed = observed if activations == "static" else None
        int8_linear: dict[str, Any] = {}
        if len(members) > 1:
            int8_linear["members"] = [member.rpartition(".")[2] for member in members]
        if activations == "static" and fixed is None:
            int8_linear["activations"] = None
        outliers = () if fixed is None else fixed.outliers
        if outliers:
            int8_linear["outliers"] = len(outliers)
        tensors = _quantize_linears([linears[member] for member in members], observed, outliers)
        if fixed is not None:
            tensors["input_range"] = torch.tensor([fixed.low, fixed.high])
            tensors["input_limits"] = torch.tensor([fixed.lowest, fixed.highest])
        for member in members:
            weights.pop(f"{prefix}{member}.weight")
            weights.pop(f"{prefix}{member}.bias", None)
        weights |= {f"{prefix}{name}.{key}": tensor for key, tensor in tensors.items()}
        settings["linears"][name] = int8_linear
    for name, _ in () if config.embeddings_are_codebooks else select_embeddings(model, config):
        integers, scale = quantize_rows(weights[f"{prefix}{name}.weight"], EMBEDDING_LIMIT)
        weights[f"{prefix}{name}.weight"] = integers.to(torch.int8)
        weights[f"{prefix}{name}.weight_scale"] = scale.to(model.dtype)
        settings["embeddings"].append(name)
    return build_quantized_model(model, weights, int8=settings)


def calibrate(
    model: PreTrainedModel, config: QuantizationConfig, batches: Iterable[Batch], second_moments: bool = True
) -> dict[str, InputStatistics]:
    """Return statistics of the inputs of the Linears that `config` quantizes, by name in the base model.

    Of several Linears with the same inputs, such as those of queries, keys and values, the first has them.

    Raises UserError if there are no batches.
    """
    linears = dict(select_linears(model, config))
    observed = {members[0]: linears[members[0]] for members in merged_linears(model, linears).values()}
    return observe_inputs(model, observed, batches, second_moments)


def merged_linears(model: PreTrainedModel, names: Collection[str]) -> dict[str, list[str]]:
    """Return the 8-bit Linears, by name, with the Linears `names` that each of them computes.

    Linears that read the same states, such as those of queries, keys and values, become one, whose inputs are
    quantized once.
    """
    paths = {module: name for name, module in model.base_model.named_modules()}
    merged: dict[str, list[str]] = {}
    for block in family_of(model).blocks(model).values():
        module = getattr(block.owner, block.compute)
        if isinstance(module, EmptyBlock) or module not in paths:
            continue
        # In cross attention queries are computed from other states than keys and values.
        inputs = block.inputs[1:] if block.name.endswith(".cross_attention") else block.inputs
        members = [f"{paths[module]}.{name}" for name in inputs]
        if len(members) > 1 and all(member in names for member in members):
            merged[f"{paths[module]}.{'_'.join(inputs)}"] = members
    alone = set(names) - {member for members in merged.values() for member in members}
    return {**merged, **{name: [name] for name in names if name in alone}}


def linears_in_float(model: PreTrainedModel, config: QuantizationConfig) -> list[str]:
    """Return the names in the base model of Linears that `config` selects and that yet stay in float.

    They read gated neurons of which some are far larger than the others. `int8_static` quantizes them too: the ranges
    that it observes leave out so large values, which stay in float themselves.
    """
    if config.scheme == "int8_static" or not config.is_int8 or find_family(model.config) is None:
        return []
    return sorted(readers_of_large_neurons(model) & {name for name, _ in select_linears(model, config)})


def describe_float_parts(model: PreTrainedModel, quantized: PreTrainedModel, config: QuantizationConfig) -> str:
    """Return what of the Linears of `model` is in float in `quantized`, to follow other text; empty if nothing is."""
    text, names = "", linears_in_float(model, config)
    if names:
        listed = ", ".join(names[:MAX_LISTED]) + (f" and {len(names) - MAX_LISTED} more" if names[MAX_LISTED:] else "")
        text += f"; in float, since they read neurons that are far larger than the others: {listed}"
    linears = (getattr(quantized.config, "int8", None) or {}).get("linears", {})
    channels = [settings["outliers"] for settings in linears.values() if "outliers" in settings]
    if channels:
        text += (
            f"; {sum(channels)} input channels of {len(channels)} of {len(linears)} 8-bit Linears are in float, since "
            "their values are far larger than the others'"
        )
    return text


def readers_of_large_neurons(model: PreTrainedModel) -> set[str]:
    """Return the names in the base model of Linears that read gated neurons of which some are far larger than others.

    A neuron is the product of two values: by their weights alone one can be so large that a scale for all of them
    leaves nothing of the others, as in Flan-T5.
    """
    paths = {module: name for name, module in model.base_model.named_modules()}
    readers = set()
    for block in family_of(model).blocks(model).values():
        gates = len(block.input_linears) * block.fused
        if isinstance(block, FeedForwardBlock) and block.units and gates > 1:
            for linear in block.input_linears:
                sizes = linear.weight.detach().float().norm(dim=1).view(block.fused, block.units)
                if bool((sizes.amax(1) > LARGE_NEURON * sizes.median(1).values).any()):
                    readers.add(paths[block.output])
    return readers


def without_outliers(weight: torch.Tensor, outliers: tuple[int, ...]) -> torch.Tensor:
    """Return a copy of `weight` (outputs, inputs) with zeros in the columns of the outlier channels."""
    weight = weight.detach().float().clone()
    weight[:, list(outliers)] = 0
    return weight


def _quantize_linears(
    linears: list[nn.Linear], observed: InputStatistics | None, outliers: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """Return the tensors, see `Int8Linear`, of one 8-bit Linear with the outputs of all of `linears`."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    ordinary = without_outliers(weight, outliers)
    integers, scale = quantize_rows(ordinary, WEIGHT_LIMIT)
    if observed is not None and observed.second_moments is not None:
        moments = observed.second_moments.clone()
        moments[list(outliers)] = moments[:, list(outliers)] = 0
        integers = round_with_compensation(ordinary, scale, moments, WEIGHT_LIMIT)
    tensors = {"weight": integers.to(torch.int8), "weight_scale": scale.flatten().to(weight.dtype)}
    if linears[0].bias is not None:
        tensors["bias"] = torch.cat([linear.bias.detach() for linear in linears])
    if outliers:
        tensors["outlier_index"] = torch.tensor(outliers)
        tensors["outlier_weight"] = weight[:, list(outliers)].T.contiguous()
    return tensors
