"""What each task needs: its Auto class, its columns, its metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optimum.exporters.tasks import TasksManager
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedConfig, PreTrainedTokenizerBase

from hf_efficient.masking import MaskingCollator, judge_guesses
from hf_efficient.measurement.metrics import classification_metrics, guessing_metrics, regression_metrics

TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("sentence",),
    ("text",),
    ("content",),
    ("review",),
)
LABEL_COLUMNS = ("label", "labels", "target", "score")


@dataclass(frozen=True)
class Task:
    """A kind of job: `name` is what Transformers calls it, `metric` the number that counts.

    | field | meaning |
    | --- | --- |
    | metrics | from what the model answers and the labels to numbers by name |
    | collator | makes the data collator of a tokenizer |
    | reduce_logits | makes of (logits, labels) what `metrics` is given, where the logits are too many to keep |
    | labelled | the data has a column of labels; otherwise labels are made of the text |
    """

    name: str
    pipeline: str
    metric: str
    metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    text_columns: Sequence[tuple[str, ...]] = TEXT_COLUMNS
    label_columns: Sequence[str] = LABEL_COLUMNS
    collator: Callable[[PreTrainedTokenizerBase], Any] = DataCollatorWithPadding
    reduce_logits: Callable[[Any, Any], Any] | None = None
    labelled: bool = True

    @property
    def auto_class(self) -> Any:
        """The Auto class that loads a model for the task."""
        return TasksManager.get_model_class_for_task(self.pipeline)

    @property
    def head(self) -> str:
        """How the names of classes with the task's head end, "ForSequenceClassification"."""
        return str(self.auto_class.__name__).removeprefix("AutoModel")

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Returns the task's metrics of logits against labels, as `Trainer` asks for them."""
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        return self.metrics(logits, prediction.label_ids)


TASKS = {
    task.name: task
    for task in (
        Task("text-classification", "text-classification", "accuracy", classification_metrics),
        Task("regression", "text-classification", "spearman", regression_metrics),
        Task(
            "fill-mask",
            "fill-mask",
            "accuracy",
            guessing_metrics,
            text_columns=tuple(columns for columns in TEXT_COLUMNS if len(columns) == 1),
            collator=MaskingCollator,
            reduce_logits=judge_guesses,
            labelled=False,
        ),
    )
}


def task_named(name: str) -> Task:
    """Returns the task called `name`. Raises ValueError: there is none."""
    if name not in TASKS:
        raise ValueError(f"task={name!r} is not supported: give one of {', '.join(TASKS)}")
    return TASKS[name]


def infer_task(config: PreTrainedConfig, labels_are_numbers: bool) -> Task:
    """Returns the task of a fine-tuned model, or, when it has no task head yet, of data with such labels.

    Raises ValueError: the model has the head of a task that is not supported.
    """
    head = (config.architectures or [""])[0].partition("For")[2]
    if head == "SequenceClassification":
        return TASKS[
            "regression" if config.problem_type == "regression" or config.num_labels == 1 else "text-classification"
        ]
    if head in ("", "MaskedLM", "PreTraining"):
        return TASKS["regression" if labels_are_numbers else "text-classification"]
    raise ValueError(
        f"cannot tell the task from {config.architectures}: give --task, one of {', '.join(TASKS)}, and a base model"
    )
