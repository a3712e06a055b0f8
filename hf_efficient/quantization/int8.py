"""Uniform 8 bits: weights, and for `int8_dynamic` activations, as integers with a scale, by torchao."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.quiet import quiet_torchao

logger = logging.get_logger(__name__)

SCHEMES = ("int8_dynamic", "int8_weight_only")


@dataclass(frozen=True)
class QuantizationConfig:
    """Which 8-bit form a model gets, and which of its parts stay in float.

    Raises ValueError: the scheme is unknown, or a pattern is no regular expression.
    """

    scheme: str | None = field(
        default="int8_dynamic",
        metadata={
            "help": "int8_dynamic: 8-bit weights a channel and activations a token; int8_weight_only: weights alone."
        },
    )
    quantize_embeddings: bool = field(
        default=True, metadata={"help": "Store embedding tables as int8 rows too: they are half of a small encoder."}
    )
    aware: bool = field(
        default=False, metadata={"help": "Train the model to live with 8 bits: it rounds in training as it will then."}
    )
    skip_modules: str = field(
        default="",
        metadata={"help": "Comma separated regular expressions; modules with a matching name stay in float."},
    )
    compile: bool = field(
        default=True,
        metadata={
            "help": "Also measure the 8-bit model under torch.compile, without which it saves memory but no time."
        },
    )

    def __post_init__(self) -> None:
        if self.scheme is not None and self.scheme not in SCHEMES:
            raise ValueError(f"scheme={self.scheme!r} is unknown: give one of {', '.join(SCHEMES)}")
        if self.aware and self.scheme is None:
            raise ValueError(
                f"aware=True trains for 8 bits that nobody asked for: give scheme, {' or '.join(SCHEMES)}"
            )
        for pattern in self.skip_patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"skip_modules={pattern!r} is not a regular expression: {error}") from error

    @property
    def skip_patterns(self) -> tuple[str, ...]:
        """The regular expressions of `skip_modules`."""
        return tuple(pattern.strip() for pattern in self.skip_modules.split(",") if pattern.strip())

    def skips(self, name: str) -> bool:
        """Whether the module called `name` stays in float."""
        return any(re.search(pattern, name) for pattern in self.skip_patterns)


def quantize(
    model: PreTrainedModel, config: QuantizationConfig | None = None, calibration: None = None
) -> PreTrainedModel:
    """Returns an 8-bit copy of `model` that `save_pretrained` writes and `from_pretrained` loads as it is.

    The Linears of the layers are quantized, and the embedding tables unless told otherwise; pooler and task head stay
    in float, for they are small and what they lose shows at once.

    `calibration` is for schemes that need data; dynamic and weight-only ones find their ranges without.

    Raises ValueError: the model is quantized already, or nothing of it would be.
    """
    config = config or QuantizationConfig()
    if config.scheme is None:
        raise ValueError(f"scheme=None asks for nothing: give one of {', '.join(SCHEMES)}")
    if calibration is not None:
        raise ValueError(f"scheme={config.scheme!r} needs no calibration data: leave `calibration` out")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("the model is quantized already: start from its float form")
    with quiet_torchao(), tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        quantized: PreTrainedModel = type(model).from_pretrained(
            folder, quantization_config=torchao_config(model, config), dtype=model.dtype
        )
    quantized.config._name_or_path = model.config._name_or_path
    return quantized.to(model.device).eval()


def compiled(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> Callable[..., Any] | None:
    """Returns `model` under torch.compile, for any batch size and length, compiled by a first run on `inputs`.

    Eagerly, torchao unpacks a whole embedding table for every lookup, and quantizes activations in many small steps;
    compiled, both melt into the kernels around them. None where it cannot be compiled: no C++ compiler, say.
    """
    try:
        with quiet_torchao(), warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            result: Callable[..., Any] = torch.compile(model.eval(), dynamic=True)
            result(**inputs)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        logger.warning(f"the 8-bit model is not measured under torch.compile, which does not work here: {reason}")
        return None
    return result


def torchao_config(model: PreTrainedModel, config: QuantizationConfig) -> Any:
    """Returns the `TorchAoConfig` that says, by patterns of parameter names, what of `model` is quantized how.

    Raises ValueError: no parameter of `model` is to be quantized.
    """
    with quiet_torchao():
        from torchao.quantization import FqnToConfig, Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
        from torchao.utils import should_reduce_range
        from transformers import TorchAoConfig

    linears: Any = Int8WeightOnlyConfig()
    if config.scheme == "int8_dynamic":
        linears = Int8DynamicActivationInt8WeightConfig(reduce_range=should_reduce_range(model.device))
    wanted = dict.fromkeys(_patterns(model, list(chosen_linears(model, config))), linears)
    wanted |= dict.fromkeys(_patterns(model, list(chosen_embeddings(model, config))), Int8WeightOnlyConfig())
    if not wanted:
        raise ValueError(f"nothing to quantize in {type(model).__name__} with skip_modules={config.skip_modules!r}")
    return TorchAoConfig(FqnToConfig(wanted))


def integer_range(device: torch.device | None) -> tuple[int, int]:
    """Returns the integers that values are rounded to: fewer on processors whose 8-bit sums would overflow.

    That is where the CPU has no VNNI. None: where there are no such sums.
    """
    with quiet_torchao():
        from torchao.utils import should_reduce_range

    return (-64, 63) if device is not None and should_reduce_range(device) else (-128, 127)


def chosen_linears(model: PreTrainedModel, config: QuantizationConfig) -> Iterator[tuple[str, Any]]:
    """Yields the Linears of the layers that `config` quantizes, with their names in the base model."""
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.Linear) and re.search(r"\.\d+\.", name) and not config.skips(name):
            yield name, module


def chosen_embeddings(model: PreTrainedModel, config: QuantizationConfig) -> Iterator[tuple[str, Any]]:
    """Yields the embedding tables that `config` quantizes, with their names in the base model.

    Tables that stand in two places, such as the output layer's, stay in float: one would be left dangling.
    """
    if not config.quantize_embeddings:
        return
    tied: Mapping[str, str] = model.all_tied_weights_keys
    shared = {id(model.get_parameter(name)) for name in (*tied, *tied.values())}
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.Embedding) and id(module.weight) not in shared and not config.skips(name):
            yield name, module


def _patterns(model: PreTrainedModel, chosen: Sequence[tuple[str, nn.Module]]) -> Iterator[str]:
    """Yields patterns that match the weights of the chosen modules, whichever head stands around the base model."""
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
