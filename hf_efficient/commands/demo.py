"""`hf-efficient demo`: the main job with nothing but this machine, no network and no download."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import BertForSequenceClassification, TrainingArguments, set_seed

from hf_efficient.commands import demo_dataset
from hf_efficient.commands.job import compress
from hf_efficient.commands.config import JobConfig, ModelConfig
from hf_efficient.data.config import DataConfig
from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.errors import UserError
from hf_efficient.measurement.report import PICTURE_NAME, CompressionReport
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.quantization.config import QuantizationConfig

TARGET_SPEEDUP = 2.0
RECOVERY_EPOCHS = 2
ACCURACY_TOLERANCE = 0.002
RECOVERY_LEARNING_RATE = 2e-4

RELOAD_SCRIPT = """
import json, sys
sys.modules["hf_efficient"] = None  # as on a machine that does not have it
import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, file, max_length = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
rows, right = load_dataset("json", data_files=file, split="train"), 0
for batch in rows.iter(batch_size=8):
    inputs = tokenizer(batch["text"], padding=True, truncation=True, max_length=int(max_length), return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs).logits.argmax(-1).tolist()
    right += sum(model.config.id2label[i] == label for i, label in zip(found, batch["label"]))
print(json.dumps(right / len(rows)))
"""


def run(argv: Sequence[str]) -> None:
    """Train a teacher on the docstrings of this Python, compresses it, and shows that the result loads elsewhere.

    Raises ValueError: the folder holds an earlier demo.
    """
    parser = argparse.ArgumentParser(prog="hf-efficient demo", description=run.__doc__, allow_abbrev=False)
    parser.add_argument("--output_dir", default="demo-output", help="where teacher, student and data go")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace an earlier demo there")
    known = parser.parse_args(argv)
    folder, console, start = Path(known.output_dir), Console(), time.perf_counter()
    if folder.exists() and any(folder.iterdir()) and not known.overwrite_output_dir:
        raise UserError(f"output_dir={str(folder)!r} is not empty: name another, or give --overwrite_output_dir")

    console.rule("1. Data: the docstrings of this Python, labelled by area of the standard library")
    data = write_demo_dataset(folder)
    console.print(f"{data['train']}: {data['train_rows']} passages; {data['validation']}: {data['validation_rows']}")

    console.rule("2. Teacher: a small BERT trained from scratch, by the same job without any compression flag")
    teacher = compress(_teacher_job(folder, data))
    console.print(f"teacher: {teacher.final.metrics['accuracy']:.1%} accuracy")

    console.rule(f"3. Student: {TARGET_SPEEDUP:g}x faster by pruning, trained back up by distillation, then 8 bits")
    report = compress(_student_job(folder, data))

    console.rule("4. The result")
    console.print(report.table())
    console.print(f"picture: {folder / 'student' / PICTURE_NAME}\ncard:    {folder / 'student' / 'README.md'}")
    _check_reload(folder, data["validation"], report, console)
    console.print(f"done in {(time.perf_counter() - start) / 60:.1f} minutes\n")
    console.rule("Now with your own model and data")
    console.print(
        "hf-efficient compress --model_name_or_path YOUR_MODEL --train_file train.csv --validation_file dev.csv \\\n"
        "    --target_speedup 2 --scheme int8_dynamic --num_train_epochs 3 --output_dir out",
        markup=False,
        soft_wrap=True,
    )


def write_demo_dataset(folder: Path) -> dict[str, Any]:
    """Write the corpus as json lines, and an untrained model with its tokenizer; returns the paths and row counts."""
    corpus = demo_dataset.load_docstring_dataset()
    names = corpus["train"].features["label"].names
    tokenizer = demo_dataset.train_tokenizer(corpus["train"]["text"], demo_dataset.TEACHER_VOCAB_SIZE)
    set_seed(0)
    model = BertForSequenceClassification(demo_dataset.demo_bert_config(len(tokenizer), names))
    model.save_pretrained(folder / "untrained")
    tokenizer.save_pretrained(folder / "untrained")
    rows = folder / "python-docstrings"
    rows.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"model": folder / "untrained"}
    for name, split in corpus.items():
        path = rows / f"{name}.jsonl"
        lines = (json.dumps({"text": row["text"], "label": names[row["label"]]}) for row in split)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        result |= {name: path, f"{name}_rows": len(split)}
    return result


def _teacher_job(folder: Path, data: dict[str, Any]) -> JobConfig:
    args = _training_arguments(folder / "teacher", demo_dataset.TEACHER_EPOCHS, demo_dataset.TEACHER_LEARNING_RATE)
    return _job_config(data["model"], data, args)


def _student_job(folder: Path, data: dict[str, Any]) -> JobConfig:
    return _job_config(
        folder / "teacher",
        data,
        _training_arguments(folder / "student", RECOVERY_EPOCHS, RECOVERY_LEARNING_RATE),
        PruningConfig(target_speedup=TARGET_SPEEDUP, latency_batch_size=8, latency_sequence_length=64),
        QuantizationConfig(scheme="int8_dynamic"),
    )


def _job_config(
    model: Path,
    data: dict[str, Any],
    args: TrainingArguments,
    pruning: PruningConfig | None = None,
    quantization: QuantizationConfig | None = None,
) -> JobConfig:
    return JobConfig(
        model=ModelConfig(str(model), overwrite_output_dir=True),
        data=DataConfig(
            dataset_title="python-docstrings",
            train_file=str(data["train"]),
            validation_file=str(data["validation"]),
            max_length=demo_dataset.TEACHER_MAX_LENGTH,
        ),
        distillation=DistillationConfig(),
        pruning=pruning or PruningConfig(latency_batch_size=8, latency_sequence_length=64),
        quantization=quantization or QuantizationConfig(scheme=None),
        training=args,
    )


def _training_arguments(folder: Path, epochs: int, learning_rate: float) -> TrainingArguments:
    use_cpu = not torch.accelerator.is_available()
    instructions = torch.cpu.get_capabilities()
    fast_bf16 = not use_cpu or instructions.get("avx512_bf16", False) or instructions.get("amx_bf16", False)
    return TrainingArguments(
        str(folder),
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        warmup_steps=demo_dataset.TEACHER_WARMUP_STEPS,
        per_device_train_batch_size=demo_dataset.TEACHER_BATCH_SIZE,
        per_device_eval_batch_size=64,
        bf16=demo_dataset.TEACHER_BF16 and fast_bf16,
        use_cpu=use_cpu,
        save_strategy="no",
        logging_steps=100,
        report_to="none",
    )


def _check_reload(folder: Path, validation: Path, report: CompressionReport, console: Console) -> None:
    """Raises RuntimeError: a process without this package finds another accuracy than the report.

    Eight bits round, and other batches may move a prediction that is almost a tie: `TIES` of them may differ.
    """
    arguments = [str(folder / "student"), str(validation), str(demo_dataset.TEACHER_MAX_LENGTH)]
    done = subprocess.run(
        [sys.executable, "-c", RELOAD_SCRIPT, *arguments], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the student does not load in a fresh process:\n{done.stderr}")
    found, expected = json.loads(done.stdout.strip().splitlines()[-1]), report.final.metrics["accuracy"]
    if abs(found - expected) > ACCURACY_TOLERANCE:
        raise RuntimeError(f"a fresh process finds an accuracy of {found}, the report says {expected}")
    console.print(f"reload check: a fresh process without this package finds {found:.4f}, the report {expected:.4f}")
