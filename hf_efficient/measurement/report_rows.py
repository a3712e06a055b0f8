"""What a report holds of each model: sizes, latencies, metrics, and ratios relative to the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hf_efficient.measurement.intervals import Interval

LOWER_IS_BETTER = ("loss", "perplexity")


@dataclass(frozen=True)
class Latency:
    """Median and 90th percentile of one forward pass in milliseconds, and the conditions they were measured in."""

    p50: float
    p90: float
    batch_size: int
    sequence_length: int
    threads: int
    runtime: str


@dataclass(frozen=True)
class GenerationLatency:
    """Median times of greedy generation in milliseconds: to the first token, and for each token after it."""

    first_token: float
    next_token: float
    new_tokens: int
    batch_size: int
    sequence_length: int

    def duration_ms(self) -> float:
        """Return how long it takes to generate `new_tokens` tokens, in milliseconds."""
        return self.first_token + (self.new_tokens - 1) * self.next_token


@dataclass(frozen=True)
class Ratios:
    """A model compared with the teacher: larger is better, and 1 for the teacher itself.

    | field | meaning |
    | --- | --- |
    | speedup | latency of the teacher / latency of the model |
    | size | bytes on disk of the teacher / those of the model |
    | flops | operations of the teacher / those of the model |
    | metric_retained | metric of the model / metric of the teacher; None where one is negative or lower is better |
    | metric_difference | metric of the model - metric of the teacher; the sign is that of the metric |
    | generation | time of the teacher to generate a text / that of the model |
    """

    speedup: float | None = None
    size: float | None = None
    flops: float | None = None
    metric_retained: float | None = None
    generation: float | None = None
    metric_difference: float | None = None


@dataclass(frozen=True)
class ModelRow:
    """The measurements of one model; None is not measured.

    Of a form of the float student, quantized, compiled or exported, `agreement` is the fraction of the evaluation
    examples (tokens, for token classification) on which it predicts the same class as that. Of an int8 model
    `max_difference_without_kernels` is the largest difference to its outputs on a machine without kernels for
    integers, relative to the largest output.

    `retained_intervals` has, by metric, the confidence interval of the share of the teacher's metric that is kept; a
    metric that cannot be resampled is missing. `teacher_agreement` is the fraction of the evaluation examples on which
    the model predicts the same class as the teacher; it needs no labels, and varies less than the metrics.
    """

    name: str
    role: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    nonzero_parameters: int | None = None
    flops: int | None = None
    bytes_on_disk: int | None = None
    compressed_bytes_on_disk: int | None = None
    latency_ms: Latency | None = None
    generation_ms: GenerationLatency | None = None
    samples_per_second: float | None = None
    peak_memory_bytes: int | None = None
    energy_joules_per_sample: float | None = None
    structure: Mapping[str, Any] | None = None
    ratios: Ratios = Ratios()
    agreement: float | None = None
    teacher_agreement: float | None = None
    retained_intervals: Mapping[str, Interval] = field(default_factory=dict)
    max_difference_without_kernels: float | None = None

    @property
    def density(self) -> float | None:
        """The fraction of the parameters that is not zero."""
        return _ratio(self.nonzero_parameters, self.parameters)

    @property
    def median_latency_ms(self) -> float | None:
        """The median time of one forward pass in milliseconds."""
        return None if self.latency_ms is None else self.latency_ms.p50

    @property
    def generation_duration_ms(self) -> float | None:
        """The time to generate a text of `generation_ms.new_tokens` tokens, in milliseconds."""
        return None if self.generation_ms is None else self.generation_ms.duration_ms()


def with_ratios(models: Sequence[ModelRow], metric: str | None) -> tuple[ModelRow, ...]:
    """Return `models` with their ratios relative to the one in the role "teacher"; `metric` names the metric used.

    Without a teacher the rows are returned as they are.
    """
    teacher = next((model for model in models if model.role == "teacher"), None)
    if teacher is None:
        return tuple(models)
    return tuple(replace(model, ratios=_compare(teacher, model, metric or "")) for model in models)


def _compare(teacher: ModelRow, model: ModelRow, metric: str) -> Ratios:
    value, expected = model.metrics.get(metric), teacher.metrics.get(metric)
    retained = difference = None
    if value is not None and expected is not None:
        difference = value - expected
        if value >= 0 and expected > 0 and metric not in LOWER_IS_BETTER:
            retained = _ratio(value, expected)
    return Ratios(
        speedup=_ratio(teacher.median_latency_ms, model.median_latency_ms),
        size=_ratio(teacher.bytes_on_disk, model.bytes_on_disk),
        flops=_ratio(teacher.flops, model.flops),
        metric_retained=retained,
        metric_difference=difference,
        generation=_ratio(teacher.generation_duration_ms, model.generation_duration_ms),
    )


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or not denominator else numerator / denominator
