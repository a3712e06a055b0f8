"""Preparation of a job: its task, its model and teachers, and its data as the model reads it."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from datasets import DatasetDict
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_efficient.commands.config import JobConfig, ModelConfig
from hf_efficient.commands.heads import configure_head
from hf_efficient.commands.pretrained import (
    explain_loading_errors,
    has_vocabulary,
    load_config,
    load_model,
    load_tokenizer,
)
from hf_efficient.data.columns import Columns
from hf_efficient.data.label_checks import check_classes
from hf_efficient.data.label_names import model_label_names, set_label_names
from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.distillation.students import student_from_config, student_from_layers
from hf_efficient.distillation.teacher import load_teacher
from hf_efficient.distillation.teacher_tokens import TeacherTokensCollator, add_teacher_tokens
from hf_efficient.errors import UserError
from hf_efficient.models.inputs import accepts_token_type_ids
from hf_efficient.models.sentence_files import fit_sentence_modules
from hf_efficient.pruning.vocabulary import SplitWords, count_split_words, find_used_tokens, trim_vocabulary
from hf_efficient.tasks.class_ids import describe_data, find_class_ids
from hf_efficient.tasks.inference import get_task, infer_task, with_label_column
from hf_efficient.tasks.input_length import bound_max_length
from hf_efficient.tasks.score_activation import configure_score_loss
from hf_efficient.tasks.task import RowEncoder, Task, iterate_texts, model_columns
from hf_efficient.tasks.tokenizers import adapt_tokenizer

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class PreparedJob:
    """What a trainer works on.

    | field | meaning |
    | --- | --- |
    | encoder | turns rows into token ids and label ids |
    | raw_splits, tokenized_splits | the data as it is in the files, and as the model reads it |
    | is_fine_tuned | whether the model has the head of the task already |
    | teachers | the teachers that were named |
    | teacher_tokenizer | of a teacher that reads the texts by another tokenizer than the student's |
    """

    task: Task
    encoder: RowEncoder
    raw_splits: DatasetDict
    tokenized_splits: DatasetDict
    model: PreTrainedModel
    is_fine_tuned: bool
    teachers: tuple[PreTrainedModel, ...]
    teacher_tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def compute_metrics(self) -> Any:
        """The metrics of predictions on the evaluation data; None where there is none."""
        if len(self.raw_splits) == 0:
            return None
        return self.task.build_compute_metrics(
            self.raw_splits["evaluation"], self.tokenized_splits["evaluation"], self.encoder, self.model.config
        )

    @property
    def metric_settings(self) -> dict[str, str]:
        """What the metrics depend on, for the report."""
        if len(self.raw_splits) == 0 or self.task.metric_settings is None:
            return {}
        return self.task.metric_settings(self.raw_splits["evaluation"], self.encoder)

    def fit_distillation(self, config: DistillationConfig) -> DistillationConfig:
        """Return `config` without the loss on labels, if the training data has none and the task needs none."""
        train = self.tokenized_splits.get("train")
        if self.task.has_optional_labels and train is not None and "labels" not in train.column_names:
            config = dataclasses.replace(config, hard_label_weight=0.0, hard_label_weight_end=None)
        if self.teacher_tokenizer is None:
            return config
        if config.uses_intermediate_outputs:
            raise UserError(
                "the teacher has another tokenizer than the student, so its hidden states, attention and relations "
                "are those of other tokens: leave out hidden_weight, embedding_weight, attention_weight and "
                "relation_weight"
            )
        return dataclasses.replace(config, hidden_weight=0.0)

    def trainer_kwargs(self) -> dict[str, Any]:
        """Return the arguments that every trainer of the job gets."""
        datasets = {
            name: model_columns(split, for_training=name == "train") for name, split in self.tokenized_splits.items()
        }
        return {
            "train_dataset": datasets.get("train"),
            "eval_dataset": datasets.get("evaluation"),
            "processing_class": self.encoder.tokenizer,
            "data_collator": self._collator(),
            "compute_metrics": self.compute_metrics,
            "preprocess_logits_for_metrics": self.task.reduce_logits,
        }

    def _collator(self) -> Any:
        collator = self.task.collator(self.encoder.tokenizer)
        if self.teacher_tokenizer is None:
            return collator
        return TeacherTokensCollator(collator, self.task.collator(self.teacher_tokenizer))


def prepare_job(config: JobConfig, splits: DatasetDict) -> PreparedJob:
    """Return the model, its teachers and the tokenized data, for the task that they are for.

    Raises UserError if a model cannot be loaded, or if models, tokenizers and data do not fit together.
    """
    name, trust_remote_code = config.model.model_name_or_path, config.model.trust_remote_code
    model_config = load_config(name, trust_remote_code)
    tokenizer = load_tokenizer(config.model.tokenizer_name or name, trust_remote_code)
    teacher_names = config.model.teacher_name_or_path or ()
    teacher_config = load_config(teacher_names[0], trust_remote_code) if teacher_names else None
    splits, data = with_label_column(splits, config.data)
    if config.model.task:
        task = get_task(config.model.task)
    else:
        task = infer_task(teacher_config or model_config, splits, data)
    if config.uses_distillation and config.distillation.margin_weight and task.name != "text-ranking":
        raise UserError(
            f"margin_weight compares documents of the same query, and the task is {task.name}: leave it out, or give "
            "--task text-ranking"
        )
    needs_labels = not config.uses_distillation or config.distillation.uses_labels
    has_data = len(splits) > 0
    columns = task.get_columns(splits, data, needs_labels) if has_data else Columns((), None)
    classes = task.find_classes(splits, columns)
    has_architecture = bool(model_config.architectures) or task.is_trained is not None
    is_fine_tuned = task.is_task_of(name, model_config.architectures or ())
    if not is_fine_tuned:
        configure_head(model_config, teacher_config, task, classes)
        if teacher_config is None and columns.label is None and task.has_labels:
            raise UserError(
                f"{name} has no head for {task.name} and the data has no labels to train one: give a fine-tuned "
                "model, or --label_column"
            )
    elif task.problem_type == "multi_label_classification":
        model_config.problem_type = task.problem_type
    if task.problem_type == "regression" and model_config.num_labels == 1:
        is_ranking = task.name == "text-ranking"
        configure_score_loss(model_config, teacher_config, splits, columns.label, is_ranking, not is_fine_tuned)
    names = model_label_names(model_config)
    set_label_names(model_config, names)
    label_to_id = None if classes is None else find_class_ids(task, classes, names)
    if classes is not None:
        check_classes(classes, has_head=is_fine_tuned or teacher_config is not None)
    adapt_tokenizer(tokenizer, model_config, task.needs_offsets, task.reads_words)
    attention = config.model.attn_implementation
    model, missing = load_model(
        task.auto_class,
        name,
        config=model_config,
        dtype=torch.float32,
        trust_remote_code=trust_remote_code,
        attn_implementation=attention,
    )
    is_fine_tuned = (is_fine_tuned or not has_architecture) and not missing
    needs_logits = config.uses_distillation and config.distillation.uses_logits
    teachers: list[PreTrainedModel] = []
    teacher_tokenizer: Any = None
    for teacher_name in teacher_names:
        with explain_loading_errors(teacher_name):
            teachers.append(load_teacher(teacher_name, task.auto_class, needs_logits, trust_remote_code, attention))
        own = _load_teacher_tokenizer(teacher_name, trust_remote_code)
        if own is not None and own.get_vocab() == tokenizer.get_vocab():
            _remove_unused_tokens(teachers[-1], model, tokenizer)
        elif own is not None:
            _check_own_tokenizer(config, task, teacher_name, own, tokenizer)
            teacher_tokenizer = own
    if teachers and not is_fine_tuned:
        fit_sentence_modules(teachers[0], model)
    return_token_type_ids = any(map(accepts_token_type_ids, teachers)) or None
    given_data, data = data, task.adapt_data(data, model)
    data = bound_max_length(data, tokenizer, [each.config for each in (model, *teachers)]) if has_data else data
    is_multi_hot = classes is not None and classes.is_multi_hot
    encoder = RowEncoder(
        columns, tokenizer, data, label_to_id, return_token_type_ids, model_config.num_labels, is_multi_hot
    )
    tokenized_splits = task.tokenize(splits, encoder)
    if teacher_tokenizer is not None:
        adapt_tokenizer(teacher_tokenizer, teachers[0].config, task.needs_offsets, task.reads_words)
        own_data = bound_max_length(task.adapt_data(given_data, teachers[0]), teacher_tokenizer, [teachers[0].config])
        own_encoder = dataclasses.replace(encoder, tokenizer=teacher_tokenizer, data=own_data)
        for split, rows in task.tokenize(splits, own_encoder).items():
            tokenized_splits[split] = add_teacher_tokens(tokenized_splits[split], rows)
    if has_data:
        logger.warning(describe_data(task, classes, names, splits, tokenized_splits, encoder))
        evaluation = task.complete_evaluation(tokenized_splits["evaluation"], tokenizer, config.training.seed)
        tokenized_splits["evaluation"] = evaluation
    return PreparedJob(
        task, encoder, splits, tokenized_splits, model, is_fine_tuned, tuple(teachers), teacher_tokenizer
    )


def _load_teacher_tokenizer(teacher_name: str, trust_remote_code: bool) -> Any:
    """Return the teacher's tokenizer; None if it has none."""
    with explain_loading_errors(teacher_name, "tokenizer"):
        try:
            tokenizer = AutoTokenizer.from_pretrained(teacher_name, trust_remote_code=trust_remote_code)
        except OSError:
            tokenizer = None
    if tokenizer is None or not has_vocabulary(tokenizer):
        logger.warning(f"teacher {teacher_name!r} has no tokenizer: the student's is used for both")
        return None
    return tokenizer


