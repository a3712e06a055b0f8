"""Accuracy against sparsity: one-shot and iterative, each with and without retraining.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/sparsity_curves.py

Some fifteen minutes on two cores. At each step the same fraction of the heads and neurons of the teacher goes.
Iterative students are retrained on 8,192 examples after each step, one-shot students on as many examples in all as the
iterative one of the same sparsity has seen. Results in out/sparsity_curves/results.json and .png.
"""

from __future__ import annotations

import argparse

import torch
from matplotlib.figure import Figure
from sst2 import OUT, Results, Sst2
from transformers import PreTrainedModel, TrainingArguments, set_seed

from hf_efficient import DistillationConfig, EfficientTrainer, PruningConfig, prune

STEPS = (0.2, 0.4, 0.6, 0.8, 0.9)
SAMPLES = 2048
ROWS = 8192


def remove(sst2: Sst2, model: PreTrainedModel, fraction: float) -> PreTrainedModel:
    """Returns a copy of `model` without the lowest scored fraction of its heads and neurons."""
    return prune(model, PruningConfig(heads=fraction, neurons=fraction, multiple_of=1), sst2.sample(SAMPLES, seed=0))


def retrain(sst2: Sst2, student: PreTrainedModel, teacher: PreTrainedModel, rows: int) -> PreTrainedModel:
    """Returns the student after `rows` training examples."""
    trainer = EfficientTrainer(
        model=student,
        args=TrainingArguments(
            str(OUT / "sparsity_curves"),
            max_steps=rows // 64,
            per_device_train_batch_size=64,
            learning_rate=1e-4,
            train_sampling_strategy="group_by_length",
            bf16=True,
            use_cpu=not torch.accelerator.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        teacher=teacher,
        distillation=DistillationConfig(cache_teacher=True),
        train_dataset=sst2.data["train"],
        processing_class=sst2.tokenizer,
    )
    trainer.train()
    return trainer.model.float().eval()


def run(sst2: Sst2, results: Results) -> None:
    """Adds the four curves to `results`, a number for each step."""
    teacher = sst2.teacher()
    whole = results["teacher"] = sst2.accuracy(teacher)
    logged: dict[str, dict[str, float]] = {}
    students = {"iterative": teacher, "iterative, retrained": teacher}
    before = 0.0
    for number, fraction in enumerate(STEPS, start=1):
        set_seed(0)
        further = 1 - (1 - fraction) / (1 - before)
        once = remove(sst2, teacher, fraction)
        found = {"one-shot": once, "one-shot, retrained": retrain(sst2, once, teacher, number * ROWS)}
        for name, student in students.items():
            smaller = remove(sst2, student, further)
            students[name] = retrain(sst2, smaller, teacher, ROWS) if name.endswith("retrained") else smaller
        before = fraction
        # The trainer trains the model that it is given: what was not retrained is cut once more.
        found["one-shot"] = remove(sst2, teacher, fraction)
        for name, student in {**found, **students}.items():
            logged.setdefault(name, {"0": whole})[f"{fraction:g}"] = sst2.accuracy(student)
        results["curves"] = logged


def draw(results: Results) -> None:
    """Draws the four curves as results.png."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    styles = {"one-shot": "C1o--", "iterative": "C0s--", "one-shot, retrained": "C1o-", "iterative, retrained": "C0s-"}
    for name, style in styles.items():
        curve = results["curves"][name]
        axis.plot([100 * float(x) for x in curve], [100 * y for y in curve.values()], style, label=name)
    axis.set_xlabel("heads and neurons removed, %")
    axis.set_ylabel("accuracy, %")
    axis.set_title("SST-2, scored by Fisher information, corrected by least squares")
    axis.legend(frameon=False)
    figure.savefig(OUT / "sparsity_curves" / "results.png", dpi=140)


def main() -> None:
    """Runs unless there is a result, then draws."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    results = Results(OUT / "sparsity_curves" / "results.json")
    if len(results.found.get("curves", {}).get("one-shot", {})) <= len(STEPS):
        run(Sst2(), results)
    draw(results)


if __name__ == "__main__":
    main()
