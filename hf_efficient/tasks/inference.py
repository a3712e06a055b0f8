"""Which task a model or a dataset is for."""

from __future__ import annotations

from datasets import DatasetDict
from transformers import PreTrainedConfig

from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.tasks import TASKS
from hf_efficient.tasks.task import Task

TASK_BY_HEAD = {
    "QuestionAnswering": "question-answering",
    "TokenClassification": "token-classification",
    "MultipleChoice": "multiple-choice",
}
# Heads of models that are not fine-tuned for a task yet.
PRETRAINED_HEADS = ("", "MaskedLM", "PreTraining")


def get_task(name: str) -> Task:
    """Return the task with this name. Raises UserError if there is none."""
    if name not in TASKS:
        raise UserError(f"task={name!r} is not supported: give one of {', '.join(TASKS)}")
    return TASKS[name]


def infer_task(config: PreTrainedConfig, splits: DatasetDict, data: DataConfig) -> Task:
    """Return the task of a fine-tuned model, or the task that fits the data if the model has no task head.

    `splits` may be empty. Raises UserError if the model has the head of a task that is not supported.
    """
    head = (config.architectures or [""])[0].partition("For")[2]
    if head == "SequenceClassification":
        return TASKS[_sequence_classification_task(config)]
    if head == "ConditionalGeneration":
        translation = TASKS["translation"]
        return translation if splits and translation.matches(splits, data) else TASKS["summarization"]
    if head in TASK_BY_HEAD:
        return TASKS[TASK_BY_HEAD[head]]
    if head in PRETRAINED_HEADS:
        matching = (task for task in TASKS.values() if splits and not task.generates and task.matches(splits, data))
        return next(matching, TASKS["text-classification"])
    raise UserError(
        f"cannot tell the task from {config.architectures}: give --task, one of {', '.join(TASKS)}, and a base model"
    )


def _sequence_classification_task(config: PreTrainedConfig) -> str:
    if config.problem_type == "multi_label_classification":
        return "multi-label-classification"
    is_regression = config.problem_type == "regression" or config.num_labels == 1
    return "regression" if is_regression else "text-classification"
