"""Rerankers (cross-encoders) with half the latency: correlation or ranking and speed of teacher and student.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/reranker.py [--data stsb banking77] [--queries 3000]

stsb: pairs with scores from 0 to 1. The teacher is trained by CrossEncoderTrainer of sentence-transformers; Spearman.
banking77: questions, each with one question of the same intent and others of other intents. The teacher is trained by
`hf-efficient compress --task text-ranking`; nDCG@10 and MRR@10.

The student of each is one `hf-efficient compress`: half the latency by pruning and distillation, then int8 and exports
to ONNX Runtime and OpenVINO. CrossEncoder loads it, and its scores are compared with those of the teacher. Results,
copied from compression_report.json of each run, in results/reranker.json.
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from scipy.stats import spearmanr
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sst2 import ASSETS, OUT, PUBLISHED_DROPOUT, RESULTS, Results, run_compress
from transformers.utils import logging

from hf_efficient import CompressionReport
from hf_efficient.measurement.environment import has_fast_bfloat16

BASE = ASSETS / "models" / "minilm-l6-h384"
TRAINING = (
    *("--num_train_epochs", "3", "--per_device_train_batch_size", "32", "--learning_rate", "1e-4", "--warmup_steps"),
    *("50", "--bf16", str(has_fast_bfloat16() is True), "--save_strategy", "no", "--report_to", "none"),
    *("--max_length", "64", "--latency_batch_size", "8", "--latency_sequence_length", "64"),
)
STUDENT = (
    *("--target_speedup", "2", "--hidden_weight", "10", "--hard_label_weight", "0.1", "--scheme", "int8_static"),
    *("--export", "onnx", "openvino", *PUBLISHED_DROPOUT),
)
COMPARED_ROWS = 500
DOCUMENTS = {"train": 4, "test": 10}  # of each query, one of which has its intent


def compress(folder: Path, model: Path, train: Path, dev: Path, *flags: str) -> CompressionReport:
    """Run `hf-efficient compress` into `folder`, and return its report."""
    return run_compress(model, folder, "--train_file", str(train), "--validation_file", str(dev), *TRAINING, *flags)


def write_pairs(folder: Path) -> dict[str, Path]:
    """Write the pairs of STS-B with scores from 0 to 1."""
    files = {}
    for split in ("train", "test"):
        rows = read("stsb", split).select_columns(["sentence1", "sentence2", "label"]).to_list()
        files[split] = write([{**row, "label": row["label"] / 5} for row in rows], folder / f"{split}.parquet")
    return files


def write_queries(folder: Path, queries: int) -> dict[str, Path]:
    """Write questions of banking77, each with one question of its intent, and others of other intents."""
    by_intent: dict[int, list[str]] = {}
    for row in read("banking77", "train"):
        by_intent.setdefault(row["label"], []).append(row["text"])
    files = {}
    for split, count in DOCUMENTS.items():
        rng, rows = random.Random(0), []
        for row in read("banking77", split).shuffle(seed=0).to_list()[:queries]:
            query, intent = row["text"], row["label"]
            others = rng.sample([other for other in by_intent if other != intent], count - 1)
            documents = [(rng.choice([text for text in by_intent[intent] if text != query]), 1)]
            documents += [(rng.choice(by_intent[other]), 0) for other in others]
            rows += [{"query": query, "document": document, "label": label} for document, label in documents]
        files[split] = write(rows, folder / f"{split}.parquet")
    return files


def read(data: str, split: str) -> Dataset:
    """Return the rows of a dataset."""
    return Dataset.from_parquet(str(ASSETS / "data" / data / f"{split}.parquet"))


def write(rows: list[dict[str, Any]], file: Path) -> Path:
    """Write rows to `file`, and return it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(str(file))
    return file


def train_with_sentence_transformers(folder: Path, train: Path) -> None:
    """Train a CrossEncoder on pairs with scores, as its documentation does: binary cross entropy, with a sigmoid."""
    model = CrossEncoder(str(BASE), num_labels=1, max_length=64)
    settings = CrossEncoderTrainingArguments(
        output_dir=str(folder / "training"),
        num_train_epochs=3,
        per_device_train_batch_size=32,
        learning_rate=1e-4,
        warmup_steps=50,
        bf16=has_fast_bfloat16() is True,
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="no",
        report_to="none",
    )
    CrossEncoderTrainer(model=model, args=settings, train_dataset=Dataset.from_parquet(str(train))).train()
    model.save_pretrained(str(folder))


def describe(report: CompressionReport, folder: Path, teacher: Path, dev: Path) -> dict[str, Any]:
    """Return the results of a run, and how the scores of CrossEncoder on teacher and student correlate."""
    rows = Dataset.from_parquet(str(dev)).remove_columns("label").to_list()[:COMPARED_ROWS]
    pairs = [list(row.values()) for row in rows]
    scores = [CrossEncoder(str(each), trust_remote_code=True).predict(pairs) for each in (teacher, folder)]
    metric = str(report.metric)
    models = {
        row.role: {
            "name": row.name,
            **{name: row.metrics.get(name) for name in (metric, "mrr@10") if name in row.metrics},
            "kept": row.ratios.metric_retained,
            "speedup": row.ratios.speedup,
            "size": row.ratios.size,
            "samples_per_second": row.samples_per_second,
        }
        for row in report.models
    }
    correlation = float(spearmanr(*scores).statistic)
    return {
        "metric": metric,
        "models": models,
        "correlation_of_scores": correlation,
        "environment": report.environment,
    }


def run(data: str, queries: int) -> dict[str, Any]:
    """Train teacher and student on `data`, and return the results."""
    folder = OUT / "reranker" / data
    teacher = folder / "teacher"
    if data == "stsb":
        files, task = write_pairs(folder / "data"), "regression"
        if not (teacher / "config.json").exists():
            train_with_sentence_transformers(teacher, files["train"])
    else:
        files, task = write_queries(folder / "data", queries), "text-ranking"
        if not (teacher / "compression_report.json").exists():
            compress(teacher, BASE, files["train"], files["test"], "--task", task)
    report = compress(folder / "student", teacher, files["train"], files["test"], "--task", task, *STUDENT)
    return describe(report, folder / "student", teacher, files["test"])


def main() -> None:
    """Run the datasets that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=("stsb", "banking77"), default=["stsb", "banking77"])
    parser.add_argument("--queries", type=int, default=3000, help="Number of queries of banking77, in each split.")
    args = parser.parse_args()
    results = Results(OUT / "reranker" / "results.json")
    for data in args.data:
        if data not in results:
            results[data] = run(data, args.queries)
            logging.get_logger("hf_efficient").warning(f"{data}: {results[data]}")
        shutil.copyfile(results.path, RESULTS / "reranker.json")


if __name__ == "__main__":
    main()
