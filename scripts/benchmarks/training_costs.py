"""What saves memory in training, what it costs in time, and what `EfficientTrainer` and the import cost on top.

    python scripts/benchmarks/training_costs.py [--parts checkpointing accumulation trainer imports] [--quick]

Some forty minutes on two cores. Memory and time of a 12-layer model of BERT-base's shape with random weights and 1,000
tokens in its vocabulary, at batch 16 x 256, with and without checkpointing, and by micro-batches; steps of
`EfficientTrainer` without any technique against those of `transformers.Trainer`; the import of `hf_efficient` against
that of what it stands on. Results in out/training_costs/results.json; --quick: a tiny model, and quick.json.
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
    "hf_efficient": "import hf_efficient",
}
TIMED = "import time; begun = time.perf_counter(); {}; print(time.perf_counter() - begun)"


@dataclass(frozen=True)
class Shape:
    """A random BERT, and the batch that it is trained on."""

    layers: int
    width: int
    batch_size: int
    sequence_length: int

    def model(self) -> PreTrainedModel:
        """Returns the model, the same whenever it is asked for."""
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
    """How much is measured."""

    large: Shape = Shape(12, 768, 16, 256)
    trained: Mapping[str, Shape] | None = None
    accumulations: Sequence[int] = (2, 4, 8)
    steps: int = 3
    repeats: int = 3
    turns: int = 12
    steps_a_turn: int = 30
    imports: int = 11

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The models that both trainers train, by name."""
        return self.trained or {"2 layers of 128": Shape(2, 128, 16, 32), "6 layers of 384": Shape(6, 384, 16, 64)}


QUICK = Plan(Shape(4, 128, 8, 64), {"2 layers of 64": Shape(2, 64, 4, 16)}, (2,), 2, 1, 2, 6, 3)


# ---- memory --------------------------------------------------------------------------------------------------------


def cost(shape: Shape, setting: Setting, steps: int, batch_size: int | None = None) -> TrainingCost:
    """Returns what a setting costs, in processes of its own. Raises RuntimeError: it could not be measured."""
    with tempfile.TemporaryDirectory() as folder:
        shape.model().save_pretrained(folder)
        size = batch_size or shape.batch_size
        found = run_in_worker(
            TrainingRunSpec(setting, folder, "text-classification", size, shape.sequence_length, 1, steps)
        )
    if found.failure is not None:
        raise RuntimeError(f"{setting.describe()}: {found.failure}")
    return found


def checkpointing(plan: Plan) -> dict[str, Any]:
    """Returns both settings, taken in turn, and the ratios of their medians."""
    taken: dict[bool, list[TrainingCost]] = {False: [], True: []}
    for _ in range(plan.repeats):
        for saves, found in taken.items():
            found.append(cost(plan.large, Setting(checkpointing=saves), plan.steps))

    def median(saves: bool, name: str) -> float:
        return statistics.median(getattr(found, name) for found in taken[saves])

    def ratio(name: str) -> float:
        return median(True, name) / median(False, name)

    return {
        **_shape(plan.large),
        "off": [asdict(found) for found in taken[False]],
        "on": [asdict(found) for found in taken[True]],
        "less_activation_memory": 1 - ratio("activation_memory_bytes"),
        "less_training_memory": 1 - ratio("training_memory_bytes"),
        "less_peak_memory": 1 - ratio("peak_memory_bytes"),
        "times_step": ratio("step_ms"),
    }


def accumulation(plan: Plan, steps: int) -> dict[str, Any]:
    """Returns a step of so many micro-batches beside one of a single micro-batch."""
    size = plan.large.batch_size // steps
    whole = cost(plan.large, Setting(accumulation=steps), 1)
    alone = cost(plan.large, Setting(), 1, size)
    ours, theirs = whole.activation_memory_bytes, alone.activation_memory_bytes
    return {
        **_shape(plan.large),
        "accumulated": asdict(whole),
        "micro_batch_alone": asdict(alone),
        "times_activation_memory": None if ours is None or not theirs else ours / theirs,
    }


def _shape(shape: Shape) -> dict[str, Any]:
    return {"shape": asdict(shape), "vocabulary": VOCABULARY}


# ---- time ----------------------------------------------------------------------------------------------------------


