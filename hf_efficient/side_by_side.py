"""Models that are there already, side by side: `hf-efficient measure`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch import nn
from transformers import AutoConfig, AutoTokenizer, EvalPrediction, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import nested_concat, nested_numpify

from hf_efficient.data import DataConfig, load_splits
from hf_efficient.distillation.teacher import is_answer
from hf_efficient.exporting import CALIBRATION_SAMPLES
from hf_efficient.forms import FORMS, Call, Formed, check_forms, check_model
from hf_efficient.measurement.comparison import compare, model_inputs
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.measurement.runtime import environment
from hf_efficient.tasks import Encoding, Task, find_columns, infer_task, without_notes
from hf_efficient.tasks.labels import label_numbers
from hf_efficient.tasks.masked import masked_once
from hf_efficient.tasks.task import IGNORED

BATCH_SIZE = 32


def measure_models(
    names: list[str],
    data: DataConfig,
    batch_size: int,
    sequence_length: int,
    trust_remote_code: bool = False,
    forms: Sequence[str] = (),
) -> CompressionReport:
    """Returns the report on models that are there already: the first is the one that the others are compared with.

    Each is measured as it is, or in each of `forms`, the names in `FORMS`. Metrics are measured when `data` names any.

    Raises ValueError: the models are for different tasks, a form is unknown, or calibration needs training data.
    """
    check_forms(forms, data)
    configs = [AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code) for name in names]
    splits = _splits(data) if data.named else DatasetDict()
    tasks = [infer_task(config, splits, data) for config in configs]
    if len({task.name for task in tasks}) > 1:
        raise ValueError(f"the models are for different tasks: {', '.join(task.name for task in tasks)}")
    task = tasks[0]
    wanted: Sequence[str | None] = forms or [None]
    models: dict[str, nn.Module] = {}
    metrics: dict[str, dict[str, float]] = {}
    titles: dict[str, str] = {}
    calls: dict[str, Call] = {}
    inputs: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for name, config in zip(names, configs, strict=True):
            title = Path(name).name if Path(name).exists() else name
            model = task.auto_class.from_pretrained(name, trust_remote_code=trust_remote_code).eval()
            if forms:
                check_model(model, title)
            inputs = inputs or model_inputs(model, batch_size, sequence_length)
            judged = _Judged.of(splits, config, AutoTokenizer.from_pretrained(name), task, data) if splits else None
            calibration = None if judged is None else judged.calibration()
            for form in wanted:
                role = f"student {len(models)}" if models else "teacher"
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                made = Formed(model) if form is None else FORMS[form](model, inputs, calibration, folder)
                if made is None:
                    continue
                models[role] = made.model
                titles[role] = title if form is None else f"{title} {form}" if len(names) > 1 else form
                if made.call is not None:
                    calls[role] = made.call
                if judged is not None:
                    metrics[role] = judged.metrics(made.call or made.model)
        rows = compare(models, inputs, metrics=metrics, metric=task.metric, names=titles, compiled=calls)
    return CompressionReport(
        task=task.pipeline,
        dataset=data.label if splits else None,
        metric=task.metric if splits else None,
        models=rows,
        environment=environment(),
    )


def _splits(data: DataConfig) -> DatasetDict:
    """Returns the rows to measure on, and those to calibrate on."""
    file = data.test_file or data.validation_file or data.train_file
    if file:
        data = dataclasses.replace(data, train_file=data.train_file or file, validation_file=file)
    return load_splits(data, seed=0)


@dataclass(frozen=True)
class _Judged:
    """The data of a task as one model reads it, and what its answers are worth."""

    task: Task
    encoding: Encoding
    rows: DatasetDict
    encoded: DatasetDict
    config: Any

    @classmethod
    def of(
        cls, splits: DatasetDict, config: Any, tokenizer: PreTrainedTokenizerBase, task: Task, data: DataConfig
    ) -> _Judged:
        columns = find_columns(splits, task, data)
        classifies = columns.label is not None and task.classes
        numbers = label_numbers(splits, str(columns.label), config) if classifies else None
        encoding = Encoding(columns, tokenizer, data, numbers, classes=config.num_labels)
        few = splits["train"].select(range(min(len(splits["train"]), CALIBRATION_SAMPLES)))
        rows = DatasetDict(train=few, evaluation=splits["evaluation"])
        encoded = task.tokenize(rows, encoding)
        if not task.labelled:
            encoded["evaluation"] = masked_once(encoded["evaluation"], tokenizer, seed=0)
        return cls(task, encoding, rows, encoded, config)

    def calibration(self) -> Any:
        """Returns batches of rows that nothing is judged on."""
        return self._batches("train")

    def metrics(self, model: Call) -> dict[str, float]:
        """Returns the task's metrics of `model`, in its own precision."""
        said: Any = None
        labels: Any = None
        with torch.inference_mode():
            for batch in self._batches("evaluation"):
                right = {name: batch.pop(name) for name in list(batch) if is_answer(name)}
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
        rows, collate = without_notes(self.encoded[split]), self.task.collator(self.encoding.tokenizer)
        return torch.utils.data.DataLoader(rows, batch_size=BATCH_SIZE, collate_fn=collate)
