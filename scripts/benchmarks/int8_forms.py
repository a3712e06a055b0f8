"""Int8 against float on this CPU: latency of every form of a model, agreement, independence of the batch, memory.

    HF_EFFICIENT_ASSETS=... scripts/benchmarks/int8 [--models ...] [--forms ...] [--grid small] [--compile]

| part | what is measured |
| --- | --- |
| latency | medians for batch sizes 1, 2, 8, 32 and 16, 64, 128, 256 tokens; all forms of a model alternately |
| accuracy | `minilm-sst2`: accuracy on 872 texts; agreement with float, margin noise on these and 3,000 more |
| batches | `minilm-sst2`: 200 texts alone and in batches of 20, the differences of the logits |
| memory | `minilm-sst2`: bytes that a saved model and its first batch add to the resident memory of a process |

Models: `minilm-sst2`, its students with a half and a quarter of the operations, which are not trained since that
changes no latency, and 4 layers of the shape of BERT-base with random weights. Int8 is calibrated on 256 training
texts, that of the model with random weights on random tokens.

Results are written after each measurement to out/int8/KIND.json, where an interrupted run continues, and copied to
results/int8_KIND.json, with a table beside it. KIND is that of the CPU: avx2, avx512, avx512_vnni or amx.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from int8_accuracy import measure_accuracy, measure_memory
from int8_table import UNPRUNED, render
from sst2 import OUT, RESULTS, Results, Sst2
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, PreTrainedModel

from hf_efficient import PruningConfig, QuantizationConfig, load_exported, prune, quantize
from hf_efficient.measurement.comparison import model_inputs
from hf_efficient.measurement.compilation import compile_model
from hf_efficient.measurement.environment import describe_environment
from hf_efficient.measurement.latency import time_interleaved
from hf_efficient.models import int8_kernels
from hf_efficient.variants.config import VARIANTS

CALIBRATION_TEXTS, SCORING_TEXTS = 256, 512
SMALL_GRID = [(batch, length) for batch in (1, 8) for length in (16, 64, 256)]
GRIDS = {
    "small": SMALL_GRID,
    "full": list(
        dict.fromkeys([*SMALL_GRID, *((batch, length) for batch in (1, 2, 8, 32) for length in (16, 64, 128, 256))])
    ),
}
# The environment variable by which torch leaves out instructions of the CPU.
LIMIT = "ATEN_CPU_CAPABILITY"
PARTS = ("latency", "accuracy", "memory")
COMPILED = "torchao_compiled"

Batches = Sequence[Mapping[str, torch.Tensor]]
Calls = dict[str, Callable[[], object]]


def student(sst2: Sst2, ratio: float) -> PreTrainedModel:
    """Return the teacher with so many times fewer operations."""
    config = PruningConfig(target_flops=ratio, scoring_samples=SCORING_TEXTS)
    return prune(sst2.teacher(), config, sst2.sample(SCORING_TEXTS, 0))


def bert_base_layers(_: Sst2) -> PreTrainedModel:
    """Return 4 layers of the shape of BERT-base, with random weights."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_hidden_layers=4)).eval()


MODELS: dict[str, Callable[[Sst2], PreTrainedModel]] = {
    "minilm-sst2": Sst2.teacher,
    "minilm-sst2-2x": partial(student, ratio=2),
    "minilm-sst2-4x": partial(student, ratio=4),
    "bert-base-4-layers": bert_base_layers,
}
RANDOM_MODELS = ("bert-base-4-layers",)


