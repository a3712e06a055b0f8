"""The stages of `hf-efficient demo`: data, teacher, student, a test that the student loads without this package."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import (
    BertForSequenceClassification,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from hf_efficient.commands import demo_dataset
from hf_efficient.commands.config import JobConfig, ModelConfig
from hf_efficient.commands.job import compress
from hf_efficient.commands.stage_display import StageDisplay
from hf_efficient.data.config import DataConfig
from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.measurement.environment import has_fast_bfloat16
from hf_efficient.measurement.report import PICTURE_NAME, CompressionReport
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.quantization.config import QuantizationConfig

TARGET_SPEEDUP = 2.0
LATENCY_BATCH_SIZE = 8
EVALUATION_ROWS = 500
EVALUATION_BATCH_SIZE = 50
RECOVERY_EPOCHS = 0.75
RECOVERY_LEARNING_RATE = 3e-4
# Largest difference of the accuracies in two processes: kernels may round otherwise, and decide a tie otherwise.
ACCURACY_TOLERANCE = 0.0041

RELOAD_SCRIPT = """
import json, sys
sys.modules["hf_efficient"] = None  # as if the package were not installed
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, data_file, max_length, batch_size = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
rows = [json.loads(line) for line in open(data_file, encoding="utf-8")]
num_correct = 0
for start in range(0, len(rows), int(batch_size)):
    batch = rows[start : start + int(batch_size)]
    texts = [row["text"] for row in batch]
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=int(max_length), return_tensors="pt")
    with torch.no_grad():
        predictions = model(**inputs).logits.argmax(-1).tolist()
    num_correct += sum(model.config.id2label[i] == row["label"] for i, row in zip(predictions, batch))
