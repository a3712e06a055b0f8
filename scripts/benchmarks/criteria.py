"""Accuracy without training when the heads and neurons with the lowest scores are removed, by criterion.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/criteria.py [--seeds 0 1 2]

About ten minutes on two cores. Nothing is reconstructed, so that only the selection matters.
Results in out/criteria/results.json and .png.
"""

from __future__ import annotations

import argparse
import statistics

from matplotlib.figure import Figure
from sst2 import OUT, Results, Sst2
from transformers import set_seed

from hf_efficient import CRITERIA, PruningConfig
from hf_efficient.pruning.losses import example_loss
from hf_efficient.pruning.scoring import select_fractions
from hf_efficient.pruning.selection import remove_units

FRACTIONS = (0.25, 0.5, 0.75)
SAMPLES = 2048


def run(sst2: Sst2, criterion: str, seed: int) -> dict[str, float]:
    """Return the accuracy at each fraction of heads and neurons removed."""
    set_seed(seed)
    teacher = sst2.teacher()
    scores = CRITERIA[criterion](teacher, sst2.sample(SAMPLES, seed), example_loss)
    accuracies = {}
    for fraction in FRACTIONS:
        config = PruningConfig(heads=fraction, neurons=fraction, criterion=criterion)
        student = remove_units(teacher, select_fractions(teacher, config, scores))
        accuracies[f"{fraction:g}"] = sst2.accuracy(student)
    return accuracies


def draw(results: Results, seeds: list[int]) -> None:
    """Draw the means over the seeds, with the lowest and highest values, as results.png."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    for index, fraction in enumerate(FRACTIONS):
        values = [[100 * results[f"{name} seed {seed}"][f"{fraction:g}"] for seed in seeds] for name in CRITERIA]
        means = [statistics.mean(group) for group in values]
        spread = [
            [m - min(g) for m, g in zip(means, values, strict=True)],
            [max(g) - m for m, g in zip(means, values, strict=True)],
        ]
        places = [place + (index - 1) * 0.27 for place in range(len(CRITERIA))]
        axis.bar(places, means, 0.25, yerr=spread, capsize=2, label=f"{fraction:.0%} removed")
    axis.axhline(100 * results["teacher"], color="grey", linestyle="--", linewidth=1)
    axis.set_xticks(range(len(CRITERIA)), CRITERIA)
    axis.set_ylim(45, 95)
    axis.set_ylabel("accuracy, %")
    axis.set_title(f"SST-2 without training, mean of {len(seeds)} seeds; dashed: the teacher")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(FRACTIONS), frameon=False)
    figure.savefig(OUT / "criteria" / "results.png", dpi=140)


def main() -> None:
    """Measure what has no result yet, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    results, sst2 = Results(OUT / "criteria" / "results.json"), Sst2()
    if "teacher" not in results:
        results["teacher"] = sst2.accuracy(sst2.teacher())
    for seed in args.seeds:
        for criterion in CRITERIA:
            if f"{criterion} seed {seed}" not in results:
                results[f"{criterion} seed {seed}"] = run(sst2, criterion, seed)
    draw(results, args.seeds)


if __name__ == "__main__":
    main()
