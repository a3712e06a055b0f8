"""What a job works on: its task, its model and teachers, and its data as the model reads it."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from datasets import DatasetDict
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_efficient.commands.config import JobConfig, ModelConfig
from hf_efficient.data.labels import label_ids, label_names
from hf_efficient.distillation.students import student_from_config, student_from_layers
from hf_efficient.distillation.teacher import load_teacher
from hf_efficient.errors import UserError
from hf_efficient.models.inputs import accepts_token_type_ids
from hf_efficient.pruning.vocabulary import find_used_tokens, trim_vocabulary
from hf_efficient.tasks import (
    Columns,
    RowEncoder,
    Task,
    find_columns,
    get_task,
    infer_task,
    iterate_texts,
    model_columns,
)
from hf_efficient.tasks.masked_lm import mask_once

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class PreparedJob:
    """What a trainer works on: `rows` as they are in the files, and `data`, the same as the model reads them.

    `tuned` says whether the model has the task's head already; `teachers` are those that were named.
    """

    task: Task
    encoding: RowEncoder
    rows: DatasetDict
    data: DatasetDict
    model: PreTrainedModel
    tuned: bool
    teachers: tuple[PreTrainedModel, ...]

    @property
    def compute_metrics(self) -> Any:
        """What judges predictions on the evaluation data; None where there is none."""
        if not self.rows:
            return None
        return self.task.judge(self.rows["evaluation"], self.data["evaluation"], self.encoding, self.model.config)

    def for_trainer(self) -> dict[str, Any]:
        """Return what every trainer of the job is given."""
        data = {name: model_columns(split) for name, split in self.data.items()}
        return {
            "train_dataset": data.get("train"),
            "eval_dataset": data.get("evaluation"),
            "processing_class": self.encoding.tokenizer,
            "data_collator": self.task.collator(self.encoding.tokenizer),
            "compute_metrics": self.compute_metrics,
            "preprocess_logits_for_metrics": self.task.reduce_logits,
        }


def prepare_job(job: JobConfig, splits: DatasetDict) -> PreparedJob:
    """Return the model and the tokenized data, for the task that they are for."""
    name, remote = job.model.model_name_or_path, job.model.trust_remote_code
    config = AutoConfig.from_pretrained(name, trust_remote_code=remote)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=remote)
    named = job.model.teacher_name_or_path or ()
    told = AutoConfig.from_pretrained(named[0], trust_remote_code=remote) if named else config
    needs_labels = not job.uses_distillation or job.distillation.uses_labels
    task = get_task(job.model.task) if job.model.task else infer_task(told, splits, job.data)
    columns = find_columns(splits, task, job.data, needs_labels) if splits else Columns((), None)
    tuned = (config.architectures or [""])[0].endswith(task.head)
    if not tuned and named and task.labelled:
        config.id2label, config.label2id, config.problem_type = told.id2label, told.label2id, told.problem_type
    if columns.label is None and task.labelled and not tuned and not named:
        raise UserError(
            f"{name} has no head for {task.name} and the data has no labels to make one: give a fine-tuned model, or "
            "--label_column"
        )
    numbers = None
    if not tuned and not named and task.problem_type:
        config.problem_type = task.problem_type
        config.num_labels = 1 if task.problem_type == "regression" else config.num_labels
    if task.classes and columns.label is not None:
        if not tuned and not named:
            config.id2label = dict(enumerate(label_names(splits, columns.label)))
            config.label2id = {label: index for index, label in config.id2label.items()}
        numbers = label_ids(splits, columns.label, config)
    model = task.auto_class.from_pretrained(
        name,
        config=config,
        dtype=torch.float32,
        trust_remote_code=remote,
        attn_implementation=job.model.attn_implementation,
    )
    answers = job.uses_distillation and job.distillation.uses_logits
    attention = job.model.attn_implementation
    teachers = tuple(load_teacher(teacher, task.auto_class, answers, remote, attention) for teacher in named)
    for teacher in named:
        _check_same_tokenizer(teacher, tokenizer, remote)
    types = any(map(accepts_token_type_ids, teachers)) or None
    encoding = RowEncoder(columns, tokenizer, job.data, numbers, types, config.num_labels)
    data = task.tokenize(splits, encoding)
    if splits and not task.labelled:
        data["evaluation"] = mask_once(data["evaluation"], tokenizer, job.training.seed)
    return PreparedJob(task, encoding, splits, data, model, tuned, teachers)


def _check_same_tokenizer(teacher: str, tokenizer: PreTrainedTokenizerBase, remote: bool) -> None:
    """Raises ValueError: the teacher called so was taught other tokens than the tokenizer makes."""
    try:
        taught = AutoTokenizer.from_pretrained(teacher, trust_remote_code=remote).get_vocab()
    except OSError:
        logger.warning(f"teacher {teacher!r} comes without a tokenizer: it is taken to read the student's tokens")
        return
    vocabulary = tokenizer.get_vocab()
    if taught != vocabulary:
        other = next((token for token, index in vocabulary.items() if taught.get(token) != index), "one more")
        raise UserError(
            f"the tokenizer of the teacher {teacher!r} differs from the student's ({len(taught)} tokens and "
            f"{len(vocabulary)}, not the same for {other!r}): they must share one"
        )


def create_student(models: ModelConfig, teacher: PreTrainedModel) -> tuple[PreTrainedModel, str]:
    """Return the student that the flags make of `teacher`, and what it is in words."""
    if models.student_layers:
        return student_from_layers(teacher, models.student_layers), f"student: layers {models.student_layers} of it"
    return student_from_config(teacher, str(models.student_config)), f"student: new, with {models.student_config}"


def trim_job_vocabulary(ready: PreparedJob) -> tuple[PreparedJob, torch.Tensor]:
    """Return the model, its tokenizer and the data with only the tokens of the training data, and their old ids."""
    tokenizer = ready.encoding.tokenizer
    texts = iterate_texts(ready.rows["train"], ready.task, ready.encoding.columns)
    prefix = ready.encoding.data.source_prefix or ""
    small = trim_vocabulary(ready.model, tokenizer, find_used_tokens(itertools.chain([prefix], texts), tokenizer))
    encoding = dataclasses.replace(ready.encoding, tokenizer=small.tokenizer)
    data = ready.task.tokenize(ready.rows, encoding)
    return dataclasses.replace(ready, model=small.model, encoding=encoding, data=data), small.token_ids
