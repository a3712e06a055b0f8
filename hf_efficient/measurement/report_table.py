"""The table of a compression report, and the conditions that its numbers were measured in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_efficient.measurement.embeddings import MEAN, NEIGHBOURS, QUANTIZED_EMBEDDINGS, STD, SimilaritySpread
from hf_efficient.measurement.formatting import (
    NOT_MEASURED,
    format_bytes,
    format_count,
    format_duration_ms,
    format_flops,
    format_joules,
    format_metric,
    format_number,
    format_percent,
    format_range,
    format_ratio,
    format_retained,
)
from hf_efficient.measurement.recommendation import describe_use, student_forms
from hf_efficient.measurement.report_rows import ModelRow

ENERGY_PREDICTIONS = 1000
SPARSITY_NOTE = (
    "Density is the fraction of the weights that is not zero. Connections were removed by setting them to zero: that "
    "makes the compressed file (zlib, level 6) smaller, and the model neither faster nor smaller in memory."
)
GENERATION_NOTE = (
    "Generation: greedy, with a cache; the first token is timed separately, and the speed-up is that of the complete "
    "text."
)
TEACHER_AGREEMENT_NOTE = (
    "Same as the teacher: the evaluation examples on which a model predicts the same as the teacher; it needs no "
    "labels, and varies less than the metrics."
)
NEIGHBOURS_NOTE = (
    f"Neighbours kept: of the {NEIGHBOURS} nearest texts of each evaluation text by the teacher's embeddings, the "
    "share that is among the nearest by those of a model. cosine_mean and cosine_std: of the similarities of all "
    "evaluation texts to each other."
)
QUANTIZED_EMBEDDINGS_NOTE = (
    "spearman_int8 and spearman_binary: by embeddings of 8 bits and of one bit a number, a quarter and a 32nd of the "
    "size, as quantize_embeddings of sentence-transformers makes them, with the ranges of the evaluation texts."
)
NEIGHBOURS_OF_FLOAT_NOTE = "Same as float: the share of the neighbours by the embeddings of the float student."
MAX_LOSS_OF_SPREAD = 0.5  # of the distance between texts by the teacher's embeddings
AGREEMENT_NOTE = "Same as float: the evaluation examples on which a form predicts the same as the float student."
INT8_NOTE = (
    "8-bit products are the same on every processor with instructions for them. On others, and on GPUs, the 8-bit "
    "model computes with its inputs in float: its outputs differ by up to {:.2%} of the largest, measured here."
)
TORCHAO_NOTE = (
    "8-bit weights of torchao save disk space and memory when they are run without compilation; torch.compile, or an "
    "export to ONNX Runtime or OpenVINO, makes them fast."
)

Cell = Callable[[ModelRow], str]


def build_cells(
    models: Sequence[ModelRow], metric: str | None, recommended: ModelRow | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return the header with a column for each of `models`, and a row of texts for each measurement.

    `metric` names the metric that models are compared by, `recommended` is the form of the student to use here. Rows
    on sparsity, text generation, agreement and use appear only where they apply to one of the models.
    """
    metrics = list(dict.fromkeys(name for model in models for name in model.metrics))
    generation: list[tuple[str, Cell]] = [
        ("first token", lambda m: format_duration_ms(m.generation_ms.first_token if m.generation_ms else None)),
        ("next token", lambda m: format_duration_ms(m.generation_ms.next_token if m.generation_ms else None)),
        ("generation speed-up", lambda m: format_ratio(m.ratios.generation)),
    ]
    sparsity: list[tuple[str, Cell]] = [
        ("density", lambda m: format_percent(m.density)),
        ("compressed on disk", lambda m: format_bytes(m.compressed_bytes_on_disk)),
    ]
    agreement: list[tuple[str, Cell]] = [("same as float", lambda m: format_percent(m.agreement))]
    agreement_title = "neighbours kept" if MEAN in metrics else "same as the teacher"
    teacher_agreement: list[tuple[str, Cell]] = [
        (agreement_title, lambda m: "" if m.role == "teacher" else format_percent(m.teacher_agreement))
    ]
    has_agreement = any(model.agreement is not None for model in models)
    measurements: list[tuple[str, Cell]] = [
        *((name, lambda m, name=name: format_metric(m.metrics.get(name))) for name in metrics),
        (
            f"{metric or 'metric'} kept",
            lambda m: _describe_retained(m, metric),
        ),
        *(teacher_agreement if any(model.teacher_agreement is not None for model in models) else ()),
        *(agreement if has_agreement else ()),
        ("latency", lambda m: format_duration_ms(m.median_latency_ms)),
        ("90th percentile", lambda m: format_duration_ms(m.latency_ms.p90 if m.latency_ms else None)),
        ("speed-up", lambda m: format_ratio(m.ratios.speedup)),
        ("runtime", lambda m: m.latency_ms.runtime if m.latency_ms else NOT_MEASURED),
        *(generation if generates_text(models) else ()),
        ("samples/s", lambda m: format_number(m.samples_per_second)),
        ("size on disk", lambda m: format_bytes(m.bytes_on_disk)),
        ("times smaller", lambda m: format_ratio(m.ratios.size)),
        ("parameters", lambda m: format_count(m.parameters)),
        *(sparsity if has_sparse_models(models) else ()),
        ("operations", lambda m: format_flops(m.flops)),
        ("peak memory", lambda m: format_bytes(m.peak_memory_bytes)),
        (f"energy of {ENERGY_PREDICTIONS:,} predictions", lambda m: format_joules(_energy_joules(m))),
    ]
    forms = student_forms(models) if models and recommended is not None else []
    if len(forms) > 1:
        use = {form.role: describe_use(form, forms[0], recommended) for form in forms}
        measurements.append(("on this machine", lambda m: use.get(m.role, "")))
    body = [[name, *(cell(model) for model in models)] for name, cell in measurements]
    return ["", *(model.name for model in models)], body


