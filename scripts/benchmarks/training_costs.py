"""Memory and time of training with checkpointing and accumulation; overhead of `EfficientTrainer` and its import.

    python scripts/benchmarks/training_costs.py [--parts checkpointing accumulation trainer imports] [--quick]

About forty minutes on two cores. Memory and time of a model with the shape of BERT-base, random weights and a
vocabulary of 1,000 tokens, at batch 16 x 256, with and without checkpointing, and by number of micro-batches; steps of
`EfficientTrainer` without a technique against those of `transformers.Trainer`; the import of `EfficientTrainer`
against that of `Trainer`. Results in out/training_costs/results.json, with --quick of a tiny model in quick.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from sst2 import OUT, Results
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.utils import logging

from hf_efficient import CompressionReport, EfficientTrainer
from hf_efficient.commands.training_cost_worker import TrainingRunSpec
from hf_efficient.commands.training_costs import run_in_worker
from hf_efficient.measurement.environment import describe_environment
from hf_efficient.measurement.training_costs import TrainingCost
from hf_efficient.measurement.training_settings import Setting
from hf_efficient.tasks.random_batch import random_batch

VOCABULARY = 1000
IMPORTS = {
    "torch, transformers, Trainer": "import torch, transformers; from transformers import Trainer",
    "hf_efficient": "from hf_efficient import EfficientTrainer",
}
TIMING_SCRIPT = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


@dataclass(frozen=True)
class Shape:
    """A random BERT, and the batch that it is trained on."""

    layers: int
    width: int
    batch_size: int
    sequence_length: int

    def model(self) -> PreTrainedModel:
        """Return the model, with the same weights at every call."""
        set_seed(0)
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.width,
            num_attention_heads=max(1, self.width // 64),
            num_hidden_layers=self.layers,
            intermediate_size=4 * self.width,
            max_position_embeddings=512,
        )
        return BertForSequenceClassification(config)


@dataclass(frozen=True)
class Plan:
    """The shapes, and how many runs of each are measured."""

    large: Shape = Shape(12, 768, 16, 256)
    trained: Mapping[str, Shape] | None = None
    accumulations: Sequence[int] = (2, 4, 8)
    steps: int = 3
    repeats: int = 3
    turns: int = 12
    steps_per_turn: int = 30
    imports: int = 11

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The models that both trainers train, by name."""
        return self.trained or {"2 layers of 128": Shape(2, 128, 16, 32), "6 layers of 384": Shape(6, 384, 16, 64)}


QUICK = Plan(Shape(4, 128, 8, 64), {"2 layers of 64": Shape(2, 64, 4, 16)}, (2,), 2, 1, 2, 6, 3)


# ---- memory --------------------------------------------------------------------------------------------------------


def measure_cost(shape: Shape, setting: Setting, steps: int, batch_size: int | None = None) -> TrainingCost:
    """Return the cost of a setting, measured in a process of its own. Raises RuntimeError if that fails."""
    with tempfile.TemporaryDirectory() as folder:
        shape.model().save_pretrained(folder)
        size = batch_size or shape.batch_size
        row = run_in_worker(
            TrainingRunSpec(setting, folder, "text-classification", size, shape.sequence_length, 1, steps)
        )
    if row.failure is not None:
        raise RuntimeError(f"{setting.describe()}: {row.failure}")
    return row


def compare_checkpointing(plan: Plan) -> dict[str, Any]:
    """Return the costs with and without checkpointing, measured alternately, and the ratios of their medians."""
    rows_by_setting: dict[bool, list[TrainingCost]] = {False: [], True: []}
    for _ in range(plan.repeats):
        for checkpointing, rows in rows_by_setting.items():
            rows.append(measure_cost(plan.large, Setting(checkpointing=checkpointing), plan.steps))

    def median(checkpointing: bool, name: str) -> float:
        return statistics.median(getattr(row, name) for row in rows_by_setting[checkpointing])

    def ratio(name: str) -> float:
        return median(True, name) / median(False, name)

    return {
        **_shape(plan.large),
        "off": [asdict(row) for row in rows_by_setting[False]],
        "on": [asdict(row) for row in rows_by_setting[True]],
        "less_activation_memory": 1 - ratio("activation_memory_bytes"),
        "less_training_memory": 1 - ratio("training_memory_bytes"),
        "less_peak_memory": 1 - ratio("peak_memory_bytes"),
        "times_step": ratio("step_ms"),
    }


def compare_accumulation(plan: Plan, steps: int) -> dict[str, Any]:
    """Return the costs of a step of so many micro-batches, and of a step of one micro-batch alone."""
    size = plan.large.batch_size // steps
    accumulated = measure_cost(plan.large, Setting(accumulation=steps), 1)
    single = measure_cost(plan.large, Setting(), 1, size)
    memory, single_memory = accumulated.activation_memory_bytes, single.activation_memory_bytes
    return {
        **_shape(plan.large),
        "accumulated": asdict(accumulated),
        "micro_batch_alone": asdict(single),
        "times_activation_memory": None if memory is None or not single_memory else memory / single_memory,
    }


