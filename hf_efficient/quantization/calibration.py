"""Statistics of the inputs of Linears on calibration data: ranges, outlier channels, second moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_efficient.models import family_of
from hf_efficient.models.batches import Batch, eval_mode, example_count, non_padding_mask, require_batches
from hf_efficient.models.inputs import select_inputs

CALIBRATION_SAMPLES = 384
MAX_OUTLIERS = 8
# Channels are kept in float only where the range of all others gets so many times narrower.
MIN_NARROWING = 2.0
# Values up to so many times the largest one that was observed are cut off; what is larger is multiplied in float.
LIMIT_MARGIN = 1.25


@dataclass(frozen=True)
class InputStatistics:
    """What the inputs of one Linear are on the calibration data.

    | field | meaning |
    | --- | --- |
    | low, high | smallest and largest value of the ordinary channels; zero is between them |
    | lowest, highest | the same with a margin: rows with values beyond, in ordinary channels, are not cut off |
    | outliers | channels with values far larger than the others', ascending |
    | second_moments | (channels, channels) sum of the products of channels over all tokens; None: not observed |
    """

    low: float
    high: float
    lowest: float
    highest: float
    outliers: tuple[int, ...] = ()
    second_moments: torch.Tensor | None = None

    @classmethod
    def from_channels(
        cls, low: torch.Tensor, high: torch.Tensor, second_moments: torch.Tensor | None = None
    ) -> InputStatistics:
        """Return the statistics of inputs whose channels are between `low` and `high`, both (channels,).

        As few channels as narrow the range of the others `MIN_NARROWING` times are outliers, at most `MAX_OUTLIERS`.

        Source: Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", section 3.2.
        """
        low, high = low.float().cpu().clamp(max=0), high.float().cpu().clamp(min=0)
        order = torch.maximum(-low, high).argsort(descending=True)
        lows, highs = low[order].flip(0).cummin(0).values.flip(0), high[order].flip(0).cummax(0).values.flip(0)
        widths = highs - lows  # of the channels without the first 0, 1, ... of `order`
        narrow = (widths[: MAX_OUTLIERS + 1] * MIN_NARROWING <= widths[0]).nonzero().flatten().tolist()
        count = narrow[0] if narrow and widths[0] > 0 else 0
        outliers = tuple(sorted(order[:count].tolist()))
        low_value, high_value = float(lows[count]), float(highs[count])
        lowest, highest = LIMIT_MARGIN * low_value, LIMIT_MARGIN * high_value
        return cls(low_value, high_value, lowest, highest, outliers, second_moments)


def observe_inputs(
    model: PreTrainedModel, linears: Mapping[str, nn.Module], batches: Iterable[Batch], second_moments: bool = False
) -> dict[str, InputStatistics]:
    """Return by name what the inputs of each of `linears`, modules of `model`, are on the tokens of `batches`.

    At most `CALIBRATION_SAMPLES` examples are used; padding is left out. A Linear that the batches do not reach has
    no statistics. `model` is not changed.

    Raises UserError if there are no batches.
    """
    observed: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = {}
    batch: Batch = {}
    reads_encoder = {
        linear
        for block in family_of(model).blocks(model).values()
        if block.name.endswith(".cross_attention")
        for linear in block.input_linears[1:]  # keys and values
    }

    def hook(name: str, linear: nn.Module) -> Callable[..., None]:
        is_decoder = "decoder." in name and linear not in reads_encoder

        def observe(module: nn.Module, args: tuple[Any, ...]) -> None:
            states = args[0].detach()
            values = states[non_padding_mask(batch, states, is_decoder)].float()
            if len(values) == 0:
                return
            low, high, moments = values.amin(0), values.amax(0), values.T @ values if second_moments else None
            if name in observed:
                earlier_low, earlier_high, earlier_moments = observed[name]
                low, high = torch.minimum(low, earlier_low), torch.maximum(high, earlier_high)
                moments = None if moments is None or earlier_moments is None else moments.add_(earlier_moments)
            observed[name] = low, high, moments

        return observe

    handles = [linear.register_forward_pre_hook(hook(name, linear)) for name, linear in linears.items()]
    samples = 0
    try:
        with torch.no_grad(), eval_mode(model):
            for batch in require_batches(batches):
                model(**{n: v.to(model.device) for n, v in select_inputs(model, batch).items()})
                samples += example_count(batch)
                if samples >= CALIBRATION_SAMPLES:
                    break
    finally:
        for handle in handles:
            handle.remove()
    return {name: InputStatistics.from_channels(*values) for name, values in observed.items()}
