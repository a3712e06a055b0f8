"""What training costs in memory and time, setting by setting, and which setting fits a budget."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_efficient.errors import UserError
from hf_efficient.measurement.formatting import NOT_MEASURED

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1
COSTS_NAME = "training_costs.json"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
ON_OFF = {"off": False, "on": True}
PRECISIONS = ("fp32", "bf16")
ATTENTIONS = ("sdpa", "eager")
ACCUMULATIONS = (1, 2, 4, 8)
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


def parse_budget(text: str) -> int:
    """Return the bytes that a text such as "8GB" or "500 MiB" stands for.

    Raises ValueError: it is no positive number with a unit.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip(), re.IGNORECASE)
    unit = UNITS.get(found[2].upper()) if found else None
    if not found or not unit or not float(found[1]):
        raise UserError(
            f"memory_budget={text!r} is no amount of memory: give a positive number and a unit (KB, MB, GB, TB, or "
            "KiB, MiB, GiB, TiB), such as 8GB, 500MB or 8GiB"
        )
    return int(float(found[1]) * unit)


@dataclass(frozen=True)
class Setting:
    """One way to train: what saves memory, and what it is saved from."""

    checkpointing: bool = False
    accumulation: int = 1
    precision: str = "fp32"
    attention: str = "sdpa"
    distillation: bool = False

    def describe(self) -> str:
        """Return the setting in words."""
        checkpointing = "with" if self.checkpointing else "without"
        taught = "with" if self.distillation else "without"
        return (
            f"{checkpointing} checkpointing, accumulation {self.accumulation}, {self.precision}, {self.attention} "
            f"attention, {taught} distillation"
        )


