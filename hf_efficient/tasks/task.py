"""What a task is: which columns it uses, how they become tokens, and how its predictions are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset, DatasetDict
from optimum.exporters.tasks import TasksManager
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_efficient.data.columns import Columns, find_columns
from hf_efficient.data.config import SOURCE_FIELDS, DataConfig
from hf_efficient.data.labels import Classes, ReadLabels, find_classes
from hf_efficient.data.texts import check_texts
from hf_efficient.measurement.row_metrics import RowMetric
from hf_efficient.models.inputs import QUERY, task_head_of

Batch: TypeAlias = Mapping[str, list[Any]]

# Common names of text columns; columns of one tuple are read together.
TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence_A", "sentence_B"),  # SICK
    ("#1 String", "#2 String"),  # Microsoft's paraphrase corpus
    ("text", "text_pair"),
    ("sentence",),
    ("text",),
    ("content",),
    ("review",),
)
# The pipeline with the same models, of those that the Hub knows and Transformers does not.
PIPELINES_OF_MODELS = {"text-ranking": "text-classification"}
LABEL_COLUMNS = ("label", "labels", "target", "score", "Quality")
IGNORE_INDEX = -100  # the label of tokens that the loss and the metrics ignore
# In front of the names of encoded columns within `map`, which else gives them the types of raw columns of these names.
ENCODED = "encoded "
# Columns of tokenized rows that no model reads: the index of the raw row, and the characters of each token.
EXAMPLE_INDEX, OFFSETS = "example", "offset_mapping"


@dataclass(frozen=True)
class RowEncoder:
    """Everything that a task needs to turn rows into token ids.

    | field | meaning |
    | --- | --- |
    | label_to_id | the model's id of each label value; None if the values are ids already |
    | is_multi_hot | the labels of a row are a vector of 0 and 1; `label_to_id` has the id of each entry |
    | return_token_type_ids | as for the tokenizer; None: if the tokenizer's model reads them |
    | num_labels | number of classes of the model |
    | score_range | lowest and highest score of the similarity of texts, which are scaled to 0 and 1 |
    """

    columns: Columns
    tokenizer: PreTrainedTokenizerBase
    data: DataConfig
    label_to_id: Mapping[Any, int] | None = None
    return_token_type_ids: bool | None = None
    num_labels: int = 0
    is_multi_hot: bool = False
    score_range: tuple[float, float] = (0.0, 1.0)

    def tokenize(self, *texts: Any, **options: Any) -> dict[str, Any]:
        """Return the token ids of texts, or of pairs of texts, truncated to `max_length`."""
        options = {"truncation": True, "max_length": self.data.max_length, **options}
        return dict(self.tokenizer(*texts, return_token_type_ids=self.return_token_type_ids, **options))

    def get_labels(self, batch: Batch) -> list[Any] | None:
        """Return the labels of a batch; None if it has none."""
        return None if self.columns.label is None else batch.get(self.columns.label)

    def label_id(self, value: Any) -> Any:
        """Return the model's id of a label value."""
        return value if self.label_to_id is None else self.label_to_id[value]


def check_row_texts(split: Dataset, name: str, encoder: RowEncoder) -> None:
    """Raise UserError if a text column has a cell that is not a text; `name` is the name of the split."""
    check_texts(split, name, encoder.columns.texts)


