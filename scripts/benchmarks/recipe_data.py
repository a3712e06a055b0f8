"""What `recipe.py` trains on: data with many held-out rows, a teacher that never saw them, cut students, training."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from distilled import even_layers
from sst2 import ASSETS, OUT
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments, set_seed

from hf_efficient import CompressionReport, DistillationConfig, EfficientTrainer, PruningConfig, prune
from hf_efficient.commands.config import JobConfig, ModelConfig
from hf_efficient.commands.preparation import prepare_job
from hf_efficient.commands.training_defaults import WARMUP
from hf_efficient.data.config import DataConfig
from hf_efficient.data.loading import load_splits
from hf_efficient.measurement.environment import has_fast_bfloat16
from hf_efficient.quantization.config import QuantizationConfig
from hf_efficient.trainer.evaluation import evaluated_by

FOLDER = OUT / "recipe"
HELD_OUT_ROWS, MIN_SENTENCE_WORDS, SHARED_WORDS = 8000, 6, 5
SCORING_SAMPLES = 2048


@dataclass(frozen=True)
class DatasetSettings:
    """How the teacher of a dataset is trained, and which splits both models are judged on."""

    metric: str
    epochs: float
    learning_rate: float
    batch_size: int = 64
    evaluation: Sequence[str] = ()


DATASETS = {
    "sst2": DatasetSettings("accuracy", 2, 5e-5),
    "banking77": DatasetSettings("accuracy", 8, 2e-4, 32, ("test",)),
    "stsb": DatasetSettings("spearman", 5, 1e-4, 32, ("validation", "test")),
    "wnut17": DatasetSettings("f1", 6, 2e-4, 16, ("validation", "test")),
}


def hold_out_sentences(rows: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """Return (training, held out) of SST-2, whose rows are sentences and phrases of them.

    Whole sentences are held out, each with all of its phrases, until there are `count` rows. Rows of the rest that
    share `SHARED_WORDS` consecutive words with a held-out sentence are in neither part.
    """
    texts = [tuple(text.split()) for text in rows["sentence"]]
    by_text: dict[tuple[str, ...], list[int]] = {}
    for index, words in enumerate(texts):
        by_text.setdefault(words, []).append(index)
    inner: set[tuple[str, ...]] = set()
    sentences = []
    for words in sorted(by_text, key=len, reverse=True):
        if len(words) < MIN_SENTENCE_WORDS:
            break
        if words not in inner:
            sentences.append(words)
            inner.update(_spans(words))
    held_out: list[int] = []
    shared: set[tuple[str, ...]] = set()
    for index in np.random.default_rng(seed).permutation(len(sentences)):
        if len(held_out) >= count:
            break
        phrases = [by_text.pop(span) for span in sorted(_spans(sentences[index])) if span in by_text]
        held_out += [row for group in phrases for row in group]
        shared |= _runs(sentences[index], SHARED_WORDS)
    training = [row for words, group in by_text.items() if not _runs(words, SHARED_WORDS) & shared for row in group]
    return rows.select(sorted(training)), rows.select(sorted(held_out))


def _spans(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    count = len(words)
    return {words[start:end] for start in range(count) for end in range(start + 1, count + 1)}


def _runs(words: tuple[str, ...], length: int) -> set[tuple[str, ...]]:
    return {words[start : start + length] for start in range(len(words) - length + 1)}


def load_data(name: str) -> DatasetDict:
    """Return the splits "train" and "evaluation"; no row of the second was or will be trained on."""
    folder, settings = ASSETS / "data" / name, DATASETS[name]
    files = [folder / f"{split}.parquet" for split in settings.evaluation or ("validation",)]
    parts = [
        load_splits(DataConfig(train_file=str(folder / "train.parquet"), validation_file=str(file)), seed=0)
        for file in files
    ]
    if name == "sst2":
        train, evaluation = hold_out_sentences(parts[0]["train"], HELD_OUT_ROWS, seed=0)
        return DatasetDict(train=train, evaluation=evaluation)
    return DatasetDict(
        train=parts[0]["train"], evaluation=concatenate_datasets([part["evaluation"] for part in parts])
    )


class Benchmark:
    """One dataset: its tokenized rows, its teacher and its cut students, which are kept in `folder`."""

    def __init__(self, name: str) -> None:
        self.settings, self.folder = DATASETS[name], FOLDER / name
        self.folder.mkdir(parents=True, exist_ok=True)
        config = JobConfig(
            ModelConfig(str(ASSETS / "models" / "minilm-l6-h384")),
            DataConfig(train_file="train", validation_file="evaluation"),
            DistillationConfig(),
            PruningConfig(),
            QuantizationConfig(scheme=None),
            self._arguments(1),
        )
        self.prepared = prepare_job(config, load_data(name))
        self.teacher = self._load_or_train_teacher()

    def _arguments(self, steps: int, seed: int = 0, **settings: Any) -> TrainingArguments:
        values = {
            "max_steps": steps,
            "seed": seed,
            "per_device_train_batch_size": self.settings.batch_size,
            "per_device_eval_batch_size": 64,
            "train_sampling_strategy": "group_by_length",
            "bf16": has_fast_bfloat16() is True,
            "use_cpu": not torch.accelerator.is_available(),
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 50,
            "warmup_steps": WARMUP,
            **settings,
        }
        return TrainingArguments(str(self.folder / "run"), **values)

    def train(
        self,
        model: PreTrainedModel,
        steps: int,
        seed: int,
        learning_rate: float,
        distillation: DistillationConfig | None = None,
        collator: Any = None,
        callbacks: Sequence[TrainerCallback] = (),
        pruning: PruningConfig | None = None,
        quantization: QuantizationConfig | None = None,
        train_dataset: Dataset | None = None,
        **settings: Any,
    ) -> tuple[PreTrainedModel, float]:
        """Return the model after so many steps, and the seconds they took; nothing else is measured.

        `train_dataset` is instead of all training rows; `settings` are fields of `TrainingArguments`.
        """
        set_seed(seed)
        inputs = self.prepared.trainer_kwargs()
        inputs |= {"eval_dataset": None, "compute_metrics": None}
        inputs |= {} if train_dataset is None else {"train_dataset": train_dataset}
        inputs |= {} if collator is None else {"data_collator": collator(inputs["data_collator"], self.tokenizer)}
        trainer = EfficientTrainer(
            model=model,
            args=self._arguments(steps, seed, learning_rate=learning_rate, **settings),
            teacher=None if distillation is None else self.teacher,
            distillation=distillation,
            pruning=pruning,
            quantization=quantization,
            callbacks=list(callbacks),
            **inputs,
        )
        trainer.build_report = lambda models, exported: CompressionReport()  # type: ignore[method-assign]
        start = time.perf_counter()
        trainer.train()
        return trainer.model.eval(), time.perf_counter() - start

    def pretrained(self) -> PreTrainedModel:
        """Return a new copy of the model that the teacher was fine-tuned from, with an untrained head."""
        return copy.deepcopy(self.prepared.model)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that all models share."""
        return self.prepared.encoder.tokenizer

    def predict(self, model: PreTrainedModel) -> np.ndarray:
        """Return the classes that `model`, in float32, predicts for the held-out rows; the numbers of a regression."""
        inputs = self.prepared.trainer_kwargs()
        trainer = EfficientTrainer(model=model, args=self._arguments(1), **inputs)
        with evaluated_by(trainer, model, None):
            predictions = trainer.predict(inputs["eval_dataset"]).predictions
        return predictions[..., 0] if predictions.shape[-1] == 1 else predictions.argmax(-1).astype(np.int16)

    def labels(self) -> np.ndarray:
        """Return the labels of the held-out rows, those of tokens padded with -100; the numbers of a regression."""
        rows = self.prepared.tokenized_splits["evaluation"]["labels"][:]
        if not isinstance(rows[0], list):
            return np.asarray(rows)
        if isinstance(rows[0][0], float):
            return np.asarray(rows, dtype=np.float64)[:, 0]
        labels = np.full((len(rows), max(map(len, rows))), -100)
        for index, row in enumerate(rows):
            labels[index, : len(row)] = row
        return labels

    def cut(self, ratio: float, criterion: str = "fisher") -> PreTrainedModel:
        """Return a new copy of the student with so many times fewer operations, corrected and not trained."""
        folder = self.folder / f"cut-{ratio:g}x-{criterion}"
        if not (folder / "config.json").is_file():
            if criterion == "even layers":
                student = even_layers(self.teacher, ratio)
            else:
                config = PruningConfig(target_flops=ratio, criterion=criterion)
                student = prune(self.teacher, config, self.sample(SCORING_SAMPLES, seed=0))
            student.save_pretrained(folder.with_suffix(".partial"))
            folder.with_suffix(".partial").rename(folder)
        return self._load(folder)

    def sample(self, count: int, seed: int) -> list[dict[str, torch.Tensor]]:
        """Return batches of `count` training rows, of similar lengths in a batch."""
        inputs = self.prepared.trainer_kwargs()
        data = inputs["train_dataset"].shuffle(seed=seed)
        rows = sorted(data.select(range(min(count, len(data)))), key=lambda row: len(row["input_ids"]))
        return [dict(inputs["data_collator"](rows[start : start + 32])) for start in range(0, len(rows), 32)]

    def _load_or_train_teacher(self) -> PreTrainedModel:
        folder, settings = self.folder / "teacher", self.settings
        if not (folder / "config.json").is_file():
            steps = round(settings.epochs * len(self.prepared.tokenized_splits["train"]) / settings.batch_size)
            teacher, seconds = self.train(self.pretrained(), steps, 0, settings.learning_rate)
            partial = folder.with_suffix(".partial")
            teacher.save_pretrained(partial)
            (partial / "training.json").write_text(json.dumps({"steps": steps, "seconds": seconds}), encoding="utf-8")
            partial.rename(folder)
        return self._load(folder).eval()

    def _load(self, folder: Path) -> PreTrainedModel:
        config_class = self.prepared.task.auto_class
        return config_class.from_pretrained(folder, dtype=torch.float32).eval()