def _shape(shape: Shape) -> dict[str, Any]:
    return {"shape": asdict(shape), "vocabulary": VOCABULARY}


# ---- time ----------------------------------------------------------------------------------------------------------


class TrainerWithoutReport(EfficientTrainer):
    """The trainer without the measurements after training."""

    def build_report(self, models: Mapping[str, Any], exported: Mapping[str, Any]) -> CompressionReport:
        """Return an empty report."""
        return CompressionReport()


class StepTimer(TrainerCallback):
    """Measures the durations of all steps but the first."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the time."""
        if args.device.type != "cpu":
            torch.accelerator.synchronize()
        self.ends.append(time.perf_counter())

    @property
    def durations(self) -> list[float]:
        """Milliseconds between the ends of consecutive steps."""
        return [1e3 * (end - start) for start, end in zip(self.ends, self.ends[1:], strict=False)]


def time_steps(
    trainer_class: type[Trainer], model: PreTrainedModel, rows: list[Any], batch_size: int, steps: int
) -> list[float]:
    """Return the durations of the steps of a training run, in milliseconds."""
    timer = StepTimer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=copy.deepcopy(model),
            args=TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=batch_size,
                use_cpu=not torch.accelerator.is_available(),
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=rows,
            data_collator=default_data_collator,
            callbacks=[timer],
        )
        trainer.train()
    return timer.durations


def compare_trainers(shape: Shape, plan: Plan) -> dict[str, Any]:
    """Return the median durations of a step of both trainers, run alternately, and their ratio."""
    model = shape.model()
    batch = random_batch(model, shape.batch_size, shape.sequence_length)
    rows = [{name: values[index] for name, values in batch.items()} for index in range(shape.batch_size)]
    classes: dict[str, type[Trainer]] = {"Trainer": Trainer, "EfficientTrainer": TrainerWithoutReport}
    times: dict[str, list[float]] = {name: [] for name in classes}
    ratios: list[float] = []
    for number in range(-1, plan.turns):
        durations_by_name = {
            name: time_steps(classes[name], model, rows, shape.batch_size, plan.steps_per_turn)
            for name in (list(classes) if number % 2 else list(reversed(classes)))
        }
        if number >= 0:  # the first turn is a warm-up
            for name, durations in durations_by_name.items():
                times[name] += durations
            turn_medians = {name: statistics.median(durations) for name, durations in durations_by_name.items()}
            ratios.append(turn_medians["EfficientTrainer"] / turn_medians["Trainer"])
    medians = {name: statistics.median(durations) for name, durations in times.items()}
    return {
        **_shape(shape),
        "steps": len(times["Trainer"]),
        "step_ms": medians,
        "fastest_step_ms": {name: min(durations) for name, durations in times.items()},
        "times_step": medians["EfficientTrainer"] / medians["Trainer"],
        "times_step_by_turn": ratios,
    }


def compare_imports(count: int) -> dict[str, Any]:
    """Return the median seconds of both imports in fresh processes, alternately; the first of each is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for number in range(count + 1):
        for name, statement in IMPORTS.items():
            command = [sys.executable, "-c", TIMING_SCRIPT.format(statement)]
            process = subprocess.run(command, capture_output=True, text=True, check=True)
            if number:
                times[name].append(float(process.stdout.split()[-1]))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    trainer_seconds, our_seconds = medians.values()
    return {"seconds": medians, "all_seconds": times, "times_import": our_seconds / trainer_seconds}


def main() -> None:
    """Measure what has no result yet, and print it."""
    parts = ("checkpointing", "accumulation", "trainer", "imports")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--repeats", type=int, help="runs with and without checkpointing")
    args = parser.parse_args()
    logging.disable_progress_bar()
    plan = QUICK if args.quick else Plan()
    plan = replace(plan, repeats=args.repeats or plan.repeats)
    path: Path = OUT / "training_costs" / ("quick.json" if args.quick else "results.json")
    results, console = Results(path), Console()
    measurements: list[tuple[str, Any]] = [("environment", describe_environment)]
    if "checkpointing" in args.parts:
        measurements.append(("checkpointing", lambda: compare_checkpointing(plan)))
    if "accumulation" in args.parts:
        measurements += [(f"accumulation {k}", lambda k=k: compare_accumulation(plan, k)) for k in plan.accumulations]
    if "trainer" in args.parts:
        measurements += [
            (f"trainer, {name}", lambda s=shape: compare_trainers(s, plan)) for name, shape in plan.shapes.items()
        ]
    if "imports" in args.parts:
        measurements.append(("imports", lambda: compare_imports(plan.imports)))
    for key, measure in measurements:
        if key not in results:
            results[key] = measure()
        summary = {
            name: value for name, value in results[key].items() if name.startswith(("less_", "times_", "step_ms"))
        }
        if summary:
            console.print(f"{key}: {json.dumps(summary)}")


if __name__ == "__main__":
    main()
