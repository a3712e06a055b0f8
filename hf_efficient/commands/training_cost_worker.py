"""One setting of training, measured in a process of its own: `python -m hf_efficient.commands.training_cost_worker JOB RESULT`."""

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
    PreTrainedModel,
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
from hf_efficient.measurement.training_costs import Setting, TrainingCost
from hf_efficient.tasks.inference import get_task
from hf_efficient.tasks.random_batch import Inputs, random_batch
from hf_efficient.trainer.trainer import EfficientTrainer

# What transformers 5.23 calls it; it warns of the old name, which is the only one that earlier versions know.
NEW_NAME, OLD_NAME = "activation_checkpointing", "gradient_checkpointing"
CHECKPOINTING_ARGUMENT = NEW_NAME if hasattr(TrainingArguments, NEW_NAME) else OLD_NAME
OOM_SCORE_ADJUSTMENT = "1000"  # of all processes, when the machine is out of memory


@dataclass(frozen=True)
class TrainingRunSpec:
    """What a worker is told: a setting of the training of the model called `model`, for the task called `task`.

    `probes` asks for one micro-batch more, by itself, to see what its activations take.
    """

    setting: Setting
    model: str
    task: str
    batch_size: int
    sequence_length: int
    warmup_steps: int
    steps: int
    trust_remote_code: bool = False
    probes: bool = True

    def to_json(self) -> str:
        """Return the job as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrainingRunSpec:
        """Return the job that `to_json` wrote."""
        data = json.loads(text)
        return cls(**{**data, "setting": Setting(**data["setting"])})


def measure_training_run(job: TrainingRunSpec) -> TrainingCost:
    """Return what the training of `job` costs in this process, with a teacher that is a copy of the model."""
    set_seed(0)
    setting = job.setting
    model = get_task(job.task).auto_class.from_pretrained(
        job.model,
        attn_implementation=setting.attention,
        dtype=torch.float32,
        trust_remote_code=job.trust_remote_code,
    )
    micro = job.batch_size // setting.accumulation
    with tempfile.TemporaryDirectory() as folder:
        trainer = _TrainerWithoutReport(
            model=model,
            args=TrainingArguments(
                folder,
                max_steps=job.warmup_steps + job.steps,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=setting.accumulation,
                bf16=setting.precision == "bf16",
                use_cpu=not torch.accelerator.is_available(),
                learning_rate=0.0,  # the weights stay finite, and the optimizer does all of its work
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **{CHECKPOINTING_ARGUMENT: setting.checkpointing},
            ),
            train_dataset=RepeatedBatchDataset(random_batch(model, job.batch_size, job.sequence_length), job),
            data_collator=default_data_collator,
            teacher=model if setting.distillation else None,
            distillation=DistillationConfig() if setting.distillation else None,
        )
        watch = TrainingCostCallback(trainer, job.probes)
        trainer.add_callback(watch)
        trainer.train()
    step = statistics.median(watch.durations[job.warmup_steps :])
    return TrainingCost(
        setting,
        micro,
        peak_memory_bytes=watch.peak,
        training_memory_bytes=watch.growth,
        activation_memory_bytes=watch.activations,
        step_ms=1e3 * step,
        samples_per_second=job.batch_size / step,
    )


class _TrainerWithoutReport(EfficientTrainer):
    """The trainer, which leaves it at training."""

    def build_report(self, models: Mapping[str, Any], exported: Mapping[str, Any]) -> CompressionReport:
        return CompressionReport()


class TrainingCostCallback(TrainerCallback):
    """Takes times and memory, from where everything but the first step is prepared."""

    def __init__(self, trainer: EfficientTrainer, probes: bool) -> None:
        self.trainer, self.probes = trainer, probes
        self.durations: list[float] = []
        self.peak: int | None = None
        self.growth: int | None = None
        self.activations: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Model and teacher are where they are trained."""
        self.memory = ProcessMemory(args.device)
        self.last = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimizer has made a step."""
        if args.device.type != "cpu":
            torch.accelerator.synchronize()
        now = time.perf_counter()
        self.durations.append(now - self.last)
        self.last = now

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the peak, then looks at one micro-batch alone if that is asked for."""
        self.peak, self.growth = self.memory.peak(), self.memory.growth()
        if self.probes:
            self._probe(args)

    def _probe(self, args: TrainingArguments) -> None:
        """Make a forward and backward pass with gradients there before it, as after another micro-batch."""
        trainer = self.trainer
        batch = next(iter(trainer.get_train_dataloader()))
        batches, count = trainer.get_batch_samples(iter([batch]), 1, args.device)
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter).zero_()  # zeros_like would not touch the pages
        self.memory.start()
        trainer.training_step(trainer.model_wrapped, batches[0], count)
        if self.memory.can_reset:
            self.activations = self.memory.growth()


class RepeatedBatchDataset(Dataset[Inputs]):
    """The examples of one batch again and again, for as many steps as the job has."""

    def __init__(self, batch: Inputs, job: TrainingRunSpec) -> None:
        self.batch, self.count = batch, job.batch_size * (job.warmup_steps + job.steps)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Inputs:
        return {name: values[index % len(values)] for name, values in self.batch.items()}


def main(arguments: list[str]) -> None:
    """Does the job in the first file, and writes the row into the second."""
    with suppress(OSError):  # where there is such a thing
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE_ADJUSTMENT, encoding="utf-8")
    job, result = arguments
    row = measure_training_run(TrainingRunSpec.from_json(Path(job).read_text(encoding="utf-8")))
    Path(result).write_text(json.dumps(dataclasses.asdict(row)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
