"""Which task a model or a dataset is for."""

from __future__ import annotations

from datasets import DatasetDict
from transformers import PreTrainedConfig

from hf_efficient.data.class_columns import merge_class_columns
from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.models.inputs import task_head_of
from hf_efficient.models.sentence_files import has_sentence_modules
from hf_efficient.tasks import TASKS
from hf_efficient.tasks.classification import has_lists_of_labels
from hf_efficient.tasks.seq2seq import TRANSLATION_COLUMN
from hf_efficient.tasks.task import Task

TASK_BY_HEAD = {
    "QuestionAnswering": "question-answering",
    "TokenClassification": "token-classification",
    "MultipleChoice": "multiple-choice",
}
OTHER_NAMES = {"feature-extraction": "sentence-similarity"}
# Heads of models that are not fine-tuned for a task yet.
PRETRAINED_HEADS = ("", "MaskedLM", "PreTraining")


def get_task(name: str) -> Task:
    """Return the task with this name. Raises UserError if there is none."""
    name = OTHER_NAMES.get(name, name)
    if name not in TASKS:
        raise UserError(f"task={name!r} is not supported: give one of {', '.join(TASKS)}")
    return TASKS[name]


def reads_plain_text(task: str | None, model_name: str) -> bool:
    """Whether the task of this name, or without one that of the model, learns from texts alone, each in a line."""
    if task is None:
        return has_sentence_modules(model_name)
    return OTHER_NAMES.get(task, task) == "sentence-similarity"


def infer_task(config: PreTrainedConfig, splits: DatasetDict, data: DataConfig) -> Task:
    """Return the task of a fine-tuned model, or the task that fits the data if the model has no task head.

    `splits` may be empty. Raises UserError if the model has the head of a task that is not supported.
    """
    head = task_head_of((config.architectures or [""])[0])
    if head == "SequenceClassification":
        return TASKS[_sequence_classification_task(config, splits, data)]
    if head == "ConditionalGeneration":
        translation = TASKS["translation"]
        return translation if splits and translation.matches(splits, data) else TASKS["summarization"]
    if head in TASK_BY_HEAD:
        return TASKS[TASK_BY_HEAD[head]]
    if head in PRETRAINED_HEADS and config._name_or_path and has_sentence_modules(config._name_or_path):
        return TASKS["sentence-similarity"]
    if head in PRETRAINED_HEADS:
        matching = (task for task in TASKS.values() if splits and not task.generates and task.matches(splits, data))
        return next(matching, TASKS["text-classification"])
    raise UserError(
        f"cannot tell the task from {config.architectures}: give --task, one of {', '.join(TASKS)}, and a base model"
    )


def with_label_column(splits: DatasetDict, data: DataConfig) -> tuple[DatasetDict, DataConfig]:
    """Return the data with one label column, also if each class has a column, see `merge_class_columns`."""
    if not splits:
        return splits, data
    label_columns = {name for task in TASKS.values() for name in task.label_columns}
    return merge_class_columns(splits, data, label_columns | {TRANSLATION_COLUMN})


def _sequence_classification_task(config: PreTrainedConfig, splits: DatasetDict, data: DataConfig) -> str:
    if config.problem_type == "regression" or config.num_labels == 1:
        return "text-ranking" if splits and TASKS["text-ranking"].matches(splits, data) else "regression"
    if config.problem_type == "multi_label_classification":
        return "multi-label-classification"
    has_lists = config.problem_type is None and splits and has_lists_of_labels(splits, data)
    return "multi-label-classification" if has_lists else "text-classification"