@dataclass(frozen=True)
class TaskMetrics:
    """The `compute_metrics` of a task, which also gives its metrics as functions of the rows, for intervals.

    | field | meaning |
    | --- | --- |
    | read | from a prediction to what the metrics are computed from, such as logits and labels |
    | compute | from that to the metrics, by name |
    | compute_by_row | from that to those of the metrics that can be resampled; see `row_metrics` |
    """

    read: Callable[[EvalPrediction], tuple[Any, ...]]
    compute: Callable[..., dict[str, float]]
    compute_by_row: Callable[..., dict[str, RowMetric]]

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the metrics of a prediction."""
        return self.compute(*self.read(prediction))

    def by_row(self, prediction: EvalPrediction) -> dict[str, RowMetric]:
        """Return the metrics of a prediction that can be resampled, as functions of how often each row counts."""
        return self.compute_by_row(*self.read(prediction))


@dataclass(frozen=True)
class Task:
    """One task, such as text classification.

    | field | meaning |
    | --- | --- |
    | name | the value of `--task` |
    | pipeline | the name of the pipeline that runs such models |
    | metric | the main metric of `build_compute_metrics` |
    | encode | turns a batch of rows, with their indices in `EXAMPLE_INDEX`, into model inputs; may return more rows |
    | build_compute_metrics | from raw rows, tokenized rows, encoder and model config to a `compute_metrics` function |
    | matches | whether a dataset is for this task; used if neither the flags nor the model determine the task |
    | find_columns | finds the columns of a task whose column names vary; None: by `text_columns` and `label_columns` |
    | text_columns, label_columns | common names of the columns |
    | collator | builds the data collator from a tokenizer |
    | problem_type | `config.problem_type` of a classifier |
    | reduce_logits | from (logits, labels) to smaller predictions, if all logits would not fit in memory |
    | metric_settings | from raw rows and encoder to what the metrics depend on, for the report |
    | check_rows | raises UserError if a row of a split, which has a name, cannot be encoded |
    | read_labels | returns the labels of a row, if it can have several |
    | names_classes | classes must have names, which the metric reads, such as O and B-PER |
    | needs_offsets | the tokenizer must tell which characters its tokens stand for |
    | reads_words | a row is a list of words |
    | has_labels | the dataset has a column of labels; if not, labels are made from the text |
    | has_optional_labels | a teacher alone is enough to train on data without labels |
    | has_classes | labels are named classes of the model |
    | generates | predictions are generated text |
    | loader | loads a model for the task; None: the Auto class of the pipeline |
    | is_trained | whether the model of a name is trained for the task; None: if it has the head of the task |
    | fit_encoder | from raw splits and encoder to the encoder with what it must know of all rows |
    | adapt_data | from settings of the data and model to the settings that this model needs |
    | complete_evaluation | from tokenized evaluation rows, tokenizer and seed to the rows with all their labels |
    """

    name: str
    pipeline: str
    metric: str
    encode: Callable[[Batch, RowEncoder], dict[str, Any]]
    build_compute_metrics: Callable[[Dataset, Dataset, RowEncoder, PreTrainedConfig], TaskMetrics]
    matches: Callable[[DatasetDict, DataConfig], bool] = lambda splits, data: False
    find_columns: Callable[[DatasetDict, DataConfig], Columns] | None = None
    text_columns: Sequence[tuple[str, ...]] = TEXT_COLUMNS
    label_columns: Sequence[str] = LABEL_COLUMNS
    collator: Callable[[PreTrainedTokenizerBase], Any] = DataCollatorWithPadding
    problem_type: str | None = None
    reduce_logits: Callable[[Any, Any], Any] | None = None
    metric_settings: Callable[[Dataset, RowEncoder], dict[str, str]] | None = None
    check_rows: Callable[[Dataset, str, RowEncoder], None] = check_row_texts
    read_labels: ReadLabels | None = None
    names_classes: bool = False
    needs_offsets: bool = False
    reads_words: bool = False
    has_labels: bool = True
    has_optional_labels: bool = False
    has_classes: bool = True
    generates: bool = False
    loader: Any = None
    is_trained: Callable[[str], bool] | None = None
    fit_encoder: Callable[[DatasetDict, RowEncoder], RowEncoder] | None = None
    adapt_data: Callable[[DataConfig, PreTrainedModel], DataConfig] = lambda data, model: data
    complete_evaluation: Callable[[Dataset, PreTrainedTokenizerBase, int], Dataset] = lambda rows, tokenizer, seed: (
        rows
    )

    @property
    def auto_class(self) -> Any:
        """The Auto class that loads a model for the task."""
        if self.loader is not None:
            return self.loader
        return TasksManager.get_model_class_for_task(PIPELINES_OF_MODELS.get(self.pipeline, self.pipeline))

    @property
    def head(self) -> str:
        """The head of the task, as `task_head_of` returns it, such as "SequenceClassification"."""
        if self.loader is not None:
            return ""
        return "ConditionalGeneration" if self.generates else self.auto_class.__name__.removeprefix("AutoModelFor")

    def is_task_of(self, name: str, architectures: Sequence[str]) -> bool:
        """Whether the model of this name and these architectures is trained for the task, as far as its files say."""
        if self.is_trained is not None:
            return self.is_trained(name)
        return bool(architectures) and task_head_of(architectures[0]) == self.head

    def get_columns(self, splits: DatasetDict, data: DataConfig, needs_labels: bool = True) -> Columns:
        """Return the columns that the task uses; without `needs_labels` the training data may have no labels.

        Raises UserError if a column is missing.
        """
        if self.find_columns is not None:
            return self.find_columns(splits, data)
        label_columns = self.label_columns if self.has_labels else None
        return find_columns(splits, data, self.text_columns, label_columns, needs_labels)

    def find_classes(self, splits: DatasetDict, columns: Columns) -> Classes | None:
        """Return the classes of the labels; None if the task or the data has none. Raises UserError for bad labels."""
        if columns.label is None or not self.has_classes:
            return None
        return find_classes(
            splits, columns.label, self.read_labels, may_be_vectors=self.problem_type == "multi_label_classification"
        )

    def tokenize(self, splits: DatasetDict, encoder: RowEncoder) -> DatasetDict:
        """Return the splits as token ids without padding, with labels if there are any.

        Raises UserError if a row cannot be encoded; the message names it.
        """
        for name, split in splits.items():
            self.check_rows(split, name, encoder)
        # The cache of `datasets`, and that of the teacher's outputs, must not depend on where the rows come from.
        no_source: dict[str, Any] = dict.fromkeys(SOURCE_FIELDS)
        encoder = self.fit_encoder(splits, encoder) if self.fit_encoder is not None and splits else encoder
        encoder = replace(encoder, data=replace(encoder.data, **no_source))

        def encode_batch(batch: Batch, indices: list[int]) -> dict[str, Any]:
            encoded = self.encode({**batch, EXAMPLE_INDEX: indices}, encoder)
            return {f"{ENCODED}{column}": values for column, values in encoded.items()}

        def encode_split(split: Dataset, name: str) -> Dataset:
            options = {"batched": True, "with_indices": True, "remove_columns": split.column_names}
            encoded = split.map(encode_batch, desc=f"tokenizing {name}", **options)
            return encoded.rename_columns({column: column.removeprefix(ENCODED) for column in encoded.column_names})

        return DatasetDict({name: encode_split(split, name) for name, split in splits.items()})


def read_logits(prediction: EvalPrediction) -> tuple[Any, np.ndarray]:
    """Return the logits of a prediction, which are the first of a model's outputs, and the labels."""
    predictions = prediction.predictions
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    return logits, np.asarray(prediction.label_ids)


def iterate_texts(rows: Dataset, task: Task, columns: Columns) -> Iterator[str]:
    """Yield every text of the raw rows: the inputs, and for tasks that generate text the targets."""
    targets = [columns.label] if task.generates and columns.label is not None else []
    names = [name for name in (*columns.texts, *targets) if name in rows.column_names]
    for name in dict.fromkeys(names):
        for value in rows[name]:
            if isinstance(value, dict):
                yield from value.values()
            else:
                yield " ".join(value) if isinstance(value, list) else value


def model_columns(rows: Dataset, for_training: bool = False) -> Dataset:
    """Return tokenized rows with only the columns that a model reads, or for training also the loss."""
    unread = (EXAMPLE_INDEX, OFFSETS, *([] if for_training else [QUERY]))
    return rows.remove_columns([name for name in unread if name in rows.column_names])