print(json.dumps(num_correct / len(rows)))
"""


@dataclass(frozen=True)
class DemoDataset:
    """The files that the demo works on.

    `model` is the directory of an untrained model and its tokenizer, `train` and `validation` are json lines.
    """

    model: Path
    train: Path
    validation: Path
    train_rows: int
    validation_rows: int


class TrainingStages(TrainerCallback):
    """Shows a training run as the stage `training`, which ends the current stage and is followed by `evaluation`."""

    def __init__(self, display: StageDisplay, training: str, evaluation: str) -> None:
        self.display, self.training, self.evaluation = display, training, evaluation

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the stage before training."""
        self.display.finish()
        self.display.start(self.training, total=state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the progress."""
        self.display.update(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the stage after training."""
        self.display.finish(f"{state.global_step} steps of {args.per_device_train_batch_size} passages")
        self.display.start(self.evaluation)


def run_demo(output_dir: Path, display: StageDisplay) -> None:
    """Train a teacher, compress it, print the report, and check that the student loads without this package.

    Everything is written into `output_dir`. Raises RuntimeError if the check fails.
    """
    start_seconds = time.perf_counter()
    with quiet_libraries():
        display.start("Read the docstrings of the standard library")
        data = write_demo_dataset(output_dir)
        topics = len(demo_dataset.TOPIC_MODULES)
        display.finish(f"{data.train_rows:,} passages on {topics} topics, {data.validation_rows} to evaluate on")

        display.start("Prepare the teacher, a small BERT")
        teacher = compress(
            _teacher_job(output_dir, data), TrainingStages(display, "Train the teacher", "Evaluate the teacher")
        )
        display.finish(f"accuracy {teacher.final.metrics['accuracy']:.1%}")

        display.start(f"Prune the teacher until it is {TARGET_SPEEDUP:g} times as fast")
        stages = TrainingStages(
            display, "Train the student by distillation", "Quantize the student to 8 bits, evaluate and measure all"
        )
        report = compress(_student_job(output_dir, data), stages)
        display.finish(f"accuracy {report.final.metrics['accuracy']:.1%}")

        student_dir = output_dir / "student"
        display.start("Load the student in a process without this package")
        accuracy = _check_reload(student_dir, data.validation, report)
        display.finish(f"accuracy {accuracy:.1%}, as in the report")

    minutes = (time.perf_counter() - start_seconds) / 60
    console = display.console
    console.print(f"\n{report.summary()}\n", markup=False, highlight=False, soft_wrap=True)
    console.print(report.table())
    console.print(f"\nFinished in {minutes:.1f} minutes. Picture: {student_dir / PICTURE_NAME}\n", soft_wrap=True)
    console.print("Load the student, also where hf_efficient is not installed:\n")
    console.print(usage_snippet(student_dir), markup=False, highlight=False, soft_wrap=True)


def write_demo_dataset(output_dir: Path) -> DemoDataset:
    """Write the dataset as json lines, and an untrained model with its tokenizer."""
    corpus = demo_dataset.load_docstring_dataset()
    topics = corpus["train"].features["label"].names
    tokenizer = demo_dataset.train_tokenizer(corpus["train"]["text"], demo_dataset.TEACHER_VOCAB_SIZE)
    set_seed(0)
    model = BertForSequenceClassification(demo_dataset.demo_bert_config(len(tokenizer), topics))
    model.save_pretrained(output_dir / "untrained")
    tokenizer.save_pretrained(output_dir / "untrained")
    rows_dir = output_dir / "python-docstrings"
    rows_dir.mkdir(parents=True, exist_ok=True)
    validation = corpus["validation"].select(range(min(EVALUATION_ROWS, len(corpus["validation"]))))
    splits = {"train": corpus["train"], "validation": validation}
    files = {name: rows_dir / f"{name}.jsonl" for name in splits}
    for name, split in splits.items():
        lines = (json.dumps({"text": row["text"], "label": topics[row["label"]]}) for row in split)
        files[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return DemoDataset(
        output_dir / "untrained", files["train"], files["validation"], len(splits["train"]), len(validation)
    )


def usage_snippet(student_dir: Path) -> str:
    """Return the three lines of Python that load the student and classify a text."""
    return (
        "from transformers import pipeline\n"
        f'classify = pipeline("text-classification", {json.dumps(str(student_dir))}, trust_remote_code=True)\n'
        'print(classify("Return the arc sine of x, in radians."))'
    )


def _teacher_job(output_dir: Path, data: DemoDataset) -> JobConfig:
    args = _training_arguments(output_dir / "teacher", demo_dataset.TEACHER_EPOCHS, demo_dataset.TEACHER_LEARNING_RATE)
    return _job_config(data.model, data, args)


def _student_job(output_dir: Path, data: DemoDataset) -> JobConfig:
    return _job_config(
        output_dir / "teacher",
        data,
        _training_arguments(output_dir / "student", RECOVERY_EPOCHS, RECOVERY_LEARNING_RATE),
        target_speedup=TARGET_SPEEDUP,
        scheme="int8_static",
    )


def _job_config(
    model: Path,
    data: DemoDataset,
    args: TrainingArguments,
    target_speedup: float | None = None,
    scheme: str | None = None,
) -> JobConfig:
    return JobConfig(
        model=ModelConfig(str(model)),
        data=DataConfig(
            train_file=str(data.train),
            validation_file=str(data.validation),
            dataset_title="docstrings of the Python standard library",
            max_length=demo_dataset.TEACHER_MAX_LENGTH,
        ),
        distillation=DistillationConfig(),
        pruning=PruningConfig(
            target_speedup=target_speedup,
            latency_batch_size=LATENCY_BATCH_SIZE,
            latency_sequence_length=demo_dataset.TEACHER_MAX_LENGTH,
        ),
        quantization=QuantizationConfig(scheme=scheme),
        training=args,
    )


def _training_arguments(output_dir: Path, epochs: float, learning_rate: float) -> TrainingArguments:
    return TrainingArguments(
        str(output_dir),
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        warmup_steps=demo_dataset.TEACHER_WARMUP_STEPS,
        per_device_train_batch_size=demo_dataset.TEACHER_BATCH_SIZE,
        per_device_eval_batch_size=EVALUATION_BATCH_SIZE,
        bf16=has_fast_bfloat16() is True,
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _check_reload(student_dir: Path, validation: Path, report: CompressionReport) -> float:
    """Return the accuracy of the student in a fresh process that does not have this package.

    Raises RuntimeError if it does not load there, or the report has another accuracy.
    """
    arguments = [student_dir, validation, demo_dataset.TEACHER_MAX_LENGTH, EVALUATION_BATCH_SIZE]
    process = subprocess.run(
        [sys.executable, "-c", RELOAD_SCRIPT, *map(str, arguments)], check=False, capture_output=True, text=True
    )
    if process.returncode:
        raise RuntimeError(f"the student does not load in a fresh process:\n{process.stderr}")
    accuracy = float(json.loads(process.stdout.strip().splitlines()[-1]))
    expected = report.final.metrics["accuracy"]
    if abs(accuracy - expected) > ACCURACY_TOLERANCE:
        raise RuntimeError(f"the accuracy is {accuracy} in a fresh process and {expected} in the report")
    return accuracy


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide progress bars and warnings of Transformers and Datasets: the stages show what happens."""
    verbosity = {library: library.get_verbosity() for library in (logging, datasets.logging)}
    had_bars = logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for library in verbosity:
        library.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level in verbosity.items():
            library.set_verbosity(level)
        if had_bars[0]:
            logging.enable_progress_bar()
        if not had_bars[1]:
            datasets.enable_progress_bars()
