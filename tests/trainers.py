"""Tiny trainers, models and data, for the tests of training."""

import dataclasses

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_efficient import CompressionReport, DistillationConfig, EfficientSeq2SeqTrainer, EfficientTrainer
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
        model=classifier() if model is None else model,
        args=arguments(folder, **changes),
        train_dataset=rows() if data is None else data,
        eval_dataset=rows(16, seed=9),
        data_collator=collate,
        compute_metrics=accuracy,
        **(techniques or {}),
    )


def seq2seq_arguments(args):
    """Return the same arguments for `EfficientSeq2SeqTrainer`."""
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(args) if field.init}
    return Seq2SeqTrainingArguments(**fields)


def without_report(trainer):
    """Return `trainer`, which measures nothing at the end of `train`: that takes longer than a test trains."""
    trainer.build_report = lambda models, exported: CompressionReport()
    return trainer


def log_entries(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def losses(trainer):
    return [entry["loss"] for entry in log_entries(trainer)]


def set_up_distillation(trainer):
    """Do what `train` does first if there is a teacher."""
    CompressionRun(trainer, train=None).set_up_distillation()


def train_with_teacher(trainer, checkpoint=None):
    """Return `trainer` after the training run alone, in which it keeps its distiller."""
    set_up_distillation(trainer)
    Trainer.train(trainer, checkpoint)
    return trainer


def step_gradients(trainer):
    """Train, and return the gradients of every optimizer step by name, those of projections too."""
    set_up_distillation(trainer)
    trainer.args.max_grad_norm = 0
    optimizer_step, distiller = trainer.create_optimizer().step, trainer.distillation_training.distiller
    projections = [] if distiller is None else list(distiller.projections.named_parameters("projections"))
    steps = []

    def record(*args, **kwargs):
        named = [*trainer.model.named_parameters(), *projections]
        steps.append({name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None})
        return optimizer_step(*args, **kwargs)

    trainer.optimizer.step = record
    Trainer.train(trainer)
    return steps


def assert_same_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    total = sum(float(value.square().sum()) for value in expected.values()) ** 0.5
    assert total > 1e-3
    for name, value in expected.items():
        assert float((actual[name] - value).norm()) <= 1e-5 * float(value.norm()) + 1e-6 * total, name


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


BERT_SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "num_labels": 3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
NARROW = {"hidden_size": 16, "num_attention_heads": 2}  # narrower than a teacher: hidden states need a projection


def bert(seed=1, model_class=BertForSequenceClassification, **changes):
    set_seed(seed)
    return livelier(model_class(BertConfig(**{**BERT_SIZES, **changes})))


def build_distillation(folder, settings, student, teacher, data=None, pruning=None, collator=collate, **changes):
    """Build a trainer of a BERT or T5 student with the settings of a `DistillationConfig`."""
    generates = isinstance(student, T5ForConditionalGeneration)
    args = arguments(folder, seed=3, **changes)
    trainer_class = EfficientSeq2SeqTrainer if generates else EfficientTrainer
    default_data = written() if generates else rows()
    return trainer_class(
        model=student,
        args=seq2seq_arguments(args) if generates else args,
        train_dataset=default_data if data is None else data,
        eval_dataset=None if generates else rows(16, seed=9),
        data_collator=pad if generates else collator,
        compute_metrics=None if generates else accuracy,
        teacher=teacher,
        distillation=DistillationConfig(**settings),
        pruning=pruning,
    )


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
