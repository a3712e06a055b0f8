"""Accuracy of students that learn from different outputs of a teacher, with the same number of steps.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/distillation.py [--steps 1053] [--seeds 0 1 2]

About two hours on two cores. The students start from every second layer of `minilm-sst2`; one more is initialized at
random, with four layers of width 128. The last checkpoint is reported; the 872 validation rows select nothing.
Results in out/distillation/results.json, .md and .png.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

from matplotlib.figure import Figure
from sst2 import OUT, Results, Sst2
from transformers import set_seed
from transformers.utils import logging

from hf_efficient import DistillationConfig
from hf_efficient.distillation.students import student_from_config, student_from_layers

# Everything that is not the method is the same for all of them, "no teacher" included.
configure = partial(DistillationConfig, hidden_weight=0.0, student_dropout=0.1)
METHODS: dict[str, DistillationConfig | None] = {
    "no teacher": None,
    "logits": configure(),
    "cached logits": configure(cache_teacher=True),
    "logits + hidden states": configure(hidden_weight=10.0),
    "logits + relations": configure(relation_weight=1.0),
}
NARROW = "hidden_size=128,num_hidden_layers=4,num_attention_heads=4,intermediate_size=512"
NARROW_METHODS: dict[str, DistillationConfig | None] = {
    "no teacher, width 128": None,
    "logits + relations, width 128": configure(relation_weight=1.0),
}


def run(sst2: Sst2, method: str, seed: int, steps: int) -> dict[str, float | None]:
    """Return the results of one student, from its report."""
    set_seed(seed)
    teacher = sst2.teacher()
    narrow = method in NARROW_METHODS
    config = {**METHODS, **NARROW_METHODS}[method]
    student = student_from_config(teacher, NARROW) if narrow else student_from_layers(teacher, 3)
    folder = OUT / "distillation" / f"{method.replace(' ', '-')}-{seed}"
    trainer = sst2.train(
        student,
        folder,
        {
            "max_steps": steps,
            "learning_rate": 5e-4 if narrow else 3e-4,
            "warmup_steps": 50,
            "seed": seed,
            "logging_steps": 100,
        },
        teacher=None if config is None else teacher,
        distillation=config,
    )
    row = trainer.report.row("student" if config else "model")
    return {
        "accuracy": row.metrics["accuracy"],
        "parameters": row.parameters,
        "training_seconds": trainer.state.log_history[-1]["train_runtime"],
    }


def table(results: Results, seeds: list[int]) -> str:
    """Return a table in Markdown: mean and range of each method."""
    lines = ["| student learns from | accuracy, mean | lowest to highest | training, s |", "| --- | --- | --- | --- |"]
    for method in (*METHODS, *NARROW_METHODS):
        rows = [results[f"{method} seed {seed}"] for seed in seeds]
        accuracies = [100 * row["accuracy"] for row in rows]
        seconds = statistics.median(row["training_seconds"] for row in rows)
        lines.append(
            f"| {method} | {statistics.mean(accuracies):.2f}% | {min(accuracies):.2f} to {max(accuracies):.2f}% "
            f"| {seconds:.0f} |"
        )
    return "\n".join(lines) + f"\n\nThe teacher: {100 * results['teacher']:.2f}%.\n"


def draw(results: Results, seeds: list[int]) -> None:
    """Draw all runs and the means as results.png."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    names = list(reversed([*METHODS, *NARROW_METHODS]))
    for height, method in enumerate(names):
        accuracies = [100 * results[f"{method} seed {seed}"]["accuracy"] for seed in seeds]
        axis.plot(accuracies, [height] * len(accuracies), "C0.", alpha=0.5)
        axis.plot(statistics.mean(accuracies), height, "C0D")
    axis.axvline(100 * results["teacher"], color="grey", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("accuracy on SST-2, %; dashed: the teacher")
    figure.savefig(OUT / "distillation" / "results.png", dpi=140)


def main() -> None:
    """Train what has no result yet, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1053)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    results, sst2 = Results(OUT / "distillation" / "results.json"), Sst2()
    if "teacher" not in results:
        results["teacher"] = sst2.accuracy(sst2.teacher())
    for seed in args.seeds:
        for method in (*METHODS, *NARROW_METHODS):
            key = f"{method} seed {seed}"
            if key not in results:
                results[key] = run(sst2, method, seed, args.steps)
                logging.get_logger("hf_efficient").warning(f"{key}: {results[key]}")
    (OUT / "distillation" / "results.md").write_text(table(results, args.seeds), encoding="utf-8")
    draw(results, args.seeds)


if __name__ == "__main__":
    main()