def setting_grid(
    batch_size: int,
    checkpointing: Sequence[bool] = (False, True),
    accumulation: Sequence[int] = ACCUMULATIONS,
    precision: Sequence[str] = PRECISIONS,
    attention: Sequence[str] = ATTENTIONS,
    distillation: Sequence[bool] = (False, True),
) -> tuple[Setting, ...]:
    """Return all combinations, but for accumulations that do not divide the batch; those vary first.

    Raises ValueError: the batch is empty, an accumulation is below 1, or none divides the batch.
    """
    if batch_size < 1 or min(accumulation) < 1:
        raise UserError(f"train_batch_size={batch_size} and accumulation={_listed(accumulation)} must be at least 1")
    dividing = [steps for steps in accumulation if batch_size % steps == 0]
    if not dividing:
        raise UserError(
            f"accumulation={_listed(accumulation)} does not divide train_batch_size={batch_size}: give a divisor of it"
        )
    axes = (distillation, precision, attention, checkpointing, dividing)
    found = (Setting(c, k, p, a, d) for d, p, a, c, k in itertools.product(*axes))
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class TrainingCost:
    """What one setting costs; None was not measured, and `failure` says why.

    | field | meaning |
    | --- | --- |
    | peak_memory_bytes | the most that the process, or torch on the GPU, held while it trained |
    | training_memory_bytes | the most in use beyond weights and teacher: gradients, optimizer's state, activations |
    | activation_memory_bytes | what forward and backward pass of one micro-batch add when the rest is there already |
    | step_ms | median of a step of the optimizer, with all of its micro-batches |
    | samples_per_second | examples of the whole batch by that |

    On the processor the peak holds what the allocator kept of freed memory; the other two do not.
    """

    setting: Setting
    micro_batch_size: int
    peak_memory_bytes: int | None = None
    training_memory_bytes: int | None = None
    activation_memory_bytes: int | None = None
    step_ms: float | None = None
    samples_per_second: float | None = None
    failure: str | None = None


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
        """Return the settings that need no further measuring; a failed one may do better next time."""
        return {row.setting for row in self.settings if row.failure is None}

    def with_row(self, row: TrainingCost) -> TrainingCosts:
        """Return the costs with `row` in place of what was known of its setting."""
        others = [other for other in self.settings if other.setting != row.setting]
        return replace(self, settings=(*others, row))

    def select(self, settings: Iterable[Setting]) -> TrainingCosts:
        """Return the costs of these settings alone, in their order."""
        rows = {row.setting: row for row in self.settings}
        return replace(self, settings=tuple(rows[setting] for setting in settings if setting in rows))

    def fastest(self, budget: int | None = None, distillation: bool | None = None) -> TrainingCost | None:
        """Return the setting with most samples a second whose peak is within `budget` bytes; None: none is."""
        fitting = [
            row
            for row in self._measured(distillation)
            if budget is None or (row.peak_memory_bytes is not None and row.peak_memory_bytes <= budget)
        ]
        return max(fitting, key=lambda row: row.samples_per_second or 0.0, default=None)

    def smallest(self, distillation: bool | None = None) -> TrainingCost | None:
        """Return the setting with the lowest peak; None: no peak is known."""
        known = [row for row in self._measured(distillation) if row.peak_memory_bytes is not None]
        return min(known, key=lambda row: row.peak_memory_bytes or 0, default=None)

    def _measured(self, distillation: bool | None) -> list[TrainingCost]:
        wanted = (True, False) if distillation is None else (distillation,)
        return [
            row for row in self.settings if row.samples_per_second is not None and row.setting.distillation in wanted
        ]

    def recommended(self, budget: int | None = None) -> tuple[TrainingCost, ...]:
        """Return the fastest settings within `budget`: with and without a teacher, as nothing replaces either."""
        asked = dict.fromkeys(row.setting.distillation for row in self.settings)
        found = (self.fastest(budget, distillation) for distillation in asked)
        return tuple(row for row in found if row is not None)

    def recommendations(self, budget: int | None = None) -> list[str]:
        """Return in words which settings to take, a sentence for training with a teacher and one for without."""
        told = []
        for distillation in dict.fromkeys(row.setting.distillation for row in self.settings):
            best, least = self.fastest(budget, distillation), self.smallest(distillation)
            if best is not None:
                within = "" if budget is None else f" that fits {_size(budget)}"
                told.append(f"Fastest{within}: {_describe_row(best)}.")
            elif budget is not None and least is not None:
                told.append(f"None fits {_size(budget)}; the smallest there is: {_describe_row(least)}.")
            else:
                taught = "with" if distillation else "without"
                told.append(f"Nothing to recommend {taught} distillation: no setting could be measured.")
        return told

    def to_json(self) -> str:
        """Return the costs as the text of `training_costs.json`."""
        data = asdict(self)
        data["settings"] = [{**row.pop("setting"), **row} for row in data["settings"]]
        return json.dumps({"schema_version": SCHEMA_VERSION, **data}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainingCosts:
        """Return the costs that `to_json` wrote. Raises ValueError: they have another schema version."""
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
        """Write `training_costs.json` into `folder`, whole or not at all, and returns its path."""
        path = Path(folder) / COSTS_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".json.partial")
        beside.write_text(self.to_json(), encoding="utf-8")
        return beside.replace(path)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TrainingCosts:
        """Read `training_costs.json` from `folder`."""
        return cls.from_json((Path(folder) / COSTS_NAME).read_text(encoding="utf-8"))

    def merge_saved(self, folder: str | os.PathLike[str]) -> TrainingCosts:
        """Return the costs with the rows that an earlier run left in `folder`, if there was one.

        Raises ValueError: what lies there was measured otherwise, or is of another model.
        """
        if not (Path(folder) / COSTS_NAME).exists():
            return self
        there = TrainingCosts.load(folder)
        here: dict[str, Any] = json.loads(self.to_json())  # lists for tuples, as they are in the file
        theirs: dict[str, Any] = json.loads(there.to_json())
        different = [name for name in here if name != "settings" and here[name] != theirs[name]]
        if different:
            raise UserError(
                f"{Path(folder) / COSTS_NAME} is of another {', another '.join(different)}: give another "
                "--output_dir, or remove that file"
            )
        return there

    def conditions(self) -> str:
        """Return in words how and where it was measured."""
        where = self.environment
        device = where.get("accelerator") or f"{where.get('processor')}, {where.get('threads')} threads"
        held = "what torch allocated" if where.get("accelerator") else "resident memory of the process"
        return (
            f"Step: {self.batch_size} examples of {self.sequence_length} random tokens, median of {self.steps}, on "
            f"{device}. Peak: {held}. Training: the part of it that is gradients, the optimizer's state and "
            "activations. Activations: what one micro-batch adds to all else."
        )

    def table_cells(self, chosen: Collection[Setting] = ()) -> list[list[str]]:
        """Return a row of texts under `HEADER` for each setting; those in `chosen` are marked."""
        return [
            [
                "on" if row.setting.checkpointing else "off",
                f"{row.setting.accumulation} x {row.micro_batch_size}",
                row.setting.precision,
                row.setting.attention,
                "on" if row.setting.distillation else "off",
                _size(row.peak_memory_bytes),
                _size(row.training_memory_bytes),
                _size(row.activation_memory_bytes),
                NOT_MEASURED if row.step_ms is None else f"{row.step_ms:.0f} ms",
                NOT_MEASURED if row.samples_per_second is None else f"{row.samples_per_second:.2f}",
                row.failure or ("recommended" if row.setting in chosen else ""),
            ]
            for row in self.settings
        ]

    def table(self, budget: int | None = None) -> Table:
        """Return the table for the screen."""
        from rich.table import Table

        table = Table(title=f"{self.model} · {self.architecture}", caption=self.conditions())
        for name in HEADER:
            table.add_column(name, justify="right" if name in HEADER[5:10] else "left")
        for row in self.table_cells({row.setting for row in self.recommended(budget)}):
            table.add_row(*row)
        return table


def _describe_row(row: TrainingCost) -> str:
    rate = "" if row.samples_per_second is None else f", {row.samples_per_second:.2f} samples/s"
    return f"{row.setting.describe()} ({_size(row.peak_memory_bytes)}{rate})"


def _size(size: int | None) -> str:
    if size is None:
        return NOT_MEASURED
    return f"{size / 1e9:.2f} GB" if size >= 10**9 else f"{size / 1e6:.0f} MB"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
