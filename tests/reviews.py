"""Tiny reviews of films, a classifier that has learnt them, and the flags of a job on them."""

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
def reviewer(tmp_path_factory) -> Path:
    """A folder with a tiny classifier that has learnt the reviews."""
    folder = tmp_path_factory.mktemp("reviewer")
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
def workshop(tmp_path: Path, reviewer: Path) -> Path:
    """A folder with `model` (a BERT classifier), `train.csv` and `dev.csv`."""
    shutil.copytree(reviewer, tmp_path / "model")
    write_reviews(tmp_path / "train.csv", 64)
    write_reviews(tmp_path / "dev.csv", 24, shift=64)
    return tmp_path


def flags(workshop: Path, **changes: object) -> list[str]:
    values = {
        "model_name_or_path": workshop / "model",
        "train_file": workshop / "train.csv",
        "validation_file": workshop / "dev.csv",
        "output_dir": workshop / "out",
        "num_train_epochs": 6,
        "learning_rate": 5e-3,
        "report_to": "none",
        "save_strategy": "no",
        "multiple_of": 4,
        "compile": False,
        **changes,
    }
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]
