"""One training setting measured in its own process.

Usage: `python -m hf_efficient.commands.training_cost_worker SPEC RESULT`, two JSON files: one to read, one to write.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.measurement.memory import ProcessMemory
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.measurement.training_costs import TrainingCost
from hf_efficient.measurement.training_settings import Setting
from hf_efficient.models.loading import load_pretrained
from hf_efficient.tasks.inference import get_task
from hf_efficient.tasks.random_batch import Inputs, random_batch
from hf_efficient.trainer.trainer import EfficientTrainer

# Its name since transformers 5.23, which warns of the old one.
CHECKPOINTING_ARGUMENT = (
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
)
OOM_SCORE_ADJUSTMENT = "1000"  # the kernel ends this process first when memory runs out


@dataclass(frozen=True)
class TrainingRunSpec:
    """The training run that a worker measures.

    | field | meaning |
    | --- | --- |
    | setting | what is measured |
    | model | a directory, or a name on the Hub |
    | task | the name in `TASKS` |
    | batch_size | examples of one optimizer step |
    | sequence_length | tokens of an example |
    | warmup_steps, steps | optimizer steps that are not counted, and those whose median is reported |
    | measures_activations | whether the activations of one micro-batch are measured separately, after training |
    """

    setting: Setting
    model: str
    task: str
    batch_size: int
    sequence_length: int
    warmup_steps: int
    steps: int
    trust_remote_code: bool = False
    measures_activations: bool = True

    @property
    def micro_batch_size(self) -> int:
        """Examples of one forward pass."""
        return self.batch_size // self.setting.accumulation

    def to_json(self) -> str:
        """Return the spec as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrainingRunSpec:
        """Return the spec that `to_json` wrote."""
        data = json.loads(text)
        return cls(**{**data, "setting": Setting(**data["setting"])})


def measure_training_run(spec: TrainingRunSpec) -> TrainingCost:
    """Return the costs of a training run in this process; the teacher, if there is one, is a copy of the model."""
    set_seed(0)
    setting = spec.setting
    model, _ = load_pretrained(
        get_task(spec.task).auto_class,
        spec.model,
        attn_implementation=setting.attention,
        dtype=torch.float32,
        trust_remote_code=spec.trust_remote_code,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = _TrainerWithoutReport(
            model=model,
            args=TrainingArguments(
                folder,
                max_steps=spec.warmup_steps + spec.steps,
                per_device_train_batch_size=spec.micro_batch_size,
                gradient_accumulation_steps=setting.accumulation,
                bf16=setting.precision == "bf16",
                use_cpu=not torch.accelerator.is_available(),
                learning_rate=0.0,  # keeps the weights finite; the optimizer does the same work
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **{CHECKPOINTING_ARGUMENT: setting.checkpointing},
            ),
            train_dataset=RepeatedBatchDataset(random_batch(model, spec.batch_size, spec.sequence_length), spec),
            data_collator=default_data_collator,
            teacher=model if setting.distillation else None,
            distillation=DistillationConfig() if setting.distillation else None,
        )
        callback = TrainingCostCallback(trainer, spec.measures_activations)
        trainer.add_callback(callback)
        trainer.train()
    step_seconds = statistics.median(callback.durations[spec.warmup_steps :])
    return TrainingCost(
        setting,
        spec.micro_batch_size,
        peak_memory_bytes=callback.peak_bytes,
        training_memory_bytes=callback.growth_bytes,
        activation_memory_bytes=callback.activation_bytes,
        step_ms=1e3 * step_seconds,
        samples_per_second=spec.batch_size / step_seconds,
    )


class _TrainerWithoutReport(EfficientTrainer):
    """A trainer that measures no models after training."""

    def build_report(self, models: Mapping[str, Any], exported: Mapping[str, Any]) -> CompressionReport:
        return CompressionReport()


class TrainingCostCallback(TrainerCallback):
    """Measures the time of each optimizer step and the memory of training, with model and teacher already loaded."""

    def __init__(self, trainer: EfficientTrainer, measures_activations: bool) -> None:
        self.trainer, self.measures_activations = trainer, measures_activations
        self.durations: list[float] = []  # seconds
        self.peak_bytes: int | None = None
        self.growth_bytes: int | None = None
        self.activation_bytes: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the measurements; model and teacher are on their device."""
        self.memory = ProcessMemory(args.device)
        self.last_step_end = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the duration of an optimizer step."""
        if args.device.type != "cpu":
            torch.accelerator.synchronize()
        now = time.perf_counter()
        self.durations.append(now - self.last_step_end)
        self.last_step_end = now

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the peak of memory, and measure activations if requested."""
        self.peak_bytes, self.growth_bytes = self.memory.peak(), self.memory.growth()
        if self.measures_activations:
            self._measure_activations(args)

    def _measure_activations(self, args: TrainingArguments) -> None:
        """Run one forward and backward pass with gradients allocated, as after another micro-batch."""
        trainer = self.trainer
        batch = next(iter(trainer.get_train_dataloader()))
        batches, num_items = trainer.get_batch_samples(iter([batch]), 1, args.device)
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter).zero_()  # zeros_like would not touch the memory pages
        self.memory.start()
        trainer.training_step(trainer.model_wrapped, batches[0], num_items)
        if self.memory.can_reset:
            self.activation_bytes = self.memory.growth()


class RepeatedBatchDataset(Dataset[Inputs]):
    """The examples of one batch, repeated for all steps of a training run."""

    def __init__(self, batch: Inputs, spec: TrainingRunSpec) -> None:
        self.batch, self.count = batch, spec.batch_size * (spec.warmup_steps + spec.steps)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Inputs:
        return {name: values[index % len(values)] for name, values in self.batch.items()}


def main(arguments: list[str]) -> None:
    """Measure the training run of the first file, and write its costs into the second."""
    with suppress(OSError):  # exists on Linux only
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE_ADJUSTMENT, encoding="utf-8")
    spec_file, result_file = map(Path, arguments)
    row = measure_training_run(TrainingRunSpec.from_json(spec_file.read_text(encoding="utf-8")))
    result_file.write_text(json.dumps(dataclasses.asdict(row)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
