"""A tiny dataset of film reviews, a classifier trained on it, and the flags of a command on both."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, set_seed

from hf_efficient.commands.demo_dataset import train_tokenizer

GOOD, BAD = ("good", "great", "lovely", "fine"), ("bad", "awful", "dull", "poor")


def write_reviews(path: Path, count: int, labels=("negative", "positive"), shift: int = 0) -> Path:
    """Write `count` reviews that differ from those of other values of `shift`."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "label"])
        for index in range(shift, shift + count):
            words = (BAD, GOOD)[index % 2]
            writer.writerow(
                [f"the {words[index % 4]} film number {index % 7} was {words[(index + 1) % 4]}", labels[index % 2]]
            )
    return path


def save_model(folder: Path, model, texts=("the a an film number was", *GOOD, *BAD, "0 1 2 3 4 5 6")) -> Path:
    """Save a model with a tokenizer of the words in `texts`."""
    model.save_pretrained(folder)
    train_tokenizer(texts, 200).save_pretrained(folder)
    return folder


def tiny_config(**changes) -> BertConfig:
    values = {
        "vocab_size": 200,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "id2label": {0: "negative", 1: "positive"},
        "label2id": {"negative": 0, "positive": 1},
    }
    return BertConfig(**{**values, **changes})


@pytest.fixture(scope="session")
def review_model_dir(tmp_path_factory) -> Path:
    """Return a folder with a tiny classifier that is trained on the reviews."""
    folder = tmp_path_factory.mktemp("review_model_dir")
    set_seed(0)
    save_model(folder, BertForSequenceClassification(tiny_config()))
    model, tokenizer = BertForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = load_dataset("csv", data_files=str(write_reviews(folder / "rows.csv", 64)), split="train")
    inputs = tokenizer(rows["sentence"][:], padding=True, return_tensors="pt")
    labels = torch.tensor([model.config.label2id[label] for label in rows["label"]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def job_dir(tmp_path: Path, review_model_dir: Path) -> Path:
    """Return a folder with `model` (a BERT classifier), `train.csv` and `dev.csv`."""
    shutil.copytree(review_model_dir, tmp_path / "model")
    write_reviews(tmp_path / "train.csv", 64)
    write_reviews(tmp_path / "dev.csv", 24, shift=64)
    return tmp_path


def flags(job_dir: Path, **changes: object) -> list[str]:
    """Return the flags of a command that trains the model in `job_dir`; None leaves a flag out."""
    values = {
        "model_name_or_path": job_dir / "model",
        "train_file": job_dir / "train.csv",
        "validation_file": job_dir / "dev.csv",
        "output_dir": job_dir / "out",
        "num_train_epochs": 6,
        "learning_rate": 5e-3,
        "report_to": "none",
        "save_strategy": "no",
        "multiple_of": 4,
        "compile": False,
        **changes,
    }
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]
