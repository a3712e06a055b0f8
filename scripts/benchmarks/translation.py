"""A translation model with a short and narrow decoder, trained on texts that its teacher generates.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/translation.py [--epochs 10]

HF_EFFICIENT_ASSETS names a folder with models/t5-multi30k and data/multi30k_en_de; `pip install 'hf_efficient[onnx]'`
first. The student is trained by one command, about forty minutes on two cores. Then teacher and student, in torch and
in ONNX Runtime, in float32 and int8, translate the 1,000 test sentences greedily. They are timed alternately at batch
sizes 1 and 16: on 16 tokens, and on test sentences, where one model generates longer texts than another. The last
checkpoint is reported; the test set selects nothing. Results in out/translation/results.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from sst2 import ASSETS, OUT, PUBLISHED_DROPOUT, Results, run_compress
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_efficient import CompressionReport, export, load_exported
from hf_efficient.measurement.comparison import generation_call
from hf_efficient.measurement.environment import describe_environment, has_fast_bfloat16
from hf_efficient.measurement.latency import time_interleaved
from hf_efficient.measurement.metrics import translation_metrics

NAME, DATA = ASSETS / "models" / "t5-multi30k", ASSETS / "data" / "multi30k_en_de"
FOLDER = OUT / "translation"
COMMAND = (
    *("--source_lang", "en", "--target_lang", "de", "--layers", "encoder=0.5,decoder=0.75", "--scope", "layer"),
    *("--heads", "encoder=0,decoder=0.5", "--neurons", "encoder=0,decoder=0.5"),
    *("--latency_batch_size", "16", "--latency_sequence_length", "16", "--latency_new_tokens", "16"),
    *("--targets", "teacher", "--target_beams", "4", "--cache_teacher", "--cache_top_k", "32", "--temperature", "1"),
    *("--per_device_train_batch_size", "64", "--learning_rate", "1e-3", "--warmup_steps", "300"),
    *("--bf16", str(has_fast_bfloat16() is True)),
    *("--save_strategy", "no", "--report_to", "none", *PUBLISHED_DROPOUT),
)
MAX_LENGTH = 64
TIMED_SENTENCES = {1: 16, 16: 160}  # batch size: sentences that are translated for one duration
REPEATS = 6


def train(epochs: float) -> Path:
    """Return the directory of the student, after training it if it does not exist."""
    folder = FOLDER / "student"
    if not (folder / "compression_report.json").exists():
        files = ("--train_file", str(DATA / "train.parquet"), "--validation_file", str(DATA / "test.parquet"))
        run_compress(NAME, folder, *files, *COMMAND, "--num_train_epochs", str(epochs))
    return folder


def load_models(folder: Path) -> dict[str, Any]:
    """Return the models to compare, by name."""
    teacher, student = (
        AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32).eval() for name in (NAME, folder)
    )
    models = {"teacher": teacher, "student": student}
    for name, model, quantization in (
        ("teacher", teacher, None),
        ("student", student, None),
        ("student", student, "int8"),
    ):
        directory = FOLDER / f"{name}-onnx-{quantization or 'float32'}"
        export(model, directory, "onnx", quantization)
        models[f"{name}, ONNX Runtime {quantization or 'float32'}"] = load_exported(directory, quantization)
    return models


def translate(model: Any, tokenizer: Any, sentences: Sequence[str], batch_size: int) -> list[str]:
    """Return the translations, decoded greedily."""
    texts: list[str] = []
    for start in range(0, len(sentences), batch_size):
        batch = tokenizer(list(sentences[start : start + batch_size]), return_tensors="pt", padding=True)
        texts += tokenizer.batch_decode(
            model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_length=MAX_LENGTH,
                do_sample=False,
                num_beams=1,
            ),
            skip_special_tokens=True,
        )
    return texts


def main() -> None:
    """Train the student if it does not exist, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=10)
    folder = train(parser.parse_args().epochs)
    rows = load_dataset("parquet", data_files=str(DATA / "test.parquet"), split="train")["translation"]
    sources, references = [row["en"] for row in rows], [row["de"] for row in rows]
    tokenizer, models = AutoTokenizer.from_pretrained(NAME), load_models(folder)
    report = CompressionReport.load(folder)
    measured: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        scores = translation_metrics(translate(model, tokenizer, sources, 50), references)
        measured[name] = {"sacrebleu": scores["sacrebleu"], "chrf": scores["chrf"]}
    for batch_size, count in TIMED_SENTENCES.items():
        batch = tokenizer(sources[:batch_size], return_tensors="pt", padding=True)
        calls: dict[str, dict[str, Callable[[], object]]] = {
            "sentences": {
                name: partial(translate, model, tokenizer, sources[:count], batch_size)
                for name, model in models.items()
            },
            "16 tokens each": {name: generation_call(model, batch, 16) for name, model in models.items()},
        }
        for workload, call_by_model in calls.items():
            repeats = REPEATS if workload == "sentences" else 5 * REPEATS
            times = time_interleaved(call_by_model, repeats=repeats, warmup=1, turn=repeats // 3)
            durations = {name: statistics.median(values) for name, values in times.items()}
            for name, duration in durations.items():
                measured[name][f"ms, {workload}, {batch_size} at once"] = duration
                measured[name][f"times as fast, {workload}, {batch_size} at once"] = durations["teacher"] / duration
    results = Results(FOLDER / "results.json")
    results["environment"] = describe_environment()
    results["stages"] = {"stages": report.stages, "structure": report.row("student").structure}
    for name, figures in measured.items():
        results[name] = {**figures, "sacrebleu kept": figures["sacrebleu"] / measured["teacher"]["sacrebleu"]}


if __name__ == "__main__":
    main()
