"""Evaluation of one model on the data of a task, without a trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import DatasetDict
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import nested_concat, nested_numpify

from hf_efficient.data.config import DataConfig
from hf_efficient.data.label_names import model_label_names
from hf_efficient.data.labels import Classes
from hf_efficient.data.length_order import Order, restore_order, sort_by_length
from hf_efficient.measurement.agreement import comparable_predictions
from hf_efficient.measurement.intervals import metrics_by_row
from hf_efficient.measurement.latency import sample_batches
from hf_efficient.measurement.row_metrics import RowMetric
from hf_efficient.models.batches import Batch
from hf_efficient.models.inputs import is_label
from hf_efficient.models.sentence_modules import EMBEDDING
from hf_efficient.tasks.class_ids import describe_data, find_class_ids
from hf_efficient.tasks.input_length import bound_max_length
from hf_efficient.tasks.task import IGNORE_INDEX, RowEncoder, Task, model_columns
from hf_efficient.tasks.tokenizers import adapt_tokenizer

EVAL_BATCH_SIZE = 32


@dataclass(frozen=True)
class TaskEvaluator:
    """The data of a task, tokenized for one model, and the metrics of predictions on it."""

    task: Task
    encoder: RowEncoder
    raw_splits: DatasetDict
    tokenized_splits: DatasetDict
    config: PreTrainedConfig
    classes: Classes | None = None

    @classmethod
    def from_splits(
        cls,
        splits: DatasetDict,
        config: PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        data: DataConfig,
        calibration_samples: int,
    ) -> TaskEvaluator:
        """Return the evaluator of a model with this config and tokenizer; training rows are for calibration only.

        Raises UserError if a column is missing, or if the data has labels that the model does not have.
        """
        columns = task.get_columns(splits, data)
        adapt_tokenizer(tokenizer, config, task.needs_offsets, task.reads_words)
        data = bound_max_length(data, tokenizer, [config])
        classes = task.find_classes(splits, columns)
        label_to_id = None if classes is None else find_class_ids(task, classes, model_label_names(config))
        is_multi_hot = classes is not None and classes.is_multi_hot
        encoder = RowEncoder(
            columns, tokenizer, data, label_to_id, num_labels=config.num_labels, is_multi_hot=is_multi_hot
        )
        calibration_rows = splits["train"].select(range(min(len(splits["train"]), calibration_samples)))
        raw_splits = DatasetDict(train=calibration_rows, evaluation=splits["evaluation"])
        tokenized_splits = task.tokenize(raw_splits, encoder)
        tokenized_splits["evaluation"] = task.complete_evaluation(tokenized_splits["evaluation"], tokenizer, 0)
        return cls(task, encoder, raw_splits, tokenized_splits, config, classes)

    def describe(self) -> str:
        """Return one line that says how the rows that are evaluated were understood."""
        classes = self.classes
        if classes is not None:
            classes = replace(classes, counts={"evaluation": classes.counts["evaluation"]})
        raw, tokenized = (
            DatasetDict(evaluation=each["evaluation"]) for each in (self.raw_splits, self.tokenized_splits)
        )
        return describe_data(self.task, classes, model_label_names(self.config), raw, tokenized, self.encoder)

    @property
    def metric_settings(self) -> dict[str, str]:
        """What the metrics depend on, for the report."""
        settings = self.task.metric_settings
        return {} if settings is None else settings(self.raw_splits["evaluation"], self.encoder)

    def calibration_batches(self) -> DataLoader[Any]:
        """Return batches of training rows, which are not evaluated on."""
        return self._batches("train")

    def metrics(self, model: Callable[..., Any]) -> dict[str, float]:
        """Return the task's metrics of `model`, computed in the model's own precision."""
        return self.evaluate(model)[0]

    def evaluate(self, model: Callable[..., Any]) -> tuple[dict[str, float], Any, dict[str, RowMetric]]:
        """Return the task's metrics of `model`, the classes or embeddings that it predicts, and its metrics by row.

        See `comparable_predictions` and `metrics_by_row`.
        """
        predictions: Any = None
        labels: Any = None
        rows = self.tokenized_splits["evaluation"]
        order = sort_by_length(rows)
        with torch.inference_mode():
            for batch in self._batches("evaluation", order):
                predictions = _concatenate(predictions, self._predict(model, batch))
                values = tuple(value for name, value in batch.items() if is_label(name))
                labels = _concatenate(labels, values if len(values) > 1 else values[0])
        results = nested_numpify((predictions, labels))
        if order is not None:
            results = restore_order(results, order)
        compute_metrics = self.task.build_compute_metrics(
            self.raw_splits["evaluation"], rows, self.encoder, self.config
        )
        prediction = EvalPrediction(*results)
        metrics = compute_metrics(prediction)
        return metrics, comparable_predictions(*results), metrics_by_row(compute_metrics, prediction, metrics)

    def sample_batches(self) -> list[Batch]:
        """Return a sample of the batches of the evaluation data, to measure the throughput of `predict` on."""
        order = sort_by_length(self.tokenized_splits["evaluation"])
        return sample_batches(self._batches("evaluation", order), EVAL_BATCH_SIZE)

    def predict(self, model: Callable[..., Any], batches: Iterable[Batch]) -> None:
        """Let `model` predict `batches`, as for its metrics."""
        for batch in batches:
            self._predict(model, batch)

    def _predict(self, model: Any, batch: Batch) -> Any:
        inputs = {name: value for name, value in batch.items() if not is_label(name)}
        if self.task.generates:
            texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            return model.generate(**texts, max_length=self.encoder.data.max_target_length)
        outputs = model(**inputs)
        logits = tuple(
            value.float() for name, value in outputs.items() if name.endswith("logits") or name == EMBEDDING
        )
        predictions = logits if len(logits) > 1 else logits[0]
        return self.task.reduce_logits(predictions, batch["labels"]) if self.task.reduce_logits else predictions

    def _batches(self, split: str, order: Order | None = None) -> DataLoader[Any]:
        rows: Any = model_columns(self.tokenized_splits[split])
        if order is not None:
            rows = rows.select(order)
        return DataLoader(rows, batch_size=EVAL_BATCH_SIZE, collate_fn=self.task.collator(self.encoder.tokenizer))


def _concatenate(tensors: Any, batch: Any) -> Any:
    return batch if tensors is None else nested_concat(tensors, batch, padding_index=IGNORE_INDEX)
