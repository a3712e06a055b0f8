"""Memory and time that training takes in each setting, and which setting fits a memory budget."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_efficient.errors import UserError
from hf_efficient.files.replacing import replacing
from hf_efficient.measurement.formatting import format_bytes, format_duration_ms, format_number
from hf_efficient.measurement.training_settings import Setting

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1
COSTS_NAME = "training_costs.json"
HEADER = (
    "checkpointing",
    "accumulation",
    "precision",
    "attention",
    "distillation",
    "peak",
    "training",
    "activations",
    "step",
    "samples/s",
    "",
)
NUM_SETTING_COLUMNS = 5


@dataclass(frozen=True)
class TrainingCost:
    """The costs of one setting; None is not measured, and `failure` is then the reason.

    | field | meaning |
    | --- | --- |
    | micro_batch_size | examples of one forward pass |
    | peak_memory_bytes | peak of the process, or of torch's allocator on a GPU, during training |
    | training_memory_bytes | peak beyond weights and teacher: gradients, optimizer state and activations |
    | activation_memory_bytes | what forward and backward pass of one micro-batch add to everything else |
    | step_ms | median time of a step of the optimizer, with all of its micro-batches |
    | samples_per_second | examples of the complete batch divided by that time |
    | failure | why the setting could not be measured |

    On a CPU the peak includes freed memory that the allocator kept; the other two do not.
    """

    setting: Setting
    micro_batch_size: int
    peak_memory_bytes: int | None = None
    training_memory_bytes: int | None = None
    activation_memory_bytes: int | None = None
    step_ms: float | None = None
    samples_per_second: float | None = None
    failure: str | None = None

    def describe(self) -> str:
        """Return the setting, its peak memory and its speed in words."""
        rate = self.samples_per_second
        speed = "" if rate is None else f", {format_number(rate)} samples/s"
        return f"{self.setting.describe()} ({format_bytes(self.peak_memory_bytes)}{speed})"


@dataclass(frozen=True)
class TrainingCosts:
    """The costs of all settings of one model; `batch_size` is that of a step of the optimizer."""

    model: str
    architecture: str
    parameters: int
    batch_size: int
    sequence_length: int
    warmup_steps: int
    steps: int
    environment: Mapping[str, Any] = field(default_factory=dict)
    settings: Sequence[TrainingCost] = ()

    def measured(self) -> set[Setting]:
        """Return the settings that have been measured; those that failed are tried again."""
        return {row.setting for row in self.settings if row.failure is None}

    def with_row(self, row: TrainingCost) -> TrainingCosts:
        """Return the costs with `row` in place of an earlier row of the same setting."""
        others = [other for other in self.settings if other.setting != row.setting]
        return replace(self, settings=(*others, row))

    def select(self, settings: Iterable[Setting]) -> TrainingCosts:
        """Return the costs of these settings only, in their order."""
        rows = {row.setting: row for row in self.settings}
        return replace(self, settings=tuple(rows[setting] for setting in settings if setting in rows))

    def fastest(self, budget: int | None = None, distillation: bool | None = None) -> TrainingCost | None:
        """Return the setting with most samples per second among those whose peak is within `budget` bytes.

        `distillation` restricts it to settings with or without a teacher. None if no setting fits.
        """
        fitting = [
            row
            for row in self._successful(distillation)
            if budget is None or (row.peak_memory_bytes is not None and row.peak_memory_bytes <= budget)
        ]
        return max(fitting, key=lambda row: row.samples_per_second or 0.0, default=None)

    def smallest(self, distillation: bool | None = None) -> TrainingCost | None:
        """Return the setting with the lowest peak; None if no peak was measured."""
        rows = [row for row in self._successful(distillation) if row.peak_memory_bytes is not None]
        return min(rows, key=lambda row: row.peak_memory_bytes or 0, default=None)

    def _successful(self, distillation: bool | None) -> list[TrainingCost]:
        return [
            row
            for row in self.settings
            if row.samples_per_second is not None and distillation in (None, row.setting.distillation)
        ]

    def recommended(self, budget: int | None = None) -> tuple[TrainingCost, ...]:
        """Return the fastest settings within `budget`: one with and one without a teacher, if both were measured."""
        kinds = dict.fromkeys(row.setting.distillation for row in self.settings)
        rows = (self.fastest(budget, distillation) for distillation in kinds)
        return tuple(row for row in rows if row is not None)

    def recommendations(self, budget: int | None = None) -> list[str]:
        """Return which settings to use, a sentence for training with a teacher and one for training without."""
        sentences = []
        for distillation in dict.fromkeys(row.setting.distillation for row in self.settings):
            fastest, smallest = self.fastest(budget, distillation), self.smallest(distillation)
            if fastest is not None:
                condition = "" if budget is None else f" that fits {format_bytes(budget)}"
                sentences.append(f"Fastest{condition}: {fastest.describe()}.")
            elif budget is not None and smallest is not None:
                sentences.append(f"Nothing fits {format_bytes(budget)}; the smallest is: {smallest.describe()}.")
            else:
                kind = "with" if distillation else "without"
                sentences.append(f"No recommendation {kind} distillation: no setting could be measured.")
        return sentences

    def to_json(self) -> str:
        """Return the costs as the text of `training_costs.json`."""
        data = asdict(self)
        data["settings"] = [{**row.pop("setting"), **row} for row in data["settings"]]
        return json.dumps({"schema_version": SCHEMA_VERSION, **data}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainingCosts:
        """Return the costs that `to_json` wrote. Raises UserError if they have another schema version."""
        data = json.loads(text)
        version = data.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise UserError(f"the costs have schema version {version}, this package reads version {SCHEMA_VERSION}")
        names = Setting.__dataclass_fields__
        rows = []
        for row in data.pop("settings"):
            setting = Setting(**{name: row.pop(name) for name in names})
            rows.append(TrainingCost(setting, **row))
        return cls(**data, settings=tuple(rows))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `training_costs.json` into `folder` in one atomic step, and return its path."""
        path = Path(folder) / COSTS_NAME
        with replacing(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TrainingCosts:
        """Read `training_costs.json` from `folder`."""
        return cls.from_json((Path(folder) / COSTS_NAME).read_text(encoding="utf-8"))

    def merge_saved(self, folder: str | os.PathLike[str]) -> TrainingCosts:
        """Return the costs with the rows that an earlier run saved in `folder`, if there was one.

        Raises UserError if the saved costs are those of another model, or were measured differently.
        """
        if not (Path(folder) / COSTS_NAME).exists():
            return self
        saved = TrainingCosts.load(folder)
        ours: dict[str, Any] = json.loads(self.to_json())  # tuples become lists, as in the file
        theirs: dict[str, Any] = json.loads(saved.to_json())
        different = [name for name in ours if name != "settings" and ours[name] != theirs[name]]
        if different:
            raise UserError(
                f"{Path(folder) / COSTS_NAME} was measured with a different {', '.join(different)}: give another "
                "--output_dir, or remove that file"
            )
        return saved

    def conditions(self) -> str:
        """Return how and where the costs were measured, and what the columns mean."""
        return (
            f"{self.step_conditions()} Training: the part of it for gradients, optimizer state and activations. "
            "Activations: what one micro-batch adds to everything else."
        )

    def step_conditions(self) -> str:
        """Return how and where speed and peak memory were measured."""
        environment = self.environment
        accelerator = environment.get("accelerator")
        machine = accelerator or f"{environment.get('processor')}, {environment.get('threads')} threads"
        peak = "memory allocated by torch" if accelerator else "resident memory of the process"
        return (
            f"Step: {self.batch_size} examples of {self.sequence_length} random tokens, median of {self.steps}, on "
            f"{machine}. Peak: {peak}."
        )

    def table_cells(self, recommended: Collection[Setting] = ()) -> list[list[str]]:
        """Return a row of texts under `HEADER` for each setting; those in `recommended` are marked."""
        return [
            [
                "on" if row.setting.checkpointing else "off",
                f"{row.setting.accumulation} x {row.micro_batch_size}",
                row.setting.precision,
                row.setting.attention,
                "on" if row.setting.distillation else "off",
                format_bytes(row.peak_memory_bytes),
                format_bytes(row.training_memory_bytes),
                format_bytes(row.activation_memory_bytes),
                format_duration_ms(row.step_ms),
                format_number(row.samples_per_second),
                row.failure or ("fastest" if row.setting in recommended else ""),
            ]
            for row in self.settings
        ]

    def table(self, budget: int | None = None) -> Table:
        """Return the table for the screen, 120 columns wide; its caption gives the reasons of failures."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        failures = [f"{row.setting.describe()}: {row.failure}" for row in self.settings if row.failure is not None]
        caption = "\n".join([self.conditions(), *failures])
        title = escape(f"{self.model} · {self.architecture}")
        table = Table(title=title, caption=escape(caption), box=box.SIMPLE_HEAD, padding=0)
        for index, name in enumerate(HEADER):
            is_number = NUM_SETTING_COLUMNS <= index < len(HEADER) - 1
            table.add_column(name, justify="right" if is_number else "left")
        recommended = {row.setting for row in self.recommended(budget)}
        for row, cells in zip(self.settings, self.table_cells(recommended), strict=True):
            if row.failure is not None:
                cells[NUM_SETTING_COLUMNS:] = ["-"] * (len(HEADER) - NUM_SETTING_COLUMNS - 1) + ["failed"]
            table.add_row(*map(escape, cells))
        return table