class Unmeasured(EfficientTrainer):
    """The trainer, which measures nothing once it has trained."""

    def build_report(self, models: Mapping[str, Any], exported: Mapping[str, Any]) -> CompressionReport:
        return CompressionReport()


class Clock(TrainerCallback):
    """How long each step took but the first, from its beginning to that of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimizer has made a step."""
        if args.device.type != "cpu":
            torch.accelerator.synchronize()
        self.ends.append(time.perf_counter())

    @property
    def durations(self) -> list[float]:
        """Milliseconds between the ends of steps."""
        return [1e3 * (end - begin) for begin, end in zip(self.ends, self.ends[1:], strict=False)]


def turn(trainer_class: type[Trainer], model: PreTrainedModel, rows: list[Any], batch: int, steps: int) -> list[float]:
    """Returns the milliseconds of steps of a whole run of a trainer."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=copy.deepcopy(model),
            args=TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=batch,
                use_cpu=not torch.accelerator.is_available(),
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=rows,
            data_collator=default_data_collator,
            callbacks=[clock],
        )
        trainer.train()
    return clock.durations


def trainers(shape: Shape, plan: Plan) -> dict[str, Any]:
    """Returns medians of a step of both trainers, in turns whose order alternates, and the ratio of the medians."""
    model = shape.model()
    batch = random_batch(model, shape.batch_size, shape.sequence_length)
    rows = [{name: values[index] for name, values in batch.items()} for index in range(shape.batch_size)]
    classes: dict[str, type[Trainer]] = {"Trainer": Trainer, "EfficientTrainer": Unmeasured}
    times: dict[str, list[float]] = {name: [] for name in classes}
    ratios: list[float] = []
    for number in range(-1, plan.turns):
        found = {
            name: turn(classes[name], model, rows, shape.batch_size, plan.steps_a_turn)
            for name in (list(classes) if number % 2 else list(reversed(classes)))
        }
        if number >= 0:  # the first turn warms up
            for name, durations in found.items():
                times[name] += durations
            ratios.append(statistics.median(found["EfficientTrainer"]) / statistics.median(found["Trainer"]))
    medians = {name: statistics.median(durations) for name, durations in times.items()}
    return {
        **_shape(shape),
        "steps": len(times["Trainer"]),
        "step_ms": medians,
        "fastest_step_ms": {name: min(durations) for name, durations in times.items()},
        "times_step": medians["EfficientTrainer"] / medians["Trainer"],
        "times_step_by_turn": ratios,
    }


def imports(count: int) -> dict[str, Any]:
    """Returns medians of the seconds of both imports, each in a fresh process, in turn; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for number in range(count + 1):
        for name, statement in IMPORTS.items():
            command = [sys.executable, "-c", TIMED.format(statement)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            if number:
                times[name].append(float(done.stdout.split()[-1]))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    stock, ours = medians.values()
    return {"seconds": medians, "all_seconds": times, "times_import": ours / stock}


def main() -> None:
    """Measures what has no result yet, and prints it."""
    parts = ("checkpointing", "accumulation", "trainer", "imports")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that it works")
    parser.add_argument("--repeats", type=int, help="how often checkpointing on and off take turns")
    args = parser.parse_args()
    logging.disable_progress_bar()
    plan = QUICK if args.quick else Plan()
    plan = replace(plan, repeats=args.repeats or plan.repeats)
    path: Path = OUT / "training_costs" / ("quick.json" if args.quick else "results.json")
    results, console = Results(path), Console()
    wanted: list[tuple[str, Any]] = [("environment", describe_environment)]
    if "checkpointing" in args.parts:
        wanted.append(("checkpointing", lambda: checkpointing(plan)))
    if "accumulation" in args.parts:
        wanted += [(f"accumulation {k}", lambda k=k: accumulation(plan, k)) for k in plan.accumulations]
    if "trainer" in args.parts:
        wanted += [(f"trainer, {name}", lambda s=shape: trainers(s, plan)) for name, shape in plan.shapes.items()]
    if "imports" in args.parts:
        wanted.append(("imports", lambda: imports(plan.imports)))
    for key, measure in wanted:
        if key not in results:
            results[key] = measure()
        told = {name: value for name, value in results[key].items() if name.startswith(("less_", "times_", "step_ms"))}
        if told:
            console.print(f"{key}: {json.dumps(told)}")


if __name__ == "__main__":
    main()
