"""Evaluation of one model on the data of a task, without a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import DatasetDict
from transformers import EvalPrediction, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import nested_concat, nested_numpify

from hf_efficient.data.config import DataConfig
from hf_efficient.data.labels import label_ids
from hf_efficient.exporters.inputs import EXPORT_CALIBRATION_SAMPLES
from hf_efficient.models.inputs import is_label
from hf_efficient.tasks import RowEncoder, Task, find_columns, model_columns
from hf_efficient.tasks.masked_lm import mask_once
from hf_efficient.tasks.task import IGNORED
from hf_efficient.variants import Call

EVAL_BATCH_SIZE = 32


@dataclass(frozen=True)
class TaskEvaluator:
    """The data of a task as one model reads it, and what its answers are worth."""

    task: Task
    encoding: RowEncoder
    rows: DatasetDict
    encoded: DatasetDict
    config: Any

    @classmethod
    def of(
        cls, splits: DatasetDict, config: Any, tokenizer: PreTrainedTokenizerBase, task: Task, data: DataConfig
    ) -> TaskEvaluator:
        columns = find_columns(splits, task, data)
        classifies = columns.label is not None and task.classes
        numbers = label_ids(splits, str(columns.label), config) if classifies else None
        encoding = RowEncoder(columns, tokenizer, data, numbers, classes=config.num_labels)
        few = splits["train"].select(range(min(len(splits["train"]), EXPORT_CALIBRATION_SAMPLES)))
        rows = DatasetDict(train=few, evaluation=splits["evaluation"])
        encoded = task.tokenize(rows, encoding)
        if not task.labelled:
            encoded["evaluation"] = mask_once(encoded["evaluation"], tokenizer, seed=0)
        return cls(task, encoding, rows, encoded, config)

    def calibration(self) -> Any:
        """Return batches of rows that nothing is judged on."""
        return self._batches("train")

    def metrics(self, model: Call) -> dict[str, float]:
        """Return the task's metrics of `model`, in its own precision."""
        said: Any = None
        labels: Any = None
        with torch.inference_mode():
            for batch in self._batches("evaluation"):
                right = {name: batch.pop(name) for name in list(batch) if is_label(name)}
                answers = self._answers(model, batch, right)
                said = answers if said is None else nested_concat(said, answers, padding_index=IGNORED)
                known = tuple(right.values()) if len(right) > 1 else next(iter(right.values()))
                labels = known if labels is None else nested_concat(labels, known, padding_index=IGNORED)
        judge = self.task.judge(self.rows["evaluation"], self.encoded["evaluation"], self.encoding, self.config)
        return judge(EvalPrediction(nested_numpify(said), nested_numpify(labels)))

    def _answers(self, model: Any, batch: dict[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> Any:
        if self.task.writes:
            texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
            return model.generate(**texts, max_length=self.encoding.data.max_target_length)
        outputs = model(**batch)
        logits = tuple(value.float() for name, value in outputs.items() if name.endswith("logits"))
        found = logits if len(logits) > 1 else logits[0]
        return self.task.reduce_logits(found, right["labels"]) if self.task.reduce_logits else found

    def _batches(self, split: str) -> Any:
        rows, collate = model_columns(self.encoded[split]), self.task.collator(self.encoding.tokenizer)
        return torch.utils.data.DataLoader(rows, batch_size=EVAL_BATCH_SIZE, collate_fn=collate)
