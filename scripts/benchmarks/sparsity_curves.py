"""Accuracy against sparsity: one-shot and iterative pruning, each with and without training.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/sparsity_curves.py

About fifteen minutes on two cores. Each step removes a fraction of the heads and neurons of the teacher. Iterative
students are trained on 8,192 examples after each step, one-shot students on as many examples in total as the iterative
student of the same sparsity. Results in out/sparsity_curves/results.json and .png.
"""

from __future__ import annotations

import argparse

import torch
from matplotlib.figure import Figure
from sst2 import OUT, Results, Sst2
from transformers import PreTrainedModel, TrainingArguments, set_seed

from hf_efficient import DistillationConfig, EfficientTrainer, PruningConfig, prune
from hf_efficient.measurement.environment import has_fast_bfloat16

STEPS = (0.2, 0.4, 0.6, 0.8, 0.9)
SAMPLES = 2048
ROWS = 8192


def remove(sst2: Sst2, model: PreTrainedModel, fraction: float) -> PreTrainedModel:
    """Return a copy of `model` without the heads and neurons that have the lowest scores."""
    return prune(model, PruningConfig(heads=fraction, neurons=fraction, multiple_of=1), sst2.sample(SAMPLES, seed=0))


def retrain(sst2: Sst2, student: PreTrainedModel, teacher: PreTrainedModel, rows: int) -> PreTrainedModel:
    """Return the student after training on `rows` examples."""
    trainer = EfficientTrainer(
        model=student,
        args=TrainingArguments(
            str(OUT / "sparsity_curves"),
            max_steps=rows // 64,
            per_device_train_batch_size=64,
            learning_rate=1e-4,
            train_sampling_strategy="group_by_length",
            bf16=has_fast_bfloat16() is True,
            use_cpu=not torch.accelerator.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        teacher=teacher,
        distillation=DistillationConfig(cache_teacher=True, student_dropout=0.1),
        train_dataset=sst2.data["train"],
        processing_class=sst2.tokenizer,
    )
    trainer.train()
    return trainer.model.float().eval()


def run(sst2: Sst2, results: Results) -> None:
    """Add the four curves to `results`, with the accuracy at each step."""
    teacher = sst2.teacher()
    teacher_accuracy = results["teacher"] = sst2.accuracy(teacher)
    curves: dict[str, dict[str, float]] = {}
    students = {"iterative": teacher, "iterative, retrained": teacher}
    before = 0.0
    for number, fraction in enumerate(STEPS, start=1):
        set_seed(0)
        step_fraction = 1 - (1 - fraction) / (1 - before)
        one_shot = remove(sst2, teacher, fraction)
        one_shot_students = {"one-shot, retrained": retrain(sst2, one_shot, teacher, number * ROWS)}
        for name, student in students.items():
            smaller = remove(sst2, student, step_fraction)
            students[name] = retrain(sst2, smaller, teacher, ROWS) if name.endswith("retrained") else smaller
        before = fraction
        # The trainer changes the model that it is given, so the untrained student is pruned again.
        one_shot_students["one-shot"] = remove(sst2, teacher, fraction)
        for name, student in {**one_shot_students, **students}.items():
            curves.setdefault(name, {"0": teacher_accuracy})[f"{fraction:g}"] = sst2.accuracy(student)
        results["curves"] = curves


def draw(results: Results) -> None:
    """Draw the four curves as results.png."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    styles = {"one-shot": "C1o--", "iterative": "C0s--", "one-shot, retrained": "C1o-", "iterative, retrained": "C0s-"}
    for name, style in styles.items():
        curve = results["curves"][name]
        axis.plot([100 * float(x) for x in curve], [100 * y for y in curve.values()], style, label=name)
    axis.set_xlabel("heads and neurons removed, %")
    axis.set_ylabel("accuracy, %")
    axis.set_title("SST-2, Fisher information, reconstruction by least squares")
    axis.legend(frameon=False)
    figure.savefig(OUT / "sparsity_curves" / "results.png", dpi=140)


def main() -> None:
    """Measure unless there are results, then draw."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    results = Results(OUT / "sparsity_curves" / "results.json")
    if len(results.values.get("curves", {}).get("one-shot", {})) <= len(STEPS):
        run(Sst2(), results)
    draw(results)


if __name__ == "__main__":
    main()
