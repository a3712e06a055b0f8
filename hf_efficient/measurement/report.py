"""The record of a compression, from which the table, the picture and the model card are rendered."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_efficient.errors import UserError
from hf_efficient.files.replacing import replacing
from hf_efficient.measurement.energy import Energy
from hf_efficient.measurement.formatting import format_number, printable
from hf_efficient.measurement.recommendation import (
    Target,
    describe_use,
    is_slower,
    list_targets,
    recommend,
    relative_speed,
    student_forms,
)
from hf_efficient.measurement.records import read_value
from hf_efficient.measurement.report_plot import plot_report
from hf_efficient.measurement.report_rows import ModelRow
from hf_efficient.measurement.report_table import build_cells, describe_conditions, has_sparse_models
from hf_efficient.measurement.training_curve import TrainingPoint

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1
REPORT_NAME = "compression_report.json"
PICTURE_NAME = "compression_report.png"
# Keys of the JSON that are computed from the others.
DERIVED_KEYS = ("recommended", "targets")
STUDENT_FOLDER = "_student"


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
    | training_curve | agreement with the teacher on held-out training rows, against the steps; empty: not measured |
    """

    task: str | None = None
    dataset: str | None = None
    metric: str | None = None
    stages: Sequence[str] = ()
    models: Sequence[ModelRow] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    configs: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingResources | None = None
    training_curve: Sequence[TrainingPoint] = ()

    def row(self, role: str) -> ModelRow:
        """Return the row of the model in the role `role`. Raises KeyError if there is none."""
        for model in self.models:
            if model.role == role:
                return model
        raise KeyError(f"the report has no {role!r}, only {', '.join(model.role for model in self.models)}")

    @property
    def final(self) -> ModelRow:
        """The row of the model in the output folder, as it is loaded."""
        rows = {row.role: row for row in self.models}
        shipped = (rows[role] for role in ("quantized", "student", "model", "teacher") if role in rows)
        return next(shipped, self.models[-1])

    @property
    def headline_row(self) -> ModelRow:
        """The row whose numbers stand first: the recommended form, or the final model where none is recommended."""
        return recommend(self.models, self.metric) or self.final

    @property
    def recommended(self) -> str | None:
        """The role of the form to use on the machine of the measurements, see `recommend`; None: no form of a student.

        Its numbers are those that a card states first.
        """
        row = recommend(self.models, self.metric)
        return None if row is None else row.role

    @property
    def targets(self) -> tuple[Target, ...]:
        """What pruning was asked for beside what was reached."""
        pruning = self.configs.get("pruning") or {}
        return list_targets(self.models, pruning, recommend(self.models, self.metric))

    @property
    def ships_slower_form(self) -> bool:
        """Whether the model in the output folder is slower than the float student that it was made from."""
        return bool(self.models) and is_slower(self.final, student_forms(self.models)[0])

    @property
    def has_sparse_models(self) -> bool:
        """Whether a model has zeros in place of removed connections, so that compressed sizes were measured."""
        return has_sparse_models(self.models)

    def to_json(self) -> str:
        """Return the report as the text of `compression_report.json`."""
        derived = {"recommended": self.recommended, "targets": [asdict(target) for target in self.targets]}
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self), **derived}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CompressionReport:
        """Return the report that `to_json` wrote. Raises UserError if it is damaged, or has another schema version."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the report is not valid JSON: {error}") from error
        if not isinstance(data, dict):
            raise UserError("the report is not a JSON object: it is not a file that this package wrote")
        version = data.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise UserError(f"the report has schema version {version}, this package reads version {SCHEMA_VERSION}")
        for name in DERIVED_KEYS:
            data.pop(name, None)
        report: CompressionReport = read_value(cls, data, "the report")
        return report

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `compression_report.json` into `folder` in one atomic step, and return its path."""
        path = Path(folder) / REPORT_NAME
        with replacing(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CompressionReport:
        """Read `compression_report.json` from `folder`. Raises UserError if it cannot be read."""
        path = Path(folder) / REPORT_NAME
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (UserError, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}. Measure the model again with `hf-efficient`") from error

    def with_names(self, change: Callable[[str], str]) -> CompressionReport:
        """Return the report with the names that a user gave changed: of dataset, metrics, models and stages."""
        rows = [
            replace(row, name=change(row.name), metrics={change(key): value for key, value in row.metrics.items()})
            for row in self.models
        ]
        return replace(
            self,
            dataset=None if self.dataset is None else change(self.dataset),
            metric=None if self.metric is None else change(self.metric),
            models=rows,
            stages=[change(stage) for stage in self.stages],
        )

    def conditions(self) -> str:
        """Return sentences on how and where latency was measured, and notes that the numbers need."""
        attention = (self.configs.get("training") or {}).get("attn_implementation")
        quantization = self.configs.get("quantization") or {}
        uses_torchao = quantization.get("torchao", True)  # older versions used nothing else
        return describe_conditions(self.models, self.environment, attention, uses_torchao, self.metric)

    def summary(self) -> str:
        """Return what to know first: what was asked and reached, which form to use here, whether the model is slow.

        Empty if there is nothing to say.
        """
        return " ".join(filter(None, [self.target_note(), self.recommendation(), self.slower_form_note()]))

    def missed_targets(self) -> str:
        """Return "2x speed-up asked, 1.89x reached." for the targets that were missed."""
        return " ".join(f"{target.describe()}." for target in self.targets if target.is_missed)

    def recommendation(self) -> str:
        """Return a sentence on which form of the student to use on this machine; empty if there is only one."""
        row = recommend(self.models, self.metric)
        if row is None or len(forms := student_forms(self.models)) == 1:
            return ""
        reference, parts = forms[0], []
        speedup = row.ratios.speedup if reference.generation_ms is None else row.ratios.generation
        if speedup is not None and reference.role != "teacher":
            parts.append(f"{format_number(speedup)} times as fast as the teacher")
        if row is reference:
            parts.append("no other form is faster at the same quality")
        else:
            speed = relative_speed(row, reference)
            parts.append(f"{format_number(speed)} times as fast as the {_float_name(reference)}")
        name = f"the {_float_name(row)}" if row is reference else row.name
        return f"On this machine use {name}: {', '.join(parts)}."

    def slower_form_note(self) -> str:
        """Return a sentence on the model in the output folder if it is slower than the float student."""
        if not self.ships_slower_form:
            return ""
        final, reference = self.final, student_forms(self.models)[0]
        times = format_number(1 / (relative_speed(final, reference) or 1.0))
        folder = f", which is in the folder {STUDENT_FOLDER}" if reference.role == "student" else ""
        return (
            f"The model in the output folder, {final.name}, is {describe_use(final, reference, None)}: it takes "
            f"{times} times as long as the {_float_name(reference)}{folder}."
        )

    def target_note(self) -> str:
        """Return "2x speed-up asked, 2.05x reached." for all targets."""
        return " ".join(f"{target.describe()}." for target in self.targets)

    def table_cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the header with a column for each model, and a row of texts for each measurement."""
        return build_cells(self.models, self.metric, recommend(self.models, self.metric))

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
        path, shown = Path(folder) / PICTURE_NAME, self.with_names(printable)
        caption = " ".join(filter(None, [shown.target_note(), shown.recommendation(), shown.conditions()]))
        figure = plot_report(shown.models, shown.metric, shown._title(), caption, self.training_curve)
        with replacing(path) as temporary:
            figure.savefig(temporary)
        return path

    def _title(self) -> str:
        return " · ".join(name for name in (self.dataset, self.task) if name)


def _float_name(row: ModelRow) -> str:
    return "float student" if row.role == "student" else row.name
