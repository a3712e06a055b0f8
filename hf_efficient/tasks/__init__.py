"""What people fine-tune: each task is one entry, with its columns, its tokens and its metric."""

from __future__ import annotations

from datasets import DatasetDict
from transformers import PreTrainedConfig

from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.tasks.classification import CLASSIFICATION, MULTI_LABEL, REGRESSION
from hf_efficient.tasks.masked_lm import MASKED_LM
from hf_efficient.tasks.multiple_choice import CHOICES
from hf_efficient.tasks.question_answering import QUESTION_ANSWERING
from hf_efficient.tasks.seq2seq import SUMMARIZATION, TRANSLATION
from hf_efficient.tasks.task import Columns, RowEncoder, Task, find_columns, iterate_texts, model_columns
from hf_efficient.tasks.token_classification import TOKEN_CLASSIFICATION

__all__ = [
    "TASKS",
    "Columns",
    "RowEncoder",
    "Task",
    "find_columns",
    "get_task",
    "infer_task",
    "iterate_texts",
    "model_columns",
]

# In the order in which data is asked whose it is; the last takes what nobody claims.
TASKS = {
    task.name: task
    for task in (
        TRANSLATION,
        SUMMARIZATION,
        QUESTION_ANSWERING,
        TOKEN_CLASSIFICATION,
        CHOICES,
        MULTI_LABEL,
        REGRESSION,
        MASKED_LM,
        CLASSIFICATION,
    )
}


def get_task(name: str) -> Task:
    """Return the task called `name`. Raises ValueError: there is none."""
    if name not in TASKS:
        raise UserError(f"task={name!r} is not supported: give one of {', '.join(TASKS)}")
    return TASKS[name]


def infer_task(config: PreTrainedConfig, splits: DatasetDict, data: DataConfig) -> Task:
    """Return the task of a fine-tuned model, or, when it has no task head yet, of the data; `splits` may be empty.

    Raises ValueError: the model has the head of a task that is not supported.
    """
    head = (config.architectures or [""])[0].partition("For")[2]
    if head == "SequenceClassification":
        if config.problem_type == "multi_label_classification":
            return MULTI_LABEL
        return REGRESSION if config.problem_type == "regression" or config.num_labels == 1 else CLASSIFICATION
    if head == "ConditionalGeneration":
        return TRANSLATION if splits and TRANSLATION.recognize(splits, data) else SUMMARIZATION
    of_head = {task.head: task for task in (QUESTION_ANSWERING, TOKEN_CLASSIFICATION, CHOICES)}
    if f"For{head}" in of_head:
        return of_head[f"For{head}"]
    if head in ("", "MaskedLM", "PreTraining"):
        claims = (task for task in TASKS.values() if splits and not task.writes and task.recognize(splits, data))
        return next(claims, CLASSIFICATION)
    raise UserError(
        f"cannot tell the task from {config.architectures}: give --task, one of {', '.join(TASKS)}, and a base model"
    )