def random_batches(model: PreTrainedModel) -> Batches:
    """Return calibration batches of random tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(model.config.vocab_size, (CALIBRATION_TEXTS, 64), generator=generator)
    return [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in torch.split(ids, 32)]


def load(folder: Path) -> PreTrainedModel:
    """Return a saved model in the data types of its file."""
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def torch_form(scheme: str | None, torchao: bool = False) -> Callable[..., Any]:
    """Return what makes a form in torch, saves it and loads it again."""

    def build(model: PreTrainedModel, calibration: Batches, folder: Path) -> Any:
        if not folder.exists():
            config = QuantizationConfig(scheme, torchao=torchao)
            form = model if scheme is None else quantize(model, config, None if torchao else calibration)
            form.save_pretrained(folder)
        return load(folder)

    return build


def exported_form(variant: str) -> Callable[..., Any]:
    """Return what makes a form outside of torch, or loads it from its folder."""
    format, _, quantization = variant.partition("_")

    def build(model: PreTrainedModel, calibration: Batches, folder: Path) -> Any:
        if not (folder / format).exists():
            VARIANTS[variant](model, model_inputs(model, 1, 64), calibration, folder)
        return load_exported(folder / format, quantization or None, full_precision=not quantization)

    return build


def compiled_form(model: PreTrainedModel, calibration: Batches, folder: Path) -> Any:
    """Return the form of torchao under torch.compile; None if that takes longer than two minutes."""
    form = torch_form("int8_dynamic", torchao=True)(model, calibration, folder.with_name("torchao"))
    return compile_model(form, model_inputs(form, 8, 64))


FORMS: dict[str, Callable[[PreTrainedModel, Batches, Path], Any]] = {
    "float32": torch_form(None),
    "int8_static": torch_form("int8_static"),
    "int8_dynamic": torch_form("int8_dynamic"),
    "torchao": torch_form("int8_dynamic", torchao=True),
    COMPILED: compiled_form,
    "onnx": exported_form("onnx"),
    "onnx_int8": exported_form("onnx_int8"),
    "openvino": exported_form("openvino"),
    "openvino_int8": exported_form("openvino_int8"),
}
TORCH_FORMS = ("float32", "int8_static", "int8_dynamic", "torchao")


class Forms:
    """The forms of one model by name, each made when it is needed and kept in a folder for the next run."""

    def __init__(self, name: str, names: Sequence[str], sst2: Sst2, folder: Path) -> None:
        float_folder = folder / name / "float32"
        if not float_folder.exists():
            MODELS[name](sst2).save_pretrained(float_folder)
        self.model = load(float_folder)
        self.calibration = random_batches(self.model) if name in RANDOM_MODELS else sst2.sample(CALIBRATION_TEXTS, 0)
        self.folder, self.names, self.made = folder / name, names, dict[str, Any]()

    def all(self) -> dict[str, Any]:
        """Return the forms that can be made, in their order."""
        for name in self.names:
            if name not in self.made:
                self.made[name] = FORMS[name](self.model, self.calibration, self.folder / name)
        return {name: form for name, form in self.made.items() if form is not None}


def time_forms(calls: Calls, seconds: float, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of `calls`, timed alternately.

    Each is called `repeats` times, or until it has taken `seconds`.
    """
    first = time_interleaved(calls, 1, warmup=1, turn=1)
    turn = max(1, min(10, round(200 / min(times[0] for times in first.values()) / 4)))
    durations: dict[str, list[float]] = {name: [] for name in calls}
    remaining = dict(calls)
    while remaining:
        for name, times in time_interleaved(remaining, turn, warmup=min(3, turn), turn=turn).items():
            durations[name] += times
        remaining = {
            name: call
            for name, call in remaining.items()
            if sum(durations[name]) < 1e3 * seconds and len(durations[name]) < repeats
        }
    return {name: statistics.median(times) for name, times in durations.items()}


def measure_latency(
    results: Results, name: str, forms: Forms, others: Mapping[str, Any], args: argparse.Namespace
) -> None:
    """Measure the forms of a model, and `others` beside them, at every point of the grid that has no results yet."""
    for batch, length in GRIDS[args.grid]:
        key = f"latency {name} {batch}x{length}"
        if key in results and set(args.forms) <= set(results[key]):
            continue
        inputs = model_inputs(forms.model, batch, length)
        calls: Calls = {title: partial(form, **inputs) for title, form in {**others, **forms.all()}.items()}
        results[key] = {**dict.fromkeys(args.forms), **time_forms(calls, args.seconds, args.repeats)}


def cpu_kind() -> str:
    """Return the instructions of the CPU on which the speed of int8 depends: amx, avx512_vnni, avx512 or avx2."""
    vectors = torch.backends.cpu.get_cpu_capability()
    available = torch.cpu.get_capabilities()
    if vectors != "AVX2" and available.get("amx_int8"):
        return "amx"
    if vectors != "AVX2" and available.get("avx512_vnni"):
        return "avx512_vnni"
    return vectors.lower()


def describe_machine() -> dict[str, Any]:
    """Return the machine, the kernel that native int8 uses on it, and a limit of its instructions, if there is one."""
    kernel = int8_kernels.select_kernel()
    return {
        **describe_environment(),
        "kernel": None if kernel is None else kernel.__name__,
        "limited_to": os.environ.get(LIMIT),
    }


def publish(results: Results, kind: str) -> None:
    """Copy the results so far, and write their table."""
    RESULTS.mkdir(exist_ok=True)
    shutil.copyfile(results.path, RESULTS / f"int8_{kind}.json")
    (RESULTS / f"int8_{kind}.md").write_text(render(results.values), encoding="utf-8")


def main() -> None:
    """Measure what has no result yet, and write the tables after each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), help="by default all but torchao_compiled")
    parser.add_argument("--grid", choices=list(GRIDS), default="full")
    parser.add_argument("--repeats", type=int, default=40, help="calls of a form that are timed at most")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds for a form at a point of the grid at most")
    parser.add_argument("--compile", action="store_true", help="also torchao under torch.compile: a minute or two")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    asked = {"float32", *(args.forms or set(FORMS) - {COMPILED}), *([COMPILED] if args.compile else [])}
    args.forms = [name for name in FORMS if name in asked]
    kind, sst2 = cpu_kind(), Sst2()
    results = Results(OUT / "int8" / f"{kind}.json")
    results["machine"] = describe_machine()
    for name in args.models:
        forms = Forms(name, args.forms, sst2, OUT / "int8" / "forms" / kind)
        if "latency" in args.parts:
            others = {UNPRUNED: sst2.teacher()} if name.startswith("minilm-sst2-") else {}
            measure_latency(results, name, forms, others, args)
        if name == "minilm-sst2":
            if "accuracy" in args.parts:
                measure_accuracy(results, sst2, forms.all(), CALIBRATION_TEXTS)
            if "memory" in args.parts:
                measure_memory(results, {form: forms.folder / form for form in args.forms if form in TORCH_FORMS})
        publish(results, kind)


if __name__ == "__main__":
    main()
