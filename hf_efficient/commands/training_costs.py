"""What training a model costs, setting by setting: `hf-efficient measure MODEL --training`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from transformers import AutoConfig
from transformers.utils import logging

from hf_efficient.commands.training_cost_worker import TrainingRunSpec
from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.measurement.comparison import model_inputs
from hf_efficient.measurement.cost import count_parameters
from hf_efficient.measurement.environment import describe_environment
from hf_efficient.measurement.memory import MALLOC_SETTINGS
from hf_efficient.measurement.training_costs import Setting, TrainingCost, TrainingCosts
from hf_efficient.tasks.inference import get_task, infer_task
from hf_efficient.tasks.random_batch import task_head

WORKER_MODULE = "hf_efficient.commands.training_cost_worker"
ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*(Error|Exception)(:|$)")  # the line after a traceback
MAX_REASON_LENGTH = 200
MEMORY_MEASURING_STEPS = 2  # from the second on the optimizer has its state


def measure_training_costs(
    name: str,
    settings: Sequence[Setting],
    batch_size: int = 32,
    sequence_length: int = 128,
    warmup_steps: int = 1,
    steps: int = 3,
    task: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> TrainingCosts:
    """Return what each of `settings` costs when the model called `name` is trained, each in a process of its own.

    | argument | meaning |
    | --- | --- |
    | batch_size | examples of a step of the optimizer; accumulation divides them |
    | sequence_length | tokens of an example; fewer where the model cannot read as many |
    | warmup_steps, steps | steps that do not count, and those whose median does |
    | task | the name in `TASKS`; None: that of the model's head |
    | folder | `training_costs.json` is kept here, written after each setting; what is there already stays |

    A setting that fails is a row without figures that says why. One GPU is used, however many there are.

    Raises ValueError: nothing is to be measured, the model is quantized or has no head that random labels are known
    for, or the folder holds the costs of something else.
    """
    if min(batch_size, sequence_length, steps) < 1 or warmup_steps < 0:
        raise UserError(
            f"train_batch_size={batch_size}, train_sequence_length={sequence_length} and train_steps={steps} must be "
            f"at least 1, and warmup_steps={warmup_steps} at least 0"
        )
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None) or getattr(config, "codebooks", None):
        raise UserError(f"{name} is quantized already and cannot be trained: measure its float form")
    known = infer_task(config, DatasetDict(), DataConfig()) if task is None else get_task(task)
    with torch.device("meta"):
        model: Any = known.auto_class.from_config(config, trust_remote_code=trust_remote_code)
    task_head(model)
    costs = TrainingCosts(
        model=Path(name).name if Path(name).exists() else name,
        architecture=type(model).__name__,
        parameters=count_parameters(model),
        batch_size=batch_size,
        sequence_length=model_inputs(model, 1, sequence_length)["input_ids"].shape[-1],
        warmup_steps=warmup_steps,
        steps=steps,
        environment=describe_environment(),
    )
    if folder is not None:
        costs = costs.merge_saved(folder)
    missing = [setting for setting in settings if setting not in costs.measured()]
    for setting in logging.tqdm(missing, desc="settings"):
        job = TrainingRunSpec(
            setting, name, known.name, batch_size, costs.sequence_length, warmup_steps, steps, trust_remote_code
        )
        costs = costs.with_row(run_in_worker(job))
        if folder is not None:
            costs.save(folder)
    return costs.select(settings)


def run_in_worker(job: TrainingRunSpec) -> TrainingCost:
    """Return what fresh processes find of `job`; where one fails, no figures of its own and the reason.

    The first runs as any training does: time and peak are its. What is freed may stay with the process there, and
    going back to the system takes time, so a second one tells what training and activations take. A GPU needs none.
    """
    if torch.accelerator.is_available():
        return _run_process(job, {})
    row = _run_process(dataclasses.replace(job, probes=False), {})
    if row.failure is not None:
        return row
    exact = _run_process(dataclasses.replace(job, warmup_steps=0, steps=MEMORY_MEASURING_STEPS), MALLOC_SETTINGS)
    return dataclasses.replace(
        row,
        training_memory_bytes=exact.training_memory_bytes,
        activation_memory_bytes=exact.activation_memory_bytes,
        failure=exact.failure,
    )


def _run_process(job: TrainingRunSpec, variables: Mapping[str, str]) -> TrainingCost:
    """Return what one process finds of `job`, with these variables in its environment."""
    # There is one GPU, and our modules are found from wherever they are here.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    path = os.pathsep.join(part for part in sys.path if part)
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": first, "PYTHONPATH": path, **variables}
    with tempfile.TemporaryDirectory() as folder:
        told, result = Path(folder) / "job.json", Path(folder) / "result.json"
        told.write_text(job.to_json(), encoding="utf-8")
        command = [sys.executable, "-m", WORKER_MODULE, str(told), str(result)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode == 0 and result.exists():
            found = json.loads(result.read_text(encoding="utf-8"))
            return TrainingCost(**{**found, "setting": Setting(**found["setting"])})
    micro = job.batch_size // job.setting.accumulation
    return TrainingCost(job.setting, micro, failure=_failure_reason(done.returncode, done.stderr))


def _failure_reason(status: int, said: str) -> str:
    """Return why a worker failed: its last error, or the signal that ended it."""
    if status < 0:
        ended = f"ended by {signal.Signals(-status).name}"
        return f"{ended}: out of memory?" if -status == getattr(signal, "SIGKILL", None) else ended
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)] or lines or [f"ended with status {status}"]
    return errors[-1][:MAX_REASON_LENGTH]
