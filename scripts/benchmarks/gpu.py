"""What training and inference cost on a GPU: step times, synchronizations, memory, latency, energy.

    python scripts/benchmarks/gpu.py [--device cpu --tiny] [--only training ...] [--publish]

At most eight minutes on one H100 or H200; no data is needed, the models have random weights and the texts random
tokens. Training steps are those of `train` itself, in bfloat16, timed alternately: of `transformers.Trainer`, of
`EfficientTrainer` with each technique, and of a plain loop over student and teacher. Synchronizations are counted by
`torch.cuda.set_sync_debug_mode`. With `--device cpu --tiny` the script tries itself; what only a GPU can measure is
null. Results in out/gpu/results.json; `--publish` copies them to scripts/benchmarks/results/gpu.json.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sst2 import OUT, Results
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_efficient import CompressionReport, DistillationConfig, EfficientTrainer, PruningConfig
from hf_efficient.distillation.students import student_from_layers
from hf_efficient.measurement.energy import EnergyCounter
from hf_efficient.measurement.environment import describe_environment
from hf_efficient.measurement.latency import synchronize, time_interleaved
from hf_efficient.measurement.memory import ProcessMemory
from hf_efficient.variants.half_precision import half_precision_types

PUBLISHED = Path(__file__).parent / "results" / "gpu.json"
SIZES = {
    "MiniLM 6x384": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "BERT-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
TINY = {"tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}}
SOFT: dict[str, Any] = {"hard_label_weight": 0.5, "hidden_weight": 0.0, "student_dropout": 0.1}  # as a plain step
TECHNIQUES: dict[str, dict[str, Any]] = {
    "EfficientTrainer": {},
    "soft labels": {"distillation": DistillationConfig(**SOFT)},
    "soft labels, hidden states": {"distillation": DistillationConfig(**{**SOFT, "hidden_weight": 10.0})},
    "soft labels, attention": {"distillation": DistillationConfig(**SOFT, attention_weight=0.1)},
    "soft labels, relations": {"distillation": DistillationConfig(**SOFT, relation_weight=1.0)},
    "soft labels, ramp": {
        "distillation": DistillationConfig(**SOFT),
        "pruning": PruningConfig(heads=0.5, neurons=0.5, ramp=0.9, scoring_samples=64),
    },
}
WARMUP_STEPS, COUNTED_STEPS = 10, 5
# What each is compared with.
BASELINES = {"EfficientTrainer": "Trainer", "soft labels, ramp": "soft labels"}
LOOP = "loop of student and teacher"


class StepTimes(TrainerCallback):
    """Times the steps after the first ones, and counts the synchronizations of a few of them."""

    def __init__(self) -> None:
        self.steps, self.start, self.milliseconds = 0, 0.0, 0.0
        self.synchronizations: float | None = None
        self._caught: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count, or to time."""
        if self.steps == WARMUP_STEPS and torch.cuda.is_available():
            self._recorder = warnings.catch_warnings(record=True)
            self._caught = self._recorder.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        if self.steps == WARMUP_STEPS + COUNTED_STEPS:
            if self._caught is not None:
                torch.cuda.set_sync_debug_mode("default")
                found = [each for each in self._caught if "synchroniz" in str(each.message)]
                self.synchronizations = len(found) / COUNTED_STEPS
                self._recorder.__exit__(None, None, None)
            synchronize()
            self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step."""
        self.steps += 1
        if self.steps == state.max_steps:
            synchronize()
            seconds = time.perf_counter() - self.start
            self.milliseconds = 1e3 * seconds / (self.steps - WARMUP_STEPS - COUNTED_STEPS)


class Benchmark:
    """Models and rows of one shape, on one device."""

    def __init__(self, size: dict[str, int], rows: int, tokens: int, options: argparse.Namespace) -> None:
        self.size, self.rows, self.tokens, self.options = size, rows, tokens, options
        self.device = torch.device(options.device)
        set_seed(0)
        self.config = BertConfig(**size, num_labels=2, max_position_embeddings=max(tokens, 32))
        self.teacher = BertForSequenceClassification(self.config).eval()
        count = rows * 4
        ids = torch.randint(1000, self.config.vocab_size, (count, tokens)).tolist()
        columns = {"input_ids": ids, "attention_mask": [[1] * tokens] * count, "labels": [0, 1] * (count // 2)}
        self.data = Dataset.from_dict(columns).with_format("torch")

    def arguments(self, steps: int, **settings: Any) -> TrainingArguments:
        """Return the arguments of a run of so many steps."""
        values = {
            "max_steps": steps,
            "per_device_train_batch_size": self.rows,
            "bf16": self.device.type == "cuda",
            "use_cpu": self.device.type == "cpu",
            "logging_steps": steps,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "accelerator_config": {"non_blocking": self.device.type == "cuda"},
        }
        return TrainingArguments(str(OUT / "gpu" / "run"), **{**values, **settings})

    def student(self) -> PreTrainedModel:
        """Return a student of half the teacher's layers."""
        return student_from_layers(self.teacher, self.config.num_hidden_layers // 2)

    def time_steps(self, name: str, steps: int) -> tuple[float, float | None]:
        """Return milliseconds and synchronizations of a step with the technique called `name`."""
        if name == LOOP:
            return self._time_loop(steps), None
        techniques, times = TECHNIQUES.get(name, {}), StepTimes()
        trainer_class = Trainer if name == "Trainer" else EfficientTrainer
        if "distillation" in techniques:
            techniques = {**techniques, "teacher": copy.deepcopy(self.teacher)}
        # The ramp is the first part of its run, and only that part is timed.
        total = round(steps / techniques["pruning"].ramp) if "pruning" in techniques else steps
        trainer = trainer_class(
            model=self.student(), args=self.arguments(total), train_dataset=self.data, callbacks=[times], **techniques
        )
        trainer.build_report = lambda models, exported: CompressionReport()  # type: ignore[method-assign]
        trainer.train()
        return times.milliseconds, times.synchronizations

    def _time_loop(self, steps: int) -> float:
        student = self.student().to(self.device).train()
        teacher = copy.deepcopy(self.teacher).to(self.device)
        optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, fused=self.device.type == "cuda")
        if self.device.type == "cuda":
            teacher = teacher.to(torch.bfloat16)
        loader = torch.utils.data.DataLoader(self.data, self.rows, pin_memory=self.device.type == "cuda")
        batches = itertools.cycle(list(loader))
        for number in range(steps):
            if number == WARMUP_STEPS + COUNTED_STEPS:
                synchronize()
                start = time.perf_counter()
            batch = {name: value.to(self.device, non_blocking=True) for name, value in next(batches).items()}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                outputs = student(**batch)
                del batch["labels"]
                with torch.no_grad():
                    targets = teacher(**batch).logits
            soft = torch.nn.functional.kl_div(
                (outputs.logits.float() / 2).log_softmax(-1), (targets.float() / 2).softmax(-1)
            )
            (0.5 * outputs.loss + 2 * soft).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        synchronize()
        return 1e3 * (time.perf_counter() - start) / (steps - WARMUP_STEPS - COUNTED_STEPS)

    def training(self) -> dict[str, Any]:
        """Return milliseconds a step of each technique, and their ratios, of runs that alternate."""
        names = ("Trainer", LOOP, *TECHNIQUES)
        times: dict[str, list[float]] = {name: [] for name in names}
        counts: dict[str, float | None] = {}
        for _ in range(self.options.repeats):
            for name in names:
                milliseconds, counts[name] = self.time_steps(name, self.options.steps)
                times[name].append(milliseconds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        return {
            name: {
                "step_ms": value,
                "texts_per_second": 1e3 * self.rows / value,
                "compared_with": None if name in ("Trainer", LOOP) else BASELINES.get(name, LOOP),
                "ratio": None if name in ("Trainer", LOOP) else value / medians[BASELINES.get(name, LOOP)],
                "synchronizations": counts[name],
            }
            for name, value in medians.items()
        }

    def checkpointing(self) -> dict[str, Any]:
        """Return peak memory and milliseconds of a step, with and without gradient checkpointing."""
        results = {}
        for enabled in (False, True):
            times, memory = StepTimes(), ProcessMemory(self.device)
            args = self.arguments(self.options.steps, activation_checkpointing=enabled)
            trainer = EfficientTrainer(model=copy.deepcopy(self.teacher), args=args, train_dataset=self.data)
            trainer.build_report = lambda models, exported: CompressionReport()  # type: ignore[method-assign]
            trainer.add_callback(times)
            memory.start()
            trainer.train()
            results["checkpointing" if enabled else "none"] = {
                "step_ms": times.milliseconds,
                "peak_bytes": memory.peak(),
            }
        return results

    def latency(self) -> dict[str, Any]:
        """Return the median latency of teacher and student, in each data type, by batch size."""
        types = (torch.float32, *(getattr(torch, name) for name in half_precision_types(self.device)))
        results = {}
        for batch_size in self.options.batch_sizes:
            rows = self.data[:1]["input_ids"].repeat(batch_size, 1).to(self.device)
            calls: dict[str, Callable[[], object]] = {}
            for (role, model), dtype in itertools.product(
                {"teacher": self.teacher, "student": self.student()}.items(), types
            ):
                placed = copy.deepcopy(model).to(self.device, dtype).eval()
                calls[f"{role} {str(dtype).removeprefix('torch.')}"] = partial(placed, input_ids=rows)
            durations = time_interleaved(calls, repeats=self.options.repeats * 10)
            medians = {name: statistics.median(each) for name, each in durations.items()}
            results[f"{batch_size}x{self.tokens}"] = medians
        return results

    def energy(self) -> dict[str, Any]:
        """Return the joules of a thousand texts of teacher and student, None without a counter."""
        rows = self.data[: self.rows]["input_ids"].to(self.device)
        results: dict[str, Any] = {}
        for role, model in (("teacher", self.teacher), ("student", self.student())):
            placed = copy.deepcopy(model).to(self.device).eval()
            with EnergyCounter(self.device) as counter, torch.inference_mode():
                for _ in range(self.options.steps):
                    placed(input_ids=rows)
                synchronize()
            texts = self.rows * self.options.steps
            results[role] = None if counter.energy is None else 1e3 * counter.energy.joules / texts
        return {"joules_per_1000_texts": results}


PARTS = ("training", "checkpointing", "latency", "energy")


@contextmanager
def timed(results: Results, key: str) -> Iterator[None]:
    """Keep how long a part took."""
    start = time.perf_counter()
    yield
    results[f"{key}, seconds"] = round(time.perf_counter() - start, 1)


def main() -> None:
    """Measure the parts that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="[cuda]")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few steps, to try the script")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--publish", action="store_true", help="copy the results to scripts/benchmarks/results/")
    options = parser.parse_args()
    options.steps, options.repeats = (WARMUP_STEPS + COUNTED_STEPS + 3, 1) if options.tiny else (65, 3)
    options.batch_sizes = (1, 2) if options.tiny else (1, 8, 64)
    shapes = [(name, 4, 8) for name in TINY] if options.tiny else [(name, 64, n) for name in SIZES for n in (64, 128)]
    results = Results(OUT / "gpu" / "results.json")
    results["environment"] = describe_environment()
    for (name, rows, tokens), part in itertools.product(shapes, options.only):
        key = f"{name}, {rows}x{tokens}, {part}"
        if key not in results:
            with timed(results, key):
                results[key] = getattr(Benchmark({**SIZES, **TINY}[name], rows, tokens, options), part)()
    if options.publish:
        shutil.copy(results.path, PUBLISHED)


if __name__ == "__main__":
    main()
