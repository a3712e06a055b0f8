"""Tiny trainers, models and data, for the tests of training."""

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
    set_seed,
)

from hf_efficient import EfficientTrainer
from hf_efficient.trainer.run import CompressionRun

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
    return livelier(model)


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


def set_up_distillation(trainer):
    """Does what `train` does before it trains under a teacher."""
    CompressionRun(trainer, train=None).set_up_distillation()


def livelier(model):
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


def t5(seed=1, width=32, dropout=0.0):
    set_seed(seed)
    sizes = {"d_model": width, "d_kv": 8, "num_heads": 2, "num_layers": 2, "d_ff": 32, "vocab_size": 60}
    return T5ForConditionalGeneration(
        T5Config(**sizes, dropout_rate=dropout, pad_token_id=0, decoder_start_token_id=0)
    )


def written(count=32):
    """Return rows of token ids with shorter token ids as labels, as for translation."""
    return Dataset.from_list(
        [
            {"input_ids": row["input_ids"], "attention_mask": row["attention_mask"], "labels": row["input_ids"][1::2]}
            for row in rows(count)
        ]
    )


def pad(examples, filled=-100):
    fill = {"labels": filled}
    return {
        name: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(example[name]) for example in examples], batch_first=True, padding_value=fill.get(name, 0)
        )
        for name in examples[0]
    }


class InterruptionError(Exception):
    """Stops a training at a step, as if its process was killed."""


def stopping(trainer, at):
    """Return `trainer`, which raises InterruptionError at step `at`, counted from 0 over all phases."""
    training_step, steps = trainer.training_step, iter(range(10_000))

    def step(*args, **kwargs):
        if next(steps) == at:
            raise InterruptionError
        return training_step(*args, **kwargs)

    trainer.training_step = step
    return trainer


def stop(trainer, at):
    """Train until the interruption at step `at`."""
    with pytest.raises(InterruptionError):
        stopping(trainer, at).train()