def _check_own_tokenizer(config: JobConfig, task: Task, teacher_name: str, own: Any, tokenizer: Any) -> None:
    """Raise UserError if the teacher cannot have a tokenizer of its own: what is learned depends on tokens."""
    reads_texts = task.loader is not None or task.head == "SequenceClassification"
    prunes = config.pruning.removes_anything or config.pruning.vocabulary
    if reads_texts and not prunes and len(config.model.teacher_name_or_path or ()) == 1:
        logger.warning(f"teacher {teacher_name!r} reads the texts by its own tokenizer, which is not the student's")
        return
    vocabulary, own_vocabulary = tokenizer.get_vocab(), own.get_vocab()
    differing = (token for token, index in vocabulary.items() if own_vocabulary.get(token) != index)
    raise UserError(
        f"the tokenizer of the teacher {teacher_name!r} differs from the student's ({len(own_vocabulary)} and "
        f"{len(vocabulary)} tokens, the first difference is {next(differing, 'an additional token')!r}): teacher "
        "and student must share one tokenizer, except for one teacher of embeddings or classes of texts, and without "
        "pruning"
    )


def _remove_unused_tokens(
    teacher: PreTrainedModel, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Remove the rows of the larger of the two tables of tokens that only round up its size, and no token has."""
    sizes = teacher.config.vocab_size, model.config.vocab_size
    if sizes[0] == sizes[1] or min(sizes) <= max(tokenizer.get_vocab().values()):
        return
    larger = teacher if sizes[0] > sizes[1] else model
    logger.warning(f"the tables of teacher and student have {sizes[0]} and {sizes[1]} tokens: {min(sizes)} are kept")
    larger.resize_token_embeddings(min(sizes))


def create_student(config: ModelConfig, teacher: PreTrainedModel) -> tuple[PreTrainedModel, str]:
    """Return the student that the flags create from `teacher`, and a description of it for the report."""
    if config.student_layers:
        student = student_from_layers(teacher, config.student_layers)
        return student, f"student: layers {config.student_layers} of the teacher"
    student = student_from_config(teacher, str(config.student_config))
    return student, f"student: new model, {config.student_config}"


def trim_job_vocabulary(prepared: PreparedJob) -> tuple[PreparedJob, torch.Tensor, SplitWords]:
    """Return the job with a model, tokenizer and data of the training tokens only, and the original ids of these.

    The words of the evaluation data that fall into more pieces are returned too.
    """
    tokenizer, columns = prepared.encoder.tokenizer, prepared.encoder.columns
    texts = iterate_texts(prepared.raw_splits["train"], prepared.task, columns)
    prefix = prepared.encoder.data.source_prefix or ""
    used_tokens = find_used_tokens(itertools.chain([prefix], texts), tokenizer)
    trimmed = trim_vocabulary(prepared.model, tokenizer, used_tokens)
    encoder = dataclasses.replace(prepared.encoder, tokenizer=trimmed.tokenizer)
    tokenized_splits = prepared.task.tokenize(prepared.raw_splits, encoder)
    trimmed_job = dataclasses.replace(
        prepared, model=trimmed.model, encoder=encoder, tokenized_splits=tokenized_splits
    )
    evaluated = iterate_texts(prepared.raw_splits["evaluation"], prepared.task, columns)
    return trimmed_job, trimmed.token_ids, count_split_words(evaluated, tokenizer, trimmed.tokenizer)