def has_sparse_models(models: Sequence[ModelRow]) -> bool:
    """Return whether one of `models` has zeros in place of removed connections, so that files were compressed."""
    return any(model.compressed_bytes_on_disk is not None for model in models)


def generates_text(models: Sequence[ModelRow]) -> bool:
    """Return whether one of `models` generates text, so that generation was timed."""
    return any(model.generation_ms is not None for model in models)


def describe_conditions(
    models: Sequence[ModelRow],
    environment: Mapping[str, Any],
    attention: str | None = None,
    uses_torchao: bool = False,
    metric: str | None = None,
) -> str:
    """Return sentences on how and where latency was measured, and notes on what the numbers mean.

    `metric` names the metric that models are compared by, `environment` is what `describe_environment` returned,
    `attention` the implementation of attention in transformers.
    """
    uses_torchao &= any(model.role == "quantized" and _runs_in_int8(model) for model in models)
    differences = [model.max_difference_without_kernels for model in models]
    sentences = [
        _describe_latency(models, environment, attention),
        GENERATION_NOTE if generates_text(models) else "",
        SPARSITY_NOTE if has_sparse_models(models) else "",
        describe_intervals(models, metric),
        _describe_agreement(models),
        collapse_note(models),
        TORCHAO_NOTE if uses_torchao else "",
        *(INT8_NOTE.format(difference) for difference in differences if difference is not None),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _describe_agreement(models: Sequence[ModelRow]) -> str:
    of_teacher = any(model.teacher_agreement is not None for model in models)
    of_float = any(model.agreement is not None for model in models)
    if any(MEAN in model.metrics for model in models):
        is_quantized = any(f"spearman_{QUANTIZED_EMBEDDINGS[0]}" in model.metrics for model in models)
        notes = [NEIGHBOURS_NOTE, NEIGHBOURS_OF_FLOAT_NOTE * of_float, QUANTIZED_EMBEDDINGS_NOTE * is_quantized]
        return " ".join(filter(None, notes))
    return " ".join([TEACHER_AGREEMENT_NOTE] * of_teacher + [AGREEMENT_NOTE] * of_float)


def collapse_note(models: Sequence[ModelRow]) -> str:
    """Return a sentence on the models by whose embeddings the evaluation texts are nearly the same; empty if none.

    They are absolutely so, or much more than by the embeddings of the first model, the teacher.
    """
    spreads = {
        model.name: SimilaritySpread(model.metrics[MEAN], model.metrics[STD])
        for model in models
        if MEAN in model.metrics and STD in model.metrics
    }
    distance = MAX_LOSS_OF_SPREAD * (1 - next(iter(spreads.values())).mean) if spreads else 0.0
    collapsed = {name: each for name, each in spreads.items() if each.has_collapsed or 1 - each.mean < distance}
    if not collapsed:
        return ""
    listed = "; ".join(f"{name}: {spread.describe()}" for name, spread in collapsed.items())
    return (
        f"Embeddings have collapsed: the evaluation texts can hardly be told apart (cosine similarities of {listed}). "
        "Give texts on more than one subject, to train and to evaluate on."
    )


def describe_intervals(models: Sequence[ModelRow], metric: str | None) -> str:
    """Return a sentence on the intervals of the share of the metric that is kept; empty if there are none."""
    intervals = [interval for model in models if (interval := model.retained_intervals.get(metric or ""))]
    if not intervals:
        return ""
    first = intervals[0]
    sentence = f"{metric} kept: {first.level:.0%} interval, from a paired bootstrap of the {first.rows:,} {first.unit}"
    if all(interval.can_tell_one_point for interval in intervals):
        return f"{sentence}."
    return f"{sentence}: {first.rows:,} {first.unit} cannot tell 1 point."


def _describe_retained(model: ModelRow, metric: str | None) -> str:
    """Return "98.7% (97.6 to 99.8)"; without an interval "98.7%"."""
    text = format_retained(model.ratios.metric_retained, model.ratios.metric_difference)
    interval = model.retained_intervals.get(metric or "")
    return text if interval is None else f"{text} ({format_range(interval.low, interval.high)})"


def _describe_latency(models: Sequence[ModelRow], environment: Mapping[str, Any], attention: str | None) -> str:
    latencies = [model.latency_ms for model in models if model.latency_ms is not None]
    if not latencies:
        return "Latency was not measured."
    first = latencies[0]
    machine = [environment.get("accelerator") or environment.get("processor")]
    if not environment.get("accelerator"):
        machine.append(f"{first.threads} thread{'s' if first.threads > 1 else ''}")
    machine.append(f"{attention} attention" if attention else None)
    parts = [
        f"Latency: median of one forward pass at batch {first.batch_size} x {first.sequence_length} tokens",
        "models timed alternately" if len(latencies) > 1 else "",
        "on " + ", ".join(part for part in machine if part),
    ]
    speedup = "; speed-up relative to the teacher" if any(model.ratios.speedup for model in models) else ""
    return ", ".join(part for part in parts if part) + speedup + "."


def _runs_in_int8(model: ModelRow) -> bool:
    return model.latency_ms is not None and model.latency_ms.runtime.endswith("int8")


def _energy_joules(model: ModelRow) -> float | None:
    energy = model.energy_joules_per_sample
    return None if energy is None else ENERGY_PREDICTIONS * energy
