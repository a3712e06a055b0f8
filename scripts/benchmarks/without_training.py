"""Pruning without training: accuracy with and without reconstruction by least squares, and its duration.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/without_training.py [--ratios 1.4 2 4 8] [--seeds 0 1 2]

About ten minutes on two cores. Results in out/without_training/results.json and .png.
"""

from __future__ import annotations

import argparse
import statistics
import time

from matplotlib.figure import Figure
from sst2 import OUT, Results, Sst2
from transformers import set_seed

from hf_efficient import PruningConfig, prune

SAMPLES = 2048


def run(sst2: Sst2, ratio: float, seed: int, recovery: bool) -> dict[str, float]:
    """Return the accuracy of a student, and the seconds of scoring, selection, reconstruction and removal."""
    set_seed(seed)
    teacher, batches = sst2.teacher(), sst2.sample(SAMPLES, seed)
    start_seconds = time.perf_counter()
    student = prune(teacher, PruningConfig(target_flops=ratio, recovery=recovery), batches)
    seconds = time.perf_counter() - start_seconds
    return {"accuracy": sst2.accuracy(student), "seconds": seconds}


def draw(results: Results, ratios: list[float], seeds: list[int]) -> None:
    """Draw the means over the seeds with and without reconstruction, and all runs, as results.png."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    for colour, label in (("C0", "corrected"), ("C1", "cut")):
        groups = [[100 * results[f"{label} {ratio:g}x seed {s}"]["accuracy"] for s in seeds] for ratio in ratios]
        axis.plot(ratios, [statistics.mean(group) for group in groups], f"{colour}o-", label=label)
        for ratio, group in zip(ratios, groups, strict=True):
            axis.plot([ratio] * len(group), group, f"{colour}.", alpha=0.4)
    axis.axhline(100 * results["teacher"], color="grey", linestyle="--", linewidth=1)
    axis.set_xlabel("operations of the teacher / of the student")
    axis.set_ylabel("accuracy, %")
    axis.set_title(f"SST-2 without training, mean of {len(seeds)} seeds; dashed: the teacher")
    axis.legend(frameon=False)
    figure.savefig(OUT / "without_training" / "results.png", dpi=140)


def main() -> None:
    """Measure what has no result yet, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", nargs="+", type=float, default=[1.4, 2, 4, 8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    results, sst2 = Results(OUT / "without_training" / "results.json"), Sst2()
    if "teacher" not in results:
        results["teacher"] = sst2.accuracy(sst2.teacher())
    for seed in args.seeds:
        for ratio in args.ratios:
            for label in ("corrected", "cut"):
                key = f"{label} {ratio:g}x seed {seed}"
                if key not in results:
                    results[key] = run(sst2, ratio, seed, recovery=label == "corrected")
    draw(results, args.ratios, args.seeds)


if __name__ == "__main__":
    main()
