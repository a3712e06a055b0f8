"""Four tasks with one command: fine-tune a teacher, prune it to half its operations, compare both.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/tasks.py [--tasks banking77 stsb wnut17 xquad_en] [--seeds 0]

HF_EFFICIENT_ASSETS names a folder with models/minilm-l6-h384 and data/<task>. Each run is one `hf-efficient compress`,
about ten minutes on two cores. The last checkpoint is reported; the evaluation rows select nothing. Results, copied
from compression_report.json of each run, in out/tasks/results.json.
"""

from __future__ import annotations

import argparse

from sst2 import ASSETS, OUT, PUBLISHED_DROPOUT, Results, run_compress
from transformers.utils import logging

from hf_efficient.measurement.environment import has_fast_bfloat16

COMMAND = (
    *("--target_flops", "2", "--latency_batch_size", "8", "--latency_sequence_length", "64"),
    *("--hidden_weight", "10", "--hard_label_weight", "0.1", "--temperature", "2", *PUBLISHED_DROPOUT),
    *("--warmup_steps", "50", "--bf16", str(has_fast_bfloat16() is True)),
    *("--save_strategy", "no", "--report_to", "none", "--logging_steps", "50"),
)
# Task: the split to evaluate on, and the training flags.
RUNS = {
    "banking77": ("test", "--num_train_epochs 5 --per_device_train_batch_size 32 --learning_rate 2e-4"),
    "stsb": ("test", "--num_train_epochs 4 --per_device_train_batch_size 32 --learning_rate 1e-4"),
    "wnut17": ("test", "--num_train_epochs 5 --per_device_train_batch_size 16 --learning_rate 2e-4"),
    "xquad_en": ("validation", "--num_train_epochs 10 --per_device_train_batch_size 16 --learning_rate 2e-4"),
}


def run(task: str, seed: int) -> dict[str, float | str | None]:
    """Return the results of one run, from its report."""
    split, training = RUNS[task]
    data, folder = ASSETS / "data" / task, OUT / "tasks" / f"{task}-{seed}"
    files = ("--train_file", str(data / "train.parquet"), "--validation_file", str(data / f"{split}.parquet"))
    flags = (*files, *COMMAND, *training.split(), "--seed", str(seed))
    report = run_compress(ASSETS / "models" / "minilm-l6-h384", folder, *flags)
    teacher, student = report.row("teacher"), report.row("student")
    metric = str(report.metric)
    return {
        "metric": metric,
        "teacher": teacher.metrics[metric],
        "student": student.metrics[metric],
        "kept": student.ratios.metric_retained,
        "flops": student.ratios.flops,
        "speedup": student.ratios.speedup,
        "size": student.ratios.size,
    }


def main() -> None:
    """Run the tasks that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    results = Results(OUT / "tasks" / "results.json")
    for seed in args.seeds:
        for task in args.tasks:
            key = f"{task} seed {seed}"
            if key not in results:
                results[key] = run(task, seed)
                logging.get_logger("hf_efficient").warning(f"{key}: {results[key]}")


if __name__ == "__main__":
    main()
