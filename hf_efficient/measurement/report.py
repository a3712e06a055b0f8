"""The record of a compression: the table, the picture and the card are all rendered from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_efficient.errors import UserError
from hf_efficient.measurement.energy import Energy
from hf_efficient.measurement.latency import GenerationLatency, Latency

if TYPE_CHECKING:
    from rich.table import Table
from hf_efficient.measurement.formatting import NOT_MEASURED, format_number
from hf_efficient.measurement.report_plot import plot_bars, plot_structures

SCHEMA_VERSION = 1
REPORT_NAME = "compression_report.json"
PICTURE_NAME = "compression_report.png"
SPARSITY_NOTE = (
    "Density is the fraction of the weights that is not zero. Connections were removed by setting them to zero: that "
    "makes the file smaller when it is compressed (zlib, level 6), and the model neither faster nor smaller in memory."
)
GENERATION_NOTE = "Writing: greedy, with a cache, the first token apart; its speed-up is that of all tokens together."
INT8_NOTE = (
    "Run as loaded, eight bits of torchao save disk and memory; what makes them fast is torch.compile, or an export "
    "to ONNX Runtime or OpenVINO."
)


@dataclass(frozen=True)
class Ratios:
    """A model against the teacher: each is better the larger it is, and 1 for the teacher itself.

    `speedup`, `size` and `flops` are teacher / model, `metric_retained` is model / teacher; `generation` is teacher /
    model of the time to write as many tokens as were written.
    """

    speedup: float | None = None
    size: float | None = None
    flops: float | None = None
    metric_retained: float | None = None
    generation: float | None = None


@dataclass(frozen=True)
class ModelRow:
    """What was measured of one model; None is not measured."""

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

    @property
    def density(self) -> float | None:
        """The fraction of the parameters that is not zero."""
        return _ratio(self.nonzero_parameters, self.parameters)


@dataclass(frozen=True)
class TrainingResources:
    """What all the training of a run took: seconds on the clock, joules and grams of CO2 where they were counted."""

    seconds: float
    energy_joules: float | None = None
    co2_grams: float | None = None


def training_resources(seconds: float, energy: Energy | None) -> TrainingResources:
    """Return what training took, from a clock and from what was counted."""
    return (
        TrainingResources(seconds) if energy is None else TrainingResources(seconds, energy.joules, energy.co2_grams)
    )


@dataclass(frozen=True)
class CompressionReport:
    """Teacher and students side by side.

    `metric` names the entry of `metrics` that counts, `stages` say in words what was done, `configs` hold the
    settings it was done with; `training` is what that took, None where nothing was trained.
    """

    task: str | None = None
    dataset: str | None = None
    metric: str | None = None
    stages: Sequence[str] = ()
    models: Sequence[ModelRow] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    configs: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingResources | None = None

    def row(self, role: str) -> ModelRow:
        """Return the row with the role `role`. Raises KeyError: there is none."""
        for model in self.models:
            if model.role == role:
                return model
        raise KeyError(f"the report has no {role!r}, only {', '.join(model.role for model in self.models)}")

    @property
    def final(self) -> ModelRow:
        """The row of the model that the folder holds for torch, in the way that it is fastest; exports come after."""
        return next((row for row in reversed(self.models) if row.parameters is not None), self.models[-1])

    def to_json(self) -> str:
        """Return the report as the text of `compression_report.json`."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CompressionReport:
        """Return the report that `to_json` wrote. Raises ValueError: it has another schema version."""
        data = json.loads(text)
        version = data.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise UserError(f"the report has schema version {version}, this package reads version {SCHEMA_VERSION}")
        models = []
        for row in data.pop("models"):
            row |= {"ratios": Ratios(**row["ratios"])}
            for name, form in (("latency_ms", Latency), ("generation_ms", GenerationLatency)):
                if row.get(name):
                    row[name] = form(**row[name])
            models.append(ModelRow(**row))
        training = data.pop("training", None)
        return cls(**data, models=tuple(models), training=TrainingResources(**training) if training else None)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `compression_report.json` into `folder`, whole or not at all, and returns its path."""
        path = Path(folder) / REPORT_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".json.partial")
        beside.write_text(self.to_json(), encoding="utf-8")
        return beside.replace(path)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CompressionReport:
        """Read `compression_report.json` from `folder`."""
        return cls.from_json((Path(folder) / REPORT_NAME).read_text(encoding="utf-8"))

    @property
    def sparse(self) -> bool:
        """Whether a model has zeros in place of removed connections: their compressed size was then measured."""
        return any(model.compressed_bytes_on_disk is not None for model in self.models)

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the header, with a model in each column, and a row for each thing that was measured, as text."""
        metrics = list(dict.fromkeys(name for model in self.models for name in model.metrics))
        sparse: list[tuple[str, Callable[[ModelRow], str]]] = [
            ("density", lambda m: format_number(m.density, "{:.1%}")),
            (
                "compressed on disk",
                lambda m: format_number(m.compressed_bytes_on_disk and m.compressed_bytes_on_disk / 1e6, "{:.1f} MB"),
            ),
        ]
        written: list[tuple[str, Callable[[ModelRow], str]]] = [
            (
                "first token",
                lambda m: format_number(m.generation_ms.first_token if m.generation_ms else None, "{:.1f} ms"),
            ),
            (
                "next token",
                lambda m: format_number(m.generation_ms.next_token if m.generation_ms else None, "{:.2f} ms"),
            ),
            ("generation speed-up", lambda m: format_number(m.ratios.generation, "{:.2f}x")),
        ]
        measures: list[tuple[str, Callable[[ModelRow], str]]] = [
            *((name, lambda m, name=name: format_number(m.metrics.get(name), "{:.4f}")) for name in metrics),
            (f"{self.metric or 'metric'} kept", lambda m: format_number(m.ratios.metric_retained, "{:.1%}")),
            ("latency", lambda m: format_number(m.latency_ms.p50 if m.latency_ms else None, "{:.1f} ms")),
            ("90th percentile", lambda m: format_number(m.latency_ms.p90 if m.latency_ms else None, "{:.1f} ms")),
            ("speed-up", lambda m: format_number(m.ratios.speedup, "{:.2f}x")),
            ("runtime", lambda m: m.latency_ms.runtime if m.latency_ms else NOT_MEASURED),
            *(written if any(model.generation_ms for model in self.models) else ()),
            ("samples/s", lambda m: format_number(m.samples_per_second, "{:.0f}")),
            ("size on disk", lambda m: format_number(m.bytes_on_disk and m.bytes_on_disk / 1e6, "{:.1f} MB")),
            ("times smaller", lambda m: format_number(m.ratios.size, "{:.2f}x")),
            ("parameters", lambda m: format_number(m.parameters and m.parameters / 1e6, "{:.2f} M")),
            *(sparse if self.sparse else ()),
            ("operations", lambda m: format_number(m.flops and m.flops / 1e9, "{:.2f} GFLOP")),
            ("peak memory", lambda m: format_number(m.peak_memory_bytes and m.peak_memory_bytes / 1e6, "{:.0f} MB")),
            (
                "energy of 1,000 predictions",
                lambda m: format_number(m.energy_joules_per_sample and 1e3 * m.energy_joules_per_sample, "{:.1f} J"),
            ),
        ]
        body = [[name, *(cell(model) for model in self.models)] for name, cell in measures]
        return ["", *(model.name for model in self.models)], body

    def circumstances(self) -> str:
        """Return in words how and where latency was measured, and of zeros, what they are good for."""
        eight_bits = any(model.role == "quantized" and _in_int8(model) for model in self.models)
        writes = any(model.generation_ms for model in self.models)
        told = [
            self._latency_circumstances(),
            GENERATION_NOTE if writes else "",
            SPARSITY_NOTE if self.sparse else "",
            INT8_NOTE if eight_bits else "",
        ]
        return " ".join(sentence for sentence in told if sentence)

    def _latency_circumstances(self) -> str:
        latencies = [model.latency_ms for model in self.models if model.latency_ms]
        if not latencies:
            return "Latency was not measured."
        first, where = latencies[0], self.environment
        attention = (self.configs.get("training") or {}).get("attn_implementation")
        device = where.get("accelerator") or f"{where.get('processor')}, {first.threads} threads"
        return (
            f"Latency: median of one forward pass at batch {first.batch_size} x {first.sequence_length} tokens, "
            f"models in turn, on {device}{f', {attention} attention' if attention else ''}; speed-up is against the "
            "teacher's row."
        )

    def table(self) -> Table:
        """Return the table for the screen."""
        from rich.table import Table

        header, body = self.cells()
        title = " · ".join(name for name in (self.dataset, self.task) if name)
        table = Table(title=title or None, caption=self.circumstances())
        for index, name in enumerate(header):
            table.add_column(name, justify="right" if index else "left")
        for row in body:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table for the card."""
        header, body = self.cells()
        rows = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def plot(self, folder: str | os.PathLike[str]) -> Path:
        """Draw teacher beside students, and what was kept of each layer, as `compression_report.png` in `folder`."""
        from matplotlib.figure import Figure

        shapes = [model for model in self.models if model.structure]
        figure: Any = Figure(figsize=(11, 6.8 if len(shapes) > 1 else 3.6), layout="constrained")
        top, *below = figure.subfigures(2, 1, height_ratios=(1.15, 1)) if len(shapes) > 1 else (figure,)
        plot_bars(top, self)
        if below:
            plot_structures(below[0], shapes)
        path = Path(folder) / PICTURE_NAME
        beside = path.with_suffix(".partial.png")
        figure.savefig(beside, dpi=140)
        return beside.replace(path)


def _in_int8(model: ModelRow) -> bool:
    return model.latency_ms is not None and model.latency_ms.runtime.endswith("int8")


def with_ratios(models: Sequence[ModelRow], metric: str | None) -> tuple[ModelRow, ...]:
    """Return `models` with their ratios against the one in the role "teacher", by the metric called `metric`."""
    teacher = next((model for model in models if model.role == "teacher"), None)
    if teacher is None:
        return tuple(models)

    def latency(model: ModelRow) -> float | None:
        return model.latency_ms.p50 if model.latency_ms else None

    def writing(model: ModelRow) -> float | None:
        return model.generation_ms.seconds_for(model.generation_ms.new_tokens) if model.generation_ms else None

    result = []
    for model in models:
        ratios = Ratios(
            speedup=_ratio(latency(teacher), latency(model)),
            generation=_ratio(writing(teacher), writing(model)),
            size=_ratio(teacher.bytes_on_disk, model.bytes_on_disk),
            flops=_ratio(teacher.flops, model.flops),
            metric_retained=_ratio(model.metrics.get(metric or ""), teacher.metrics.get(metric or "")),
        )
        values = {each.name: getattr(model, each.name) for each in fields(model)}
        result.append(ModelRow(**{**values, "ratios": ratios}))
    return tuple(result)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below
