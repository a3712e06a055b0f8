"""Pruned students after three epochs of distillation, against students of evenly spaced layers of the teacher.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/distilled.py [--ratios 2 4 8] [--seeds 0 1 2] [--methods ...]

Hours on two cores. The last checkpoint is reported; the 872 validation rows select nothing. If no number of layers has
exactly the ratio, the student of evenly spaced layers is the next larger one.
Results in out/distilled/results.json and .png.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics

from matplotlib.figure import Figure
from sst2 import OUT, Results, Sst2
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from hf_efficient import DistillationConfig, PruningConfig, prune
from hf_efficient.models import family_of
from hf_efficient.pruning.selection import Selection, remove_units

METHODS = ("pruned", "pruned while training", "even layers")
LEARNING_RATES = {2: 1e-4, 4: 2e-4, 8: 5e-4}
# Fraction of the training in which units are removed one by one.
RAMP, RAMP_LEARNING_RATE = 0.3, 3e-4
SAMPLES = 2048
# As published; without dropout, which is the default now, they were not measured again.
DISTILLATION = DistillationConfig(temperature=2.0, hard_label_weight=0.1, hidden_weight=10.0, student_dropout=0.1)


def even_layers(teacher: PreTrainedModel, ratio: float) -> PreTrainedModel:
    """Return the student of Sanh et al. 2019 (DistilBERT): layers of the teacher at even distances."""
    layers = list(family_of(teacher).layers(teacher))
    count = math.ceil(len(layers) / ratio)
    kept = tuple(layers[index * len(layers) // count] for index in range(count))
    units = {name: tuple(range(block.units)) for name, block in family_of(teacher).blocks(teacher).items()}
    return remove_units(teacher, Selection(kept, units))


def run(sst2: Sst2, method: str, ratio: float, seed: int, epochs: float) -> dict[str, float | None]:
    """Return the results of one student, from its report."""
    set_seed(seed)
    teacher = sst2.teacher()
    ramps = method == "pruned while training"
    if ramps:
        student = copy.deepcopy(teacher)
    elif method == "pruned":
        student = prune(teacher, PruningConfig(target_flops=ratio), sst2.sample(SAMPLES, seed))
    else:
        student = even_layers(teacher, ratio)
    untrained = None if ramps else sst2.accuracy(student)
    folder = OUT / "distilled" / f"{method.replace(' ', '-')}-{ratio:g}x-{seed}"
    trainer = sst2.train(
        student,
        folder,
        {
            "num_train_epochs": epochs,
            "learning_rate": RAMP_LEARNING_RATE if ramps else LEARNING_RATES.get(int(ratio), 1e-4),
            "warmup_steps": 100,
            "seed": seed,
            "logging_steps": 500,
        },
        teacher=teacher,
        distillation=DISTILLATION,
        pruning=PruningConfig(target_flops=ratio, ramp=RAMP) if ramps else None,
    )
    row = trainer.report.row("student")
    return {
        "accuracy": row.metrics["accuracy"],
        "kept": row.metrics["accuracy"] / trainer.report.row("teacher").metrics["accuracy"],
        "untrained_accuracy": untrained,
        "flops_ratio": row.ratios.flops,
    }


def draw(results: Results, ratios: list[float], seeds: list[int]) -> None:
    """Draw the means over the seeds, and all runs, as results.png."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    for colour, method in zip(("C0", "C2", "C1"), METHODS, strict=True):
        keys = [[f"{method} {ratio:g}x seed {seed}" for seed in seeds] for ratio in ratios]
        points = [[results[key] for key in group] for group in keys if all(key in results for key in group)]
        flops = [statistics.mean(point["flops_ratio"] for point in group) for group in points]
        means = [100 * statistics.mean(point["kept"] for point in group) for group in points]
        if means:
            axis.plot(flops, means, f"{colour}o-", label=method)
        for x, group in zip(flops, points, strict=True):
            axis.plot([x] * len(group), [100 * point["kept"] for point in group], f"{colour}.", alpha=0.4)
    axis.set_xlabel("operations of the teacher / of the student")
    axis.set_ylabel("accuracy kept, % of the teacher's")
    axis.set_title(f"SST-2, distilled for three epochs, mean of {len(seeds)} seeds")
    axis.legend(frameon=False)
    figure.savefig(OUT / "distilled" / "results.png", dpi=140)


def main() -> None:
    """Train what has no result yet, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", nargs="+", type=float, default=[2, 4, 8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--epochs", type=float, default=3)
    args = parser.parse_args()
    results, sst2 = Results(OUT / "distilled" / "results.json"), Sst2()
    for seed in args.seeds:
        for ratio in args.ratios:
            for method in args.methods:
                key = f"{method} {ratio:g}x seed {seed}"
                if key not in results:
                    results[key] = run(sst2, method, ratio, seed, args.epochs)
                    logging.get_logger("hf_efficient").warning(f"{key}: {results[key]}")
    draw(results, args.ratios, args.seeds)


if __name__ == "__main__":
    main()
