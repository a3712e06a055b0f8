"""Time of a training step with distillation, against a plain step and the forward pass of the teacher.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/distillation_cost.py [--repeats 15]

About five minutes on two cores. Timed are training steps of 64 sentences of SST-2 (forward, backward, clipping,
optimizer) of `transformers.Trainer` and of `EfficientTrainer` with several distillation losses and with cached logits,
and the forward pass of the teacher. Results in out/distillation_cost/results.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from sst2 import OUT, Results, Sst2
from transformers import Trainer, TrainingArguments

from hf_efficient import DistillationConfig, EfficientTrainer
from hf_efficient.distillation.students import student_from_layers
from hf_efficient.trainer.run import CompressionRun

ROWS = 64
configure = partial(DistillationConfig, hidden_weight=0.0, student_dropout=0.1)  # the dropout of a step of Trainer
CONFIGS = {
    "logits": configure(),
    "logits + hidden states": configure(hidden_weight=1.0),
    "logits + relations": configure(relation_weight=1.0),
    "cached logits": configure(cache_teacher=True),
}


def training_step(trainer: Trainer) -> Callable[[], None]:
    """Return a function that runs one training step of `trainer`, as its training loop does."""
    trainer.create_optimizer()
    trainer.state.max_steps = 1000
    trainer.model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.model_wrapped = trainer.model
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    (batch,) = list(trainer.get_train_dataloader())

    def step() -> None:
        batches, count = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        trainer.training_step(trainer.model, dict(batches[0]), count)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def build(sst2: Sst2, name: str, data: Any) -> Trainer:
    """Return the trainer of the configuration called `name`."""
    args = TrainingArguments(
        str(OUT / "distillation_cost"),
        per_device_train_batch_size=ROWS,
        use_cpu=not torch.accelerator.is_available(),
        report_to="none",
        seed=0,
    )
    teacher = sst2.teacher()
    student = student_from_layers(teacher, 3)
    common = {"model": student, "args": args, "train_dataset": data, "processing_class": sst2.tokenizer}
    if name not in CONFIGS:
        return Trainer(**common)
    trainer = EfficientTrainer(**common, teacher=teacher, distillation=CONFIGS[name])
    CompressionRun(trainer, train=Trainer.train).set_up_distillation()
    return trainer


def main() -> None:
    """Time all alternately, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    sst2, results = Sst2(), Results(OUT / "distillation_cost" / "results.json")
    rows = sst2.data["train"].filter(lambda row: len(row["input_ids"]) == 32).select(range(ROWS))
    calls = {name: training_step(build(sst2, name, rows)) for name in ("Trainer", *CONFIGS)}
    teacher = sst2.teacher().requires_grad_(False)
    inputs = {name: value for name, value in sst2.collate(list(rows)).items() if name != "labels"}

    def run_teacher() -> None:
        with torch.no_grad():
            teacher(**inputs)

    calls["teacher"] = run_teacher
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(args.repeats + 3):
        for name, call in calls.items():
            start_seconds = time.perf_counter()
            call()
            if number >= 3:
                times[name].append(1e3 * (time.perf_counter() - start_seconds))
    console = Console()
    for name, durations in times.items():
        plain, teacher_passes = times["Trainer"], times["teacher"]
        runs_no_teacher = name in ("Trainer", "cached logits")
        parts = plain if runs_no_teacher else [a + b for a, b in zip(plain, teacher_passes, strict=True)]
        results[name] = {
            "step_ms": statistics.median(durations),
            "ratio": None
            if name == "teacher"
            else statistics.median(a / b for a, b in zip(durations, parts, strict=True)),
            "ratio_to": "a step of Trainer" + ("" if runs_no_teacher else " and a forward pass of the teacher"),
        }
        console.print(f"{name}: {results[name]}")


if __name__ == "__main__":
    main()
