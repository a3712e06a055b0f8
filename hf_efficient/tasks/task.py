"""What a task is: which columns it reads, how they become tokens, and what its answers are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict
from optimum.exporters.tasks import TasksManager
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedConfig, PreTrainedTokenizerBase

from hf_efficient.data.config import SOURCE_FIELDS, DataConfig
from hf_efficient.errors import UserError

Batch: TypeAlias = Mapping[str, list[Any]]
Metrics: TypeAlias = Callable[[EvalPrediction], dict[str, float]]

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
# Columns of encoded rows that no model reads: the number of the row that each is of, and where its tokens stand.
IGNORED = -100  # the label of what does not count
EXAMPLE, PLACES = "example", "offset_mapping"


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads; `label` is None where there are no labels to learn from."""

    texts: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class RowEncoder:
    """How rows become tokens.

    `numbers` holds the model's number of each label value, None where values are numbers already; `classes` is how
    many it has. `token_types` asks for types of tokens; None: where the tokenizer's model reads them.
    """

    columns: Columns
    tokenizer: PreTrainedTokenizerBase
    data: DataConfig
    numbers: Mapping[Any, int] | None = None
    token_types: bool | None = None
    classes: int = 0

    def tokens(self, *texts: Any, **settings: Any) -> dict[str, Any]:
        """Return the ids of texts, cut to the longest that is allowed."""
        settings = {"truncation": True, "max_length": self.data.max_length, **settings}
        return dict(self.tokenizer(*texts, return_token_type_ids=self.token_types, **settings))

    def labels(self, batch: Batch) -> list[Any] | None:
        """Return the labels of a batch, None where there are none."""
        return None if self.columns.label is None else batch.get(self.columns.label)

    def number(self, value: Any) -> Any:
        """Return what the model calls a label."""
        return value if self.numbers is None else self.numbers[value]


@dataclass(frozen=True)
class Task:
    """A kind of job: `name` is what Transformers calls it, `metric` the number that counts.

    | field | meaning |
    | --- | --- |
    | pipeline | the name of the pipeline that runs such models |
    | encode | from rows, with their numbers as `EXAMPLE`, to what a model reads; there may be more rows then |
    | judge | from rows, their encoded form, the encoding and the model's config to `compute_metrics` of a `Trainer` |
    | recognize | whether rows are for this task, by their columns; asked where neither flags nor model tell |
    | find | the columns, where their names are not enough to tell |
    | collator | makes the data collator of a tokenizer |
    | problem_type | what Transformers calls the loss of a classifier |
    | reduce_logits | makes of (logits, labels) what `judge` is given, where the logits are too many to keep |
    | labelled | the data has a column of labels; otherwise labels are made of the text |
    | classes | labels are classes of the model, with names |
    | writes | answers are generated text |
    """

    name: str
    pipeline: str
    metric: str
    encode: Callable[[Batch, RowEncoder], dict[str, Any]]
    judge: Callable[[Dataset, Dataset, RowEncoder, PreTrainedConfig], Metrics]
    recognize: Callable[[DatasetDict, DataConfig], bool] = lambda splits, data: False
    find: Callable[[DatasetDict, DataConfig], Columns | None] = lambda splits, data: None
    text_columns: Sequence[tuple[str, ...]] = TEXT_COLUMNS
    label_columns: Sequence[str] = LABEL_COLUMNS
    collator: Callable[[PreTrainedTokenizerBase], Any] = DataCollatorWithPadding
    problem_type: str | None = None
    reduce_logits: Callable[[Any, Any], Any] | None = None
    labelled: bool = True
    classes: bool = True
    writes: bool = False

    @property
    def auto_class(self) -> Any:
        """The Auto class that loads a model for the task."""
        return TasksManager.get_model_class_for_task(self.pipeline)

    @property
    def head(self) -> str:
        """How the names of classes with the task's head end, "ForSequenceClassification"."""
        return "ForConditionalGeneration" if self.writes else str(self.auto_class.__name__).removeprefix("AutoModel")

    def tokenize(self, splits: DatasetDict, encoding: RowEncoder) -> DatasetDict:
        """Return the splits as token ids, not padded yet, with labels where there are any."""
        # `datasets` would take other rows to evaluate on for other rows to train on, and ask the teacher again.
        elsewhere: dict[str, Any] = dict.fromkeys(SOURCE_FIELDS)
        encoding = replace(encoding, data=replace(encoding.data, **elsewhere))

        def convert(batch: Batch, numbers: list[int]) -> dict[str, Any]:
            return self.encode({**batch, EXAMPLE: numbers}, encoding)

        def apply(split: Dataset, name: str) -> Dataset:
            settings = {"batched": True, "with_indices": True, "remove_columns": split.column_names}
            return split.map(convert, desc=f"tokenizing {name}", **settings)

        return DatasetDict({name: apply(split, name) for name, split in splits.items()})


def get_logits(prediction: EvalPrediction) -> Any:
    """Return the logits of a prediction, the first of what a model answers."""
    return prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions


def find_columns(splits: DatasetDict, task: Task, config: DataConfig, needs_labels: bool = True) -> Columns:
    """Return the columns that the flags name, or that have usual names.

    Without `needs_labels` the training data may have none: only the evaluation data is read for them then.

    Raises ValueError: a column is missing; the message lists those that are there and the flags that name one.
    """
    found = task.find(splits, config)
    if found is not None:
        return found
    there = splits["train"].column_names
    everywhere = [*there, *(() if needs_labels else splits["evaluation"].column_names)]
    for flag in ("text_column", "text_pair_column", "label_column", "summary_column"):
        column = getattr(config, flag)
        if column is not None and column not in (everywhere if flag.startswith(("label", "summary")) else there):
            raise UserError(f"{flag}={column!r} is no column of the data, which has {', '.join(there)}")
    if config.text_column:
        texts: tuple[str, ...] | None = tuple(c for c in (config.text_column, config.text_pair_column) if c)
    else:
        texts = next((names for names in task.text_columns if set(names) <= set(there)), None)
    labelled = splits["train"] if needs_labels else splits["evaluation"]
    label = (
        config.label_column
        or config.summary_column
        or next((name for name in task.label_columns if name in labelled.column_names), None)
    )
    needs_labels = needs_labels and task.labelled
    label = label if task.labelled else None
    if texts is None or (label is None and needs_labels):
        missing = "--text_column (and --text_pair_column)" if texts is None else "--label_column"
        raise UserError(f"cannot tell which of the columns {', '.join(there)} is which: give {missing}")
    absent = [c for c in (*texts, label) if c is not None and c not in splits["evaluation"].column_names]
    if absent:
        raise UserError(f"the evaluation data lacks the column {', '.join(absent)} of the training data")
    return Columns(texts, label)


def iterate_texts(rows: Dataset, task: Task, columns: Columns) -> Iterator[str]:
    """Yield every text of the rows: what is read, and what is to be written."""
    written = [columns.label] if task.writes and columns.label is not None else []
    for name in dict.fromkeys((*columns.texts, *written)):
        for value in rows[name]:
            if isinstance(value, dict):
                yield from value.values()
            else:
                yield " ".join(value) if isinstance(value, list) else value


def model_columns(rows: Dataset) -> Dataset:
    """Return encoded rows with just what a model reads."""
    return rows.remove_columns([name for name in (EXAMPLE, PLACES) if name in rows.column_names])
