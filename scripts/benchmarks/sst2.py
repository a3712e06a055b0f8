"""What the benchmarks share: SST-2, a teacher fine-tuned on it, its accuracy, and a file of results."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    TrainingArguments,
)

from hf_efficient import CompressionReport, EfficientTrainer
from hf_efficient.data.columns import Columns
from hf_efficient.data.config import DataConfig
from hf_efficient.data.loading import load_splits
from hf_efficient.measurement.environment import has_fast_bfloat16
from hf_efficient.measurement.intervals import Interval
from hf_efficient.tasks import TASKS
from hf_efficient.tasks.classification import classification_compute_metrics
from hf_efficient.tasks.task import RowEncoder

OUT = Path(__file__).parents[2] / "out"
RESULTS = Path(__file__).parent / "results"  # those that are published
# The dropout of the published figures; without it, which is the default now, they were not measured again.
PUBLISHED_DROPOUT = ("--student_dropout", "0.1")
ASSETS = Path(os.environ.get("HF_EFFICIENT_ASSETS", ""))


class Sst2:
    """The teacher, its tokenizer and the tokenized splits "train" and "evaluation" (872 rows).

    The variable HF_EFFICIENT_ASSETS names a folder with models/minilm-sst2 and data/sst2.
    """

    def __init__(self) -> None:
        if not os.environ.get("HF_EFFICIENT_ASSETS"):
            raise SystemExit("set HF_EFFICIENT_ASSETS to the folder with models/ and data/")
        self.folder = ASSETS / "models" / "minilm-sst2"
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.collate = DataCollatorWithPadding(self.tokenizer)
        train, validation = (str(ASSETS / "data" / "sst2" / f"{name}.parquet") for name in ("train", "validation"))
        data = DataConfig(train_file=train, validation_file=validation)
        encoding = RowEncoder(Columns(("sentence",), "label"), self.tokenizer, data)
        self.data: DatasetDict = TASKS["text-classification"].tokenize(load_splits(data, seed=0), encoding)

    def teacher(self) -> PreTrainedModel:
        """Return the fine-tuned teacher, in float32."""
        return AutoModelForSequenceClassification.from_pretrained(self.folder, dtype=torch.float32).eval()

    def sample(self, count: int, seed: int, batch_size: int = 32) -> list[dict[str, torch.Tensor]]:
        """Return shuffled batches of `count` training examples drawn with `seed`, of similar lengths in a batch."""
        rows = list(self.data["train"].shuffle(seed=seed).select(range(count)))
        rows.sort(key=lambda row: len(row["input_ids"]))
        batches = [dict(self.collate(rows[start : start + batch_size])) for start in range(0, count, batch_size)]
        random.Random(seed).shuffle(batches)  # so that the first batches are a fair sample
        return batches

    def train(
        self, model: PreTrainedModel, folder: Path, settings: Mapping[str, Any], **techniques: Any
    ) -> EfficientTrainer:
        """Return the trainer of `model` after training; its report is saved in `folder`, of the last weights."""
        trainer = EfficientTrainer(
            model=model,
            args=TrainingArguments(
                str(folder),
                per_device_train_batch_size=64,
                train_sampling_strategy="group_by_length",
                bf16=has_fast_bfloat16() is True,
                use_cpu=not torch.accelerator.is_available(),
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **settings,
            ),
            train_dataset=self.data["train"],
            eval_dataset=self.data["evaluation"],
            processing_class=self.tokenizer,
            compute_metrics=classification_compute_metrics(),
            **techniques,
        )
        trainer.train()
        trainer.report.save(folder)
        return trainer

    def accuracy(self, model: PreTrainedModel) -> float:
        """Return the accuracy of `model` on the evaluation rows."""
        return accuracy(model, self.data["evaluation"], self.collate)


def accuracy(model: PreTrainedModel, data: Dataset, collate: DataCollatorWithPadding) -> float:
    """Return the accuracy of `model` on `data`, in batches of 32 in the order of the rows."""
    num_correct = 0
    with torch.inference_mode():
        for batch in torch.utils.data.DataLoader(data, batch_size=32, collate_fn=collate):
            labels = batch.pop("labels")
            num_correct += int((model(**batch).logits.argmax(-1) == labels).sum())
    return num_correct / len(data)


def figures_by_role(report: CompressionReport) -> dict[str, dict[str, Any]]:
    """Return, by role, what `report` says of its models; what was not measured is None."""
    metric = str(report.metric)
    return {
        row.role: {
            "name": row.name,
            metric: row.metrics[metric],
            "interval": ends_of(row.retained_intervals.get(metric)),
            "kept": row.ratios.metric_retained,
            "agreement": row.teacher_agreement,
            "latency_ms": None if row.latency_ms is None else row.latency_ms.p50,
            "samples_per_second": row.samples_per_second,
            "speedup": row.ratios.speedup,
            "flops": row.ratios.flops,
            "size": row.ratios.size,
        }
        for row in report.models
    }


def ends_of(interval: Interval | None) -> list[float] | None:
    """Return the ends of an interval, as JSON has them."""
    return None if interval is None else [interval.low, interval.high]


def format_figure(value: float | None, form: str, unit: str = "") -> str:
    """Return a cell of a table; it is empty where nothing was measured."""
    return "" if value is None else f"{value:{form}}{unit}"


def format_share(value: float, ends: Sequence[float] | None) -> str:
    """Return a share of the teacher's metric in percent, with its interval if there is one."""
    return f"{value:.1%}" + ("" if ends is None else f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})")


def run_compress(model: Path, output: Path, *flags: str) -> CompressionReport:
    """Run `hf-efficient compress` of `model` into `output`, and return its report."""
    command = [sys.executable, str(Path(__file__).parents[1] / "compress.py"), "--model_name_or_path", str(model)]
    subprocess.run([*command, *flags, "--output_dir", str(output), "--overwrite_output_dir"], check=True)
    return CompressionReport.load(output)


class Results:
    """Results by key in a JSON file that is written after each of them, so that a benchmark can be continued."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def __setitem__(self, key: str, value: Mapping[str, Any] | float | None) -> None:
        if self.path.exists():  # another process may have added results
            self.values = json.loads(self.path.read_text(encoding="utf-8"))
        self.values[key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.values, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.path)
