"""Costs that a pruning target is a ratio of: latency, operations, parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.measurement.comparison import generation_call, model_inputs
from hf_efficient.measurement.cost import count_flops, count_parameters
from hf_efficient.measurement.latency import time_interleaved
from hf_efficient.measurement.runtimes import build_runner
from hf_efficient.pruning.config import PruningConfig

logger = logging.get_logger(__name__)

# What is timed of a model, for a config.
Workload: TypeAlias = Callable[[PreTrainedModel, PruningConfig], Callable[[], object]]
TABLE_TIMING_SECONDS = 0.4
CHECK_TIMING_SECONDS = 4.0


@dataclass(frozen=True)
class TargetCost:
    """A cost that a target is a ratio of.

    `of` is the cost of a model, `ratio` that of a reference divided by that of a student. A choice aims at `aim` times
    the ratio that was asked for, and is good between `least` and `most` times it: a noisy cost leaves room for noise.
    `counted` costs depend on the shape alone.
    """

    of: Callable[[PreTrainedModel, PruningConfig], float]
    ratio: Callable[[PreTrainedModel, PreTrainedModel, PruningConfig], float]
    aim: float = 1.0
    least: float = 1.0
    most: float = math.inf
    counted: bool = True


def _latency_inputs(model: PreTrainedModel, config: PruningConfig) -> dict[str, torch.Tensor]:
    return model_inputs(model, config.latency_batch_size, config.latency_sequence_length)


def _flops(model: PreTrainedModel, config: PruningConfig) -> float:
    inputs = _latency_inputs(model, config)
    del inputs["attention_mask"]  # the meta device holds no values to look at
    return float(count_flops(model, inputs) or math.nan)


def _parameters(model: PreTrainedModel, config: PruningConfig) -> float:
    return float(count_parameters(model))


def _forward_call(model: PreTrainedModel, config: PruningConfig) -> Callable[[], object]:
    return build_runner(config.latency_runtime, model, _latency_inputs(model, config))


def _generation_call(model: PreTrainedModel, config: PruningConfig) -> Callable[[], object]:
    return generation_call(model, _latency_inputs(model, config), config.latency_new_tokens)


def _latency_cost(work: Workload) -> TargetCost:
    """Return the cost that is the time of `work` with a model."""

    def time(model: PreTrainedModel, config: PruningConfig) -> float:
        return _median_latencies_ms(work, {"model": model}, config, TABLE_TIMING_SECONDS)["model"]

    def ratio(reference: PreTrainedModel, student: PreTrainedModel, config: PruningConfig) -> float:
        medians = _median_latencies_ms(
            work, {"reference": reference, "student": student}, config, CHECK_TIMING_SECONDS
        )
        return medians["reference"] / medians["student"]

    return TargetCost(time, ratio, aim=1.07, least=1.05, most=1.1, counted=False)


def _median_latencies_ms(
    work: Workload, models: Mapping[str, PreTrainedModel], config: PruningConfig, seconds: float
) -> dict[str, float]:
    """Return the median time of `work` with each model in milliseconds, taken in turn for about `seconds` in all."""
    calls = {name: work(model, config) for name, model in models.items()}
    once = sum(median(times) for times in time_interleaved(calls, repeats=1, warmup=1).values()) / 1e3
    repeats = min(100, max(5, round(seconds / once)))
    return {name: median(times) for name, times in time_interleaved(calls, repeats, warmup=1).items()}


def _ratio_of(
    of: Callable[[PreTrainedModel, PruningConfig], float],
) -> Callable[[PreTrainedModel, PreTrainedModel, PruningConfig], float]:
    return lambda reference, student, config: of(reference, config) / of(student, config)


TARGET_COSTS = {
    "target_speedup": _latency_cost(_forward_call),
    "target_generation_speedup": _latency_cost(_generation_call),
    "target_flops": TargetCost(_flops, _ratio_of(_flops)),
    "target_size": TargetCost(_parameters, _ratio_of(_parameters)),
}


def meta_copy(model: PreTrainedModel, cost: TargetCost, config: PruningConfig) -> PreTrainedModel:
    """Return the model to take costs of: on the meta device, where nothing is computed, if they are only counted."""
    if not cost.counted:
        return model
    probe = copy.deepcopy(model).to("meta")
    try:
        cost.of(probe, config)
    except NotImplementedError:
        return model  # what it computes depends on values: T5's classifier looks for the end token in its input
    return probe
