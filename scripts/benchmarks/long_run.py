"""A long training of a tiny model: memory and open files must not grow with steps, evaluations or rounds.

    python scripts/benchmarks/long_run.py [steps]

Trains a tiny classifier in rounds of pruning and distillation, with evaluations and checkpoints, and prints the
resident memory and the number of open files at twenty points, then the growth from the first third to the last.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback, TrainingArguments, logging

from hf_efficient import CompressionReport, DistillationConfig, EfficientTrainer, PruningConfig

POINTS = 20
ROUNDS = 4


class Usage(TrainerCallback):
    """Records memory and open files at equal distances over all rounds."""

    def __init__(self, interval: int) -> None:
        self.interval, self.steps = interval, 0
        self.memory_mb: list[float] = []
        self.files: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record."""
        self.steps += 1
        if self.steps % self.interval == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.memory_mb.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
            self.files.append(len(os.listdir("/proc/self/fd")))
            sys.stdout.write(f"step {self.steps:>6}: {self.memory_mb[-1]:7.1f} MB, {self.files[-1]} open files" + "\n")


def main(steps: int) -> None:
    """Train and print."""
    logging.set_verbosity_error()
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(vocab_size=60, max_position_embeddings=16, **sizes))
    ids = torch.randint(1, 60, (256, 8)).tolist()
    data = Dataset.from_list([{"input_ids": row, "labels": sum(row) % 2} for row in ids])
    usage = Usage(max(1, steps // POINTS))
    with tempfile.TemporaryDirectory() as folder:
        trainer = EfficientTrainer(
            model=model,
            args=TrainingArguments(
                folder,
                max_steps=steps,
                eval_strategy="steps",
                eval_steps=max(1, steps // 100),
                save_steps=max(1, steps // 20),
                save_total_limit=1,
                report_to="none",
                disable_tqdm=True,
                logging_steps=steps,
                use_cpu=True,
            ),
            train_dataset=data,
            eval_dataset=data.select(range(64)),
            distillation=DistillationConfig(),
            pruning=PruningConfig(target_flops=1.5, rounds=ROUNDS, multiple_of=4, scoring_samples=32),
            compute_metrics=lambda prediction: {"accuracy": float((prediction.label_ids == 0).mean())},
            callbacks=[usage],
        )
        trainer.build_report = lambda models, exported: CompressionReport()  # type: ignore[method-assign]
        trainer.train()
    third = len(usage.memory_mb) // 3
    growth = max(usage.memory_mb[-third:]) - max(usage.memory_mb[:third])
    files = max(usage.files[-third:]) - max(usage.files[:third])
    change = f"{growth:+.1f} MB and {files:+d} files"
    sys.stdout.write(f"{usage.steps} steps, {ROUNDS} rounds: {change} from the first third to the last\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
