"""The record of a compression, from which the table, the picture and the model card are rendered."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_efficient.errors import UserError
from hf_efficient.measurement.energy import Energy
from hf_efficient.measurement.report_plot import plot_report
from hf_efficient.measurement.report_rows import GenerationLatency, Latency, ModelRow, Ratios
from hf_efficient.measurement.report_table import build_cells, describe_conditions, has_sparse_models

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1
REPORT_NAME = "compression_report.json"
PICTURE_NAME = "compression_report.png"


@dataclass(frozen=True)
class TrainingResources:
    """What the training of a run took: wall-clock seconds, joules, and grams of CO2; None is not measured."""

    seconds: float
    energy_joules: float | None = None
    co2_grams: float | None = None


def training_resources(seconds: float, energy: Energy | None) -> TrainingResources:
    """Return the resources of a training that took `seconds` and, where it was measured, `energy`."""
    if energy is None:
        return TrainingResources(seconds)
    return TrainingResources(seconds, energy.joules, energy.co2_grams)


@dataclass(frozen=True)
class CompressionReport:
    """The teacher and its students, measured.

    | field | meaning |
    | --- | --- |
    | task, dataset | the task and the evaluation data |
    | metric | the entry of `ModelRow.metrics` that models are compared by |
    | stages | what was done, one text a step |
    | models | a row a model, the teacher first |
    | environment | the machine and the versions of packages |
    | configs | the settings, by technique |
    | training | what the training took; None if nothing was trained |
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
        """Return the row of the model in the role `role`. Raises KeyError if there is none."""
        for model in self.models:
            if model.role == role:
                return model
        raise KeyError(f"the report has no {role!r}, only {', '.join(model.role for model in self.models)}")

    @property
    def final(self) -> ModelRow:
        """The row of the model in the output folder, compiled if that was measured; exported models do not count."""
        return next((row for row in reversed(self.models) if row.parameters is not None), self.models[-1])

    @property
    def has_sparse_models(self) -> bool:
        """Whether a model has zeros in place of removed connections, so that compressed sizes were measured."""
        return has_sparse_models(self.models)

    def to_json(self) -> str:
        """Return the report as the text of `compression_report.json`."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CompressionReport:
        """Return the report that `to_json` wrote. Raises UserError if it has another schema version."""
        data = json.loads(text)
        version = data.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise UserError(f"the report has schema version {version}, this package reads version {SCHEMA_VERSION}")
        models = []
        for row in data.pop("models"):
            row |= {"ratios": Ratios(**row["ratios"])}
            for name, record in (("latency_ms", Latency), ("generation_ms", GenerationLatency)):
                if row.get(name):
                    row[name] = record(**row[name])
            models.append(ModelRow(**row))
        training = data.pop("training", None)
        return cls(**data, models=tuple(models), training=TrainingResources(**training) if training else None)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `compression_report.json` into `folder` in one atomic step, and return its path."""
        path = Path(folder) / REPORT_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".json.partial")
        temporary.write_text(self.to_json(), encoding="utf-8")
        return temporary.replace(path)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CompressionReport:
        """Read `compression_report.json` from `folder`."""
        return cls.from_json((Path(folder) / REPORT_NAME).read_text(encoding="utf-8"))

    def conditions(self) -> str:
        """Return sentences on how and where latency was measured, and notes that the numbers need."""
        attention = (self.configs.get("training") or {}).get("attn_implementation")
        return describe_conditions(self.models, self.environment, attention)

    def table_cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the header with a column for each model, and a row of texts for each measurement."""
        return build_cells(self.models, self.metric)

    def table(self) -> Table:
        """Return the table for the screen."""
        from rich.markup import escape
        from rich.table import Table

        header, body = self.table_cells()
        table = Table(title=escape(self._title()) or None, caption=escape(self.conditions()))
        for index, name in enumerate(header):
            table.add_column(escape(name), justify="right" if index else "left", overflow="fold")
        for row in body:
            table.add_row(*map(escape, row))
        return table

    def markdown(self) -> str:
        """Return the table for the model card."""
        header, body = self.table_cells()
        rows = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def plot(self, folder: str | os.PathLike[str]) -> Path:
        """Draw the models' quality, latency, size and structure as `compression_report.png` in `folder`.

        Returns the path of the picture.
        """
        path = Path(folder) / PICTURE_NAME
        temporary = path.with_suffix(".partial.png")
        plot_report(self.models, self.metric, self._title(), self.conditions()).savefig(temporary)
        return temporary.replace(path)

    def _title(self) -> str:
        return " · ".join(name for name in (self.dataset, self.task) if name)
