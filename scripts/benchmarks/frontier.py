"""Accuracy against latency and size: one model compressed more and more, in each form that it can run in.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/frontier.py [--ratios 1 2 4 8] [--seeds 0] [--max_steps 1000]

SST-2 with the teacher of `recipe.py` and its 8,006 held-out rows, of which nobody was trained on a phrase. Each point
is one `hf-efficient compress` to so many times fewer operations, 1: int8 alone, exported to ONNX Runtime and OpenVINO;
its figures are those of compression_report.json. About ten minutes a point on two cores; an interrupted benchmark is
continued. Results in results/frontier_KIND.json, .md and .png, by kind of CPU.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from int8_forms import cpu_kind
from matplotlib.figure import Figure
from recipe_data import Benchmark, load_data
from sst2 import OUT, RESULTS, Results, figures_by_role, format_figure, format_share, run_compress

from hf_efficient import CompressionReport
from hf_efficient.measurement.environment import describe_environment, has_fast_bfloat16

FOLDER = OUT / "frontier"
FORMS = (
    *("--scheme", "int8_static", "--export", "onnx", "openvino"),
    *("--latency_batch_size", "8", "--latency_sequence_length", "64"),
)
TRAINING = (
    *("--per_device_train_batch_size", "64", "--bf16", str(has_fast_bfloat16() is True)),
    *("--save_strategy", "no", "--report_to", "none"),
)
LABELS = {
    "student": "float, torch",
    "quantized": "int8, torch",
    "onnx": "int8, ONNX Runtime",
    "openvino": "int8, OpenVINO",
}
COLOURS = ("#7a8291", "#0072b2", "#d55e00", "#009e73")


def prepare() -> Path:
    """Return the folder with the teacher, its tokenizer, and the files of the rows, after writing them."""
    teacher = FOLDER / "teacher"
    if not (teacher / "tokenizer.json").exists():
        benchmark = Benchmark("sst2")
        for name, rows in load_data("sst2").items():
            rows.to_parquet(str(FOLDER / f"{name}.parquet"))
        benchmark.teacher.save_pretrained(teacher)
        benchmark.tokenizer.save_pretrained(teacher)
    return teacher


def run(teacher: Path, ratio: float, seed: int, max_steps: int) -> dict[str, Any]:
    """Return the figures of one model in each form, from its report."""
    output = FOLDER / f"{ratio:g}x-{max_steps}-{seed}"
    flags = ["--train_file", str(FOLDER / "train.parquet"), "--validation_file", str(FOLDER / "evaluation.parquet")]
    if ratio > 1:
        flags += ["--target_flops", str(ratio), "--max_steps", str(max_steps), "--seed", str(seed), *TRAINING]
    is_finished = (output / "compression_report.json").exists()
    report = CompressionReport.load(output) if is_finished else run_compress(teacher, output, *flags, *FORMS)
    seconds = None if report.training is None else report.training.seconds
    return {
        "ratio": ratio,
        "seed": seed,
        "seconds": seconds,
        "stages": report.stages,
        "models": figures_by_role(report),
    }


def summarize(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the means over the seeds by ratio and form; the teacher itself is the float form at ratio 1."""
    rows = []
    for ratio in sorted({point["ratio"] for point in points}):
        group = [point for point in points if point["ratio"] == ratio]
        for role in LABELS:
            shown = "teacher" if role == "student" and ratio == 1 else role
            figures = [point["models"][shown] for point in group if shown in point["models"]]
            if not figures:
                continue
            means = {
                name: statistics.mean(values) if None not in (values := [row[name] for row in figures]) else None
                for name in ("accuracy", "kept", "agreement", "latency_ms", "speedup", "size")
            }
            if shown == "teacher":
                means |= {"kept": 1.0, "speedup": 1.0, "size": 1.0}
            intervals = [row["interval"] for row in figures]
            rows.append({"ratio": ratio, "role": role, "seeds": len(figures), **means, "intervals": intervals})
    return rows


def render(rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any], max_steps: int) -> str:
    """Return the table."""
    lines = [
        "# Frontier",
        "",
        f"SST-2, 8,006 held-out rows, at most {max_steps:,} steps of distillation. {environment['processor']}, "
        f"{environment['threads']} threads; {', '.join(environment['instructions'])}. Latency at 8 x 64 tokens, speed "
        "and size against the teacher in float32 in torch. The interval is that of one seed. Written by "
        "`scripts/benchmarks/frontier.py`.",
        "",
        "| fewer operations | form | seeds | accuracy | kept (95% interval) | as the teacher | ms | speed | smaller |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        kept = "" if row["kept"] is None else format_share(row["kept"], row["intervals"][0])
        cells = [f"{row['ratio']:g}x", LABELS[row["role"]], str(row["seeds"]), f"{row['accuracy']:.4f}", kept]
        cells += [format_figure(row["agreement"], ".1%"), format_figure(row["latency_ms"], ".1f")]
        cells += [format_figure(row["speedup"], ".2f", "x"), format_figure(row["size"], ".2f", "x")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the share of the teacher's accuracy against speed and size, a line a form."""
    figure = Figure(figsize=(9.6, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name, label in zip(
        axes, ("speedup", "size"), ("times as fast as the teacher", "times smaller on disk"), strict=True
    ):
        for (role, form), colour in zip(LABELS.items(), COLOURS, strict=True):
            shown = [row for row in rows if row["role"] == role and None not in (row[name], row["kept"])]
            points = [(row[name], 100 * row["kept"], row["ratio"]) for row in shown]
            if points:
                axis.plot(*zip(*[point[:2] for point in points], strict=True), "o-", color=colour, label=form)
            for x, y, ratio in points if role == "openvino" else ():
                axis.annotate(f"{ratio:g}x", (x, y), (0, 5), textcoords="offset points", size=8, ha="center")
        axis.set_xscale("log")
        ticks = (1, 2, 3, 4, 6, 8, 12, 16, 24)
        axis.set_xticks(ticks, [f"{tick}x" for tick in ticks], minor=False)
        axis.minorticks_off()
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("% of the teacher's accuracy")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle("SST-2: MiniLM with so many times fewer operations as stands at the points", size=11)
    figure.savefig(path, dpi=140)


def main() -> None:
    """Make the points that have no result yet, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", nargs="+", type=float, default=[1, 1.5, 2, 3, 4, 6, 8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--max_steps", type=int, default=1000)
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    teacher, environment = prepare(), describe_environment()
    name = f"frontier_{cpu_kind()}"
    results = Results(FOLDER / f"{name}.json")
    results["environment"] = environment
    for seed in args.seeds:
        for ratio in args.ratios:
            key = f"{ratio:g}x {args.max_steps} steps seed {seed}"
            if key not in results and not (ratio == 1 and seed):  # int8 alone draws nothing at random
                results[key] = run(teacher, ratio, seed, args.max_steps)
            points = {key: value for key, value in results.values.items() if key != "environment"}
            rows = summarize([value for key, value in points.items() if f" {args.max_steps} steps " in key])
            shutil.copyfile(results.path, RESULTS / f"{name}.json")
            (RESULTS / f"{name}.md").write_text(render(rows, environment, args.max_steps), encoding="utf-8")
            draw(rows, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
