"""What people fine-tune: each task is one entry, with its columns, its tokens and its metric."""

from __future__ import annotations

from datasets import DatasetDict
from transformers import PreTrainedConfig

from hf_efficient.data import DataConfig
from hf_efficient.tasks.choices import CHOICES
from hf_efficient.tasks.classification import CLASSIFICATION, REGRESSION, SEVERAL
from hf_efficient.tasks.masked import MASKED_TEXT
from hf_efficient.tasks.spans import SPANS
from hf_efficient.tasks.task import Columns, Encoding, Task, find_columns, texts_of, without_notes
from hf_efficient.tasks.tokens import TOKENS
from hf_efficient.tasks.writing import SUMMARIZATION, TRANSLATION

__all__ = [
    "TASKS",
    "Columns",
    "Encoding",
    "Task",
    "find_columns",
    "infer_task",
    "task_named",
    "texts_of",
    "without_notes",
]

# In the order in which data is asked whose it is; the last takes what nobody claims.
TASKS = {
    task.name: task
    for task in (
        TRANSLATION,
        SUMMARIZATION,
        SPANS,
        TOKENS,
        CHOICES,
        SEVERAL,
        REGRESSION,
        MASKED_TEXT,
        CLASSIFICATION,
    )
}


def task_named(name: str) -> Task:
    """Returns the task called `name`. Raises ValueError: there is none."""
    if name not in TASKS:
        raise ValueError(f"task={name!r} is not supported: give one of {', '.join(TASKS)}")
    return TASKS[name]


def infer_task(config: PreTrainedConfig, splits: DatasetDict, data: DataConfig) -> Task:
    """Returns the task of a fine-tuned model, or, when it has no task head yet, of the data; `splits` may be empty.

    Raises ValueError: the model has the head of a task that is not supported.
    """
    head = (config.architectures or [""])[0].partition("For")[2]
    if head == "SequenceClassification":
        if config.problem_type == "multi_label_classification":
            return SEVERAL
        return REGRESSION if config.problem_type == "regression" or config.num_labels == 1 else CLASSIFICATION
    if head == "ConditionalGeneration":
        return TRANSLATION if splits and TRANSLATION.recognize(splits, data) else SUMMARIZATION
    of_head = {task.head: task for task in (SPANS, TOKENS, CHOICES)}
    if f"For{head}" in of_head:
        return of_head[f"For{head}"]
    if head in ("", "MaskedLM", "PreTraining"):
        claims = (task for task in TASKS.values() if splits and not task.writes and task.recognize(splits, data))
        return next(claims, CLASSIFICATION)
    raise ValueError(
        f"cannot tell the task from {config.architectures}: give --task, one of {', '.join(TASKS)}, and a base model"
    )
