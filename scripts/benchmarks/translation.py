"""A translator that writes in half the time: a short and narrow decoder, taught by what its teacher writes.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/translation.py [--epochs 10]

HF_EFFICIENT_ASSETS names a folder with models/t5-multi30k and data/multi30k_en_de. First the one command, about forty
minutes on two cores; then teacher and student, in torch and in ONNX Runtime, in float and in 8 bits, translate the
1,000 test sentences greedily, and are timed in turn, one and sixteen sentences at once: how long 16 tokens take each,
and how long the same sentences, of which one model makes longer texts than another. The last checkpoint is kept, the
test set chooses nothing. `pip install 'hf_efficient[onnx]'` first. Results in out/translation/results.json.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from sst2 import ASSETS, OUT, Results
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_efficient import CompressionReport, export, load_exported
from hf_efficient.measurement.comparison import generation_call
from hf_efficient.measurement.environment import describe_environment
from hf_efficient.measurement.latency import time_interleaved
from hf_efficient.measurement.metrics import translation_metrics

NAME, DATA = ASSETS / "models" / "t5-multi30k", ASSETS / "data" / "multi30k_en_de"
FOLDER = OUT / "translation"
COMMAND = (
    *("--source_lang", "en", "--target_lang", "de", "--layers", "encoder=0.5,decoder=0.75", "--scope", "layer"),
    *("--heads", "encoder=0,decoder=0.5", "--neurons", "encoder=0,decoder=0.5"),
    *("--latency_batch_size", "16", "--latency_sequence_length", "16", "--latency_new_tokens", "16"),
    *("--targets", "teacher", "--target_beams", "4", "--cache_teacher", "--cache_top_k", "32", "--temperature", "1"),
    *("--per_device_train_batch_size", "64", "--learning_rate", "1e-3", "--warmup_steps", "300", "--bf16"),
    *("--save_strategy", "no", "--report_to", "none"),
)
LONGEST = 64
TIMED = {1: 16, 16: 160}  # sentences that are translated for one duration, by how many at once
REPEATS = 6


def train(epochs: float) -> Path:
    """Returns the folder of the student, made by the main job."""
    folder = FOLDER / "student"
    if not (folder / "compression_report.json").exists():
        command = [str(Path(__file__).parents[1] / "compress.py"), "--model_name_or_path", str(NAME)]
        command += ["--train_file", str(DATA / "train.parquet"), "--validation_file", str(DATA / "test.parquet")]
        command += [*COMMAND, "--num_train_epochs", str(epochs), "--output_dir", str(folder), "--overwrite_output_dir"]
        subprocess.run([sys.executable, *command], check=True)
    return folder


def forms(folder: Path) -> dict[str, Any]:
    """Returns the models to compare, by name."""
    teacher, student = (
        AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32).eval() for name in (NAME, folder)
    )
    found = {"teacher": teacher, "student": student}
    for name, model, form in (("teacher", teacher, None), ("student", student, None), ("student", student, "int8")):
        place = FOLDER / f"{name}-onnx-{form or 'float32'}"
        export(model, place, "onnx", form)
        found[f"{name}, ONNX Runtime {form or 'float32'}"] = load_exported(place, form)
    return found


def translate(model: Any, tokenizer: Any, sentences: Sequence[str], at_once: int) -> list[str]:
    """Returns the translations, written greedily."""
    texts: list[str] = []
    for start in range(0, len(sentences), at_once):
        batch = tokenizer(list(sentences[start : start + at_once]), return_tensors="pt", padding=True)
        texts += tokenizer.batch_decode(
            model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_length=LONGEST,
                do_sample=False,
                num_beams=1,
            ),
            skip_special_tokens=True,
        )
    return texts


def main() -> None:
    """Trains where there is no student yet, then measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=10)
    folder = train(parser.parse_args().epochs)
    rows = load_dataset("parquet", data_files=str(DATA / "test.parquet"), split="train")["translation"]
    sources, right = [row["en"] for row in rows], [row["de"] for row in rows]
    tokenizer, models = AutoTokenizer.from_pretrained(NAME), forms(folder)
    report = CompressionReport.load(folder)
    found: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        scores = translation_metrics(translate(model, tokenizer, sources, 50), right)
        found[name] = {"sacrebleu": scores["sacrebleu"], "chrf": scores["chrf"]}
    for at_once, count in TIMED.items():
        few = tokenizer(sources[:at_once], return_tensors="pt", padding=True)
        calls: dict[str, dict[str, Callable[[], object]]] = {
            "sentences": {
                name: partial(translate, model, tokenizer, sources[:count], at_once) for name, model in models.items()
            },
            "16 tokens each": {name: generation_call(model, few, 16) for name, model in models.items()},
        }
        for what, each in calls.items():
            repeats = REPEATS if what == "sentences" else 5 * REPEATS
            times = time_interleaved(each, repeats=repeats, warmup=1, turn=repeats // 3)
            durations = {name: statistics.median(values) for name, values in times.items()}
            for name, duration in durations.items():
                found[name][f"ms, {what}, {at_once} at once"] = duration
                found[name][f"times as fast, {what}, {at_once} at once"] = durations["teacher"] / duration
    results = Results(FOLDER / "results.json")
    results["environment"] = describe_environment()
    results["stages"] = {"stages": report.stages, "structure": report.row("student").structure}
    for name, figures in found.items():
        results[name] = {**figures, "sacrebleu kept": figures["sacrebleu"] / found["teacher"]["sacrebleu"]}


if __name__ == "__main__":
    main()
