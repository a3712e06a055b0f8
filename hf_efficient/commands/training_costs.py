"""Costs of training a model, setting by setting, for `hf-efficient measure MODEL --training`."""

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
from transformers.utils import logging

from hf_efficient.commands.pretrained import load_config
from hf_efficient.commands.training_cost_worker import TrainingRunSpec
from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.measurement.comparison import model_inputs
from hf_efficient.measurement.cost import count_parameters
from hf_efficient.measurement.environment import describe_environment
from hf_efficient.measurement.memory import MALLOC_SETTINGS
from hf_efficient.measurement.training_costs import TrainingCost, TrainingCosts
from hf_efficient.measurement.training_settings import Setting
from hf_efficient.tasks.inference import get_task, infer_task
from hf_efficient.tasks.random_batch import task_head

WORKER_MODULE = "hf_efficient.commands.training_cost_worker"
ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*(Error|Exception)(:|$)")  # the line after a traceback
MAX_REASON_LENGTH = 200
MEMORY_MEASURING_STEPS = 2  # the optimizer has allocated its state from the second step on


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
    """Return the costs of training the model `name` in each of `settings`, each in its own process.

    | argument | meaning |
    | --- | --- |
    | batch_size | examples of one optimizer step, which accumulation divides |
    | sequence_length | tokens of an example; fewer if the model accepts fewer |
    | warmup_steps, steps | optimizer steps that are not counted, and those whose median is reported |
    | task | the name in `TASKS`; by default that of the model's head |
    | folder | `training_costs.json` is written here after each setting; settings in it are not measured again |

    A setting that fails is a row without measurements, with the reason. Only one GPU is used.

    Raises UserError if a number is too small, the model cannot be loaded, is quantized or has no head with random
    labels, or the folder holds the costs of something else.
    """
    if min(batch_size, sequence_length, steps) < 1 or warmup_steps < 0:
        raise UserError(
            f"train_batch_size={batch_size}, train_sequence_length={sequence_length} and train_steps={steps} must be "
            f"at least 1, and warmup_steps={warmup_steps} at least 0"
        )
    config = load_config(name, trust_remote_code)
    if getattr(config, "quantization_config", None) or getattr(config, "codebooks", None):
        raise UserError(f"{name} is quantized and cannot be trained: give the float model")
    model_task = infer_task(config, DatasetDict(), DataConfig()) if task is None else get_task(task)
    with torch.device("meta"):
        model: Any = model_task.auto_class.from_config(config, trust_remote_code=trust_remote_code)
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
    measured = costs.measured()
    for setting in logging.tqdm([setting for setting in settings if setting not in measured], desc="settings"):
        spec = TrainingRunSpec(
            setting, name, model_task.name, batch_size, costs.sequence_length, warmup_steps, steps, trust_remote_code
        )
        costs = costs.with_row(run_in_worker(spec))
        if folder is not None:
            costs.save(folder)
    return costs.select(settings)


def run_in_worker(spec: TrainingRunSpec) -> TrainingCost:
    """Return the costs of a training run, measured in new processes; if one fails, the reason instead.

    On a GPU one process is enough. On a CPU the first process runs as any training does and gives speed and peak; its
    allocator keeps freed memory. A second one, in which freed memory returns to the system immediately and which is
    slower for that reason, gives the memory of training and of activations.
    """
    if torch.accelerator.is_available():
        return _run_process(spec, {})
    row = _run_process(dataclasses.replace(spec, measures_activations=False), {})
    if row.failure is not None:
        return row
    memory_spec = dataclasses.replace(spec, warmup_steps=0, steps=MEMORY_MEASURING_STEPS)
    memory_row = _run_process(memory_spec, MALLOC_SETTINGS)
    return dataclasses.replace(
        row,
        training_memory_bytes=memory_row.training_memory_bytes,
        activation_memory_bytes=memory_row.activation_memory_bytes,
        failure=memory_row.failure,
    )


def _run_process(spec: TrainingRunSpec, variables: Mapping[str, str]) -> TrainingCost:
    """Return the costs that one process measured, with `variables` added to its environment."""
    # One GPU only; and the process imports modules from the same places as this one.
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    path = os.pathsep.join(part for part in sys.path if part)
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": path, **variables}
    with tempfile.TemporaryDirectory() as folder:
        spec_file, result_file = Path(folder) / "spec.json", Path(folder) / "result.json"
        spec_file.write_text(spec.to_json(), encoding="utf-8")
        command = [sys.executable, "-m", WORKER_MODULE, str(spec_file), str(result_file)]
        process = subprocess.run(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if process.returncode == 0 and result_file.exists():
            result = json.loads(result_file.read_text(encoding="utf-8"))
            return TrainingCost(**{**result, "setting": Setting(**result["setting"])})
    reason = _failure_reason(process.returncode, process.stderr)
    return TrainingCost(spec.setting, spec.micro_batch_size, failure=reason)


def _failure_reason(status: int, stderr: str) -> str:
    """Return why a worker failed: its last error, or the signal that ended it."""
    if status < 0:
        signal_name = f"ended by {signal.Signals(-status).name}"
        return f"{signal_name}: out of memory?" if -status == getattr(signal, "SIGKILL", None) else signal_name
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)] or lines or [f"ended with status {status}"]
    return errors[-1][:MAX_REASON_LENGTH]
