"""Tiny trainers and data, for the tests of training."""

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, set_seed

from hf_efficient import EfficientTrainer

LENGTHS = (5, 9, 3, 12, 7, 4, 11, 6)


def classifier(labels=3, dropout=0.0, **config):
    set_seed(1)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=60,
            hidden_size=32,
            num_attention_heads=4,
            num_hidden_layers=2,
            intermediate_size=64,
            max_position_embeddings=32,
            num_labels=labels,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            **config,
        )
    )
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


def rows(count=32, labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for index in range(count):
        ids = torch.randint(1, 60, (LENGTHS[index % len(LENGTHS)],), generator=generator).tolist()
        examples.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": sum(ids) % labels})
    return Dataset.from_list(examples)


def collate(examples):
    longest = max(len(example["input_ids"]) for example in examples)
    batch = {
        name: torch.tensor([example[name] + [0] * (longest - len(example[name])) for example in examples])
        for name in ("input_ids", "attention_mask")
    }
    return {**batch, "labels": torch.tensor([example["labels"] for example in examples])}


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def arguments(folder, **changes):
    values = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "learning_rate": 1e-3,
    }
    return TrainingArguments(str(folder), **{**values, **changes})


def build(folder, trainer_class=EfficientTrainer, model=None, data=None, techniques=None, **changes):
    return trainer_class(
        model=model or classifier(),
        args=arguments(folder, **changes),
        train_dataset=data or rows(),
        eval_dataset=rows(16, seed=9),
        data_collator=collate,
        compute_metrics=accuracy,
        **(techniques or {}),
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
