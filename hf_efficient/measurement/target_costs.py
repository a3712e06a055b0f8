"""Costs that a pruning target is a ratio of: latency, floating point operations, parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Protocol, TypeAlias

from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.measurement.comparison import generation_call, model_inputs
from hf_efficient.measurement.cost import count_flops, count_parameters
from hf_efficient.measurement.latency import time_interleaved
from hf_efficient.measurement.runtimes import Call, Inputs, build_runner

logger = logging.get_logger(__name__)

# Returns the call of a model that is timed.
Workload: TypeAlias = Callable[[PreTrainedModel], Callable[[], object]]
# Returns the call of a forward pass of a model on inputs, see `build_runner`.
Runner: TypeAlias = Callable[[PreTrainedModel, Inputs], Call]

TABLE_TIMING_SECONDS = 0.4
CHECK_TIMING_SECONDS = 4.0
MAX_REPEATS = 200
# A device that is busy takes twice as long for twice the batch.
LAUNCH_BOUND_FACTOR = 1.25
# Latencies are noisy: a student that only just reaches the target today would miss it tomorrow.
LATENCY_AIM_FACTOR = 1.07
LATENCY_MIN_FACTOR = 1.05
LATENCY_MAX_FACTOR = 1.1


@dataclass(frozen=True)
class TargetCost:
    """A cost that a target is a ratio of.

    | field | meaning |
    | --- | --- |
    | measure | returns the cost of a student |
    | measure_reference | returns the cost of the reference, which may be in another form |
    | ratio | returns the cost of the first model, the reference, divided by that of the second, the student |
    | aim_factor | the search aims at this multiple of the requested ratio |
    | min_factor, max_factor | the search ends with a ratio between these multiples of the requested one |
    | is_deterministic | the cost depends on the shape of the model alone, not on the machine |
    """

    measure: Callable[[PreTrainedModel], float]
    measure_reference: Callable[[PreTrainedModel], float]
    ratio: Callable[[PreTrainedModel, PreTrainedModel], float]
    aim_factor: float = 1.0
    min_factor: float = 1.0
    max_factor: float = math.inf
    is_deterministic: bool = True


class TargetCostBuilder(Protocol):
    """Builds the cost of a target for the inputs and the runtime that it is measured with."""

    def __call__(
        self, batch_size: int, sequence_length: int, new_tokens: int, runtime: str, run_student: Runner | None = None
    ) -> TargetCost:
        """Return the cost; a builder ignores the arguments that its cost does not depend on.

        `run_student` runs students, in another form than `runtime` that the reference is timed in.
        """
        ...


def forward_latency_cost(
    batch_size: int, sequence_length: int, new_tokens: int, runtime: str, run_student: Runner | None = None
) -> TargetCost:
    """Return the median latency in milliseconds of a forward pass in `runtime`, or of students in `run_student`."""

    def workload(run: Runner) -> Workload:
        return lambda model: run(model, model_inputs(model, batch_size, sequence_length))

    run_reference: Runner = partial(build_runner, runtime)
    return _latency_cost(workload(run_student or run_reference), workload(run_reference))


def generation_latency_cost(
    batch_size: int, sequence_length: int, new_tokens: int, runtime: str, run_student: Runner | None = None
) -> TargetCost:
    """Return the median latency in milliseconds of generating `new_tokens` tokens in torch, greedily."""

    def workload(model: PreTrainedModel) -> Call:
        return generation_call(model, model_inputs(model, batch_size, sequence_length), new_tokens)

    return _latency_cost(workload, workload)


def flops_cost(
    batch_size: int, sequence_length: int, new_tokens: int, runtime: str, run_student: Runner | None = None
) -> TargetCost:
    """Return the floating point operations of a forward pass."""

    def measure(model: PreTrainedModel) -> float:
        inputs = model_inputs(model, batch_size, sequence_length)
        del inputs["attention_mask"]  # its values would be read, and the meta device has none
        flops = count_flops(model, inputs)
        return math.nan if flops is None else float(flops)

    return _deterministic_cost(measure)


def size_cost(
    batch_size: int, sequence_length: int, new_tokens: int, runtime: str, run_student: Runner | None = None
) -> TargetCost:
    """Return the number of parameters."""
    return _deterministic_cost(lambda model: float(count_parameters(model)))


TARGET_COSTS: dict[str, TargetCostBuilder] = {
    "target_speedup": forward_latency_cost,
    "target_generation_speedup": generation_latency_cost,
    "target_flops": flops_cost,
    "target_size": size_cost,
}


def median_latencies_ms(calls: Mapping[str, Call], seconds: float = CHECK_TIMING_SECONDS) -> dict[str, float]:
    """Return the median latency of each of `calls`, timed alternately for about `seconds` in total."""
    seconds_per_repeat = sum(median(times) for times in time_interleaved(calls, repeats=1, warmup=1).values()) / 1e3
    repeats = min(MAX_REPEATS, max(5, round(seconds / seconds_per_repeat)))
    return {name: median(times) for name, times in time_interleaved(calls, repeats, warmup=1).items()}


def warn_if_launch_bound(model: PreTrainedModel, batch_size: int, sequence_length: int) -> None:
    """Log a warning if a batch of this size takes an accelerator no longer than half of it would.

    Its latency is then that of launching the operations, and does not depend on their width.
    """
    if model.device.type == "cpu":
        return
    batches = {size: model_inputs(model, size, sequence_length) for size in (batch_size, 2 * batch_size)}
    calls = {str(size): build_runner("torch", model, batch) for size, batch in batches.items()}
    latency, double = median_latencies_ms(calls, TABLE_TIMING_SECONDS).values()
    if double < LAUNCH_BOUND_FACTOR * latency:
        logger.warning(
            f"{2 * batch_size} texts of {sequence_length} tokens take {double:.2f} ms and {batch_size} take "
            f"{latency:.2f} ms: this device waits for operations to be launched, so that only fewer "
            "layers make the model faster. Measure with a latency_batch_size that fills the device, or give "
            "target_flops"
        )


def _latency_cost(student_workload: Workload, reference_workload: Workload) -> TargetCost:
    def measure(workload: Workload, model: PreTrainedModel) -> float:
        return median_latencies_ms({"model": workload(model)}, TABLE_TIMING_SECONDS)["model"]

    def ratio(reference: PreTrainedModel, student: PreTrainedModel) -> float:
        calls = {"reference": reference_workload(reference), "student": student_workload(student)}
        medians = median_latencies_ms(calls)
        return medians["reference"] / medians["student"]

    return TargetCost(
        partial(measure, student_workload),
        partial(measure, reference_workload),
        ratio,
        aim_factor=LATENCY_AIM_FACTOR,
        min_factor=LATENCY_MIN_FACTOR,
        max_factor=LATENCY_MAX_FACTOR,
        is_deterministic=False,
    )


def _deterministic_cost(measure: Callable[[PreTrainedModel], float]) -> TargetCost:
    return TargetCost(measure, measure, lambda reference, student: measure(reference) / measure(student))
