"""What is said about compression in general, each claim beside what was measured here.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/claims.py [--measure connections accumulation ...] [--seeds 3]

SST-2 with 8,000 held-out rows and the teacher of `recipe.py`; an hour on two cores with three seeds, and each
measurement is kept, so that an interrupted benchmark is continued. Claims that other benchmarks measure are read from
their published results. Writes results/claims.json and results/claims.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from recipe_data import FOLDER, Benchmark
from sst2 import RESULTS, Results
from transformers import PreTrainedModel, set_seed

from hf_efficient import DistillationConfig, PruningConfig, QuantizationConfig, prune, quantize
from hf_efficient.measurement.latency import sample_inputs, time_interleaved

BATCH_SIZE, TOKENS = 8, 64  # of latencies
CUT = 4  # times fewer operations
FEW_LABELS = 1000
STEPS = 300
LEARNING_RATE = 2e-4
TICKET_STEPS, TICKET_LEARNING_RATE, TICKET_SPARSITY = 600, 1e-4, 0.7
HIDDEN: dict[str, Any] = {"hidden_weight": 10.0, "student_dropout": 0.0}


class Measurements:
    """The benchmark of SST-2, its teacher, and what is measured with it."""

    def __init__(self) -> None:
        self.benchmark = Benchmark("sst2")
        self.teacher = self.benchmark.teacher
        self.labels = self.benchmark.labels()

    def accuracy(self, model: PreTrainedModel) -> float:
        """Return the accuracy of `model` on the held-out rows."""
        return float(np.mean(self.benchmark.predict(model) == self.labels))

    def connections(self, seed: int) -> dict[str, float]:
        """Return the speed-ups of nine in ten connections set to zero, and of half the operations removed."""
        batches = self.benchmark.sample(512, seed)
        sparse = prune(self.teacher, PruningConfig(weights=0.9, criterion="magnitude"), batches)
        narrow = prune(self.teacher, PruningConfig(target_flops=2.0), batches)
        shallow = prune(self.teacher, PruningConfig(layers=0.5), batches)
        inputs = sample_inputs(self.teacher.config.vocab_size, BATCH_SIZE, TOKENS, torch.device("cpu"))
        models = {"teacher": self.teacher, "connections": sparse, "heads and neurons": narrow, "layers": shallow}
        durations = time_interleaved({name: partial(model.eval(), **inputs) for name, model in models.items()})
        medians = {name: statistics.median(values) for name, values in durations.items()}
        return {name: medians["teacher"] / value for name, value in medians.items() if name != "teacher"}

    def accumulation(self, seed: int) -> dict[str, float]:
        """Return the largest difference of a weight after 20 steps of 64 examples, at once and in four parts."""
        common: dict[str, Any] = {"train_sampling_strategy": "random", "bf16": False}
        models = [
            self.benchmark.train(
                self.benchmark.cut(CUT),
                20,
                seed,
                LEARNING_RATE,
                DistillationConfig(**HIDDEN),
                per_device_train_batch_size=64 // parts,
                gradient_accumulation_steps=parts,
                **common,
            )[0]
            for parts in (1, 4)
        ]
        start = dict(self.benchmark.cut(CUT).named_parameters())
        pairs = [(name, a, b) for (name, a), (_, b) in zip(*(m.named_parameters() for m in models), strict=True)]
        return {
            "difference": max(float((a - b).abs().max()) for _, a, b in pairs),
            "change": max(float((a - start[name]).abs().max()) for name, a, _ in pairs),
        }

    def aware(self, seed: int) -> dict[str, float]:
        """Return the accuracy of a student in float, quantized after its training, and trained for 8 bits."""
        float_student = self._distil(seed)
        scheme = "int8_static"
        after = quantize(float_student, QuantizationConfig(scheme), self.benchmark.sample(512, seed))
        aware = self._distil(seed, quantization=QuantizationConfig(scheme, aware=True))
        models = {"float": float_student, "after training": after, "aware": aware}
        return {name: self.accuracy(model) for name, model in models.items()}

    def few_labels(self, seed: int) -> dict[str, float]:
        """Return the accuracy of students that learn from labels, or from soft labels, of 1,000 rows."""
        data = self.benchmark.prepared.tokenized_splits["train"].shuffle(seed=seed).select(range(FEW_LABELS))
        weights = {"labels": (1.0, 0.0), "soft labels": (0.0, 1.0), "both": (0.5, 0.5)}
        return {
            name: self.accuracy(
                self._distil(seed, hard_label_weight=hard, logits_weight=soft, hidden_weight=0.0, train_dataset=data)
            )
            for name, (hard, soft) in weights.items()
        }

    def ticket(self, seed: int) -> dict[str, float]:
        """Return the accuracy of all connections, and of some: the largest after training, and random ones."""
        results = {}
        for name, criterion in (("dense", None), ("ticket", "magnitude"), ("random mask", "random")):
            set_seed(seed)
            pruning = criterion and PruningConfig(weights=TICKET_SPARSITY, criterion=criterion, rewind="weights")
            steps = 2 * TICKET_STEPS if criterion else TICKET_STEPS  # half of them before the mask is chosen
            model, _ = self.benchmark.train(
                self.benchmark.pretrained(), steps, seed, TICKET_LEARNING_RATE, pruning=pruning or None
            )
            results[name] = self.accuracy(model)
        return results

    def _distil(
        self, seed: int, quantization: QuantizationConfig | None = None, train_dataset: Any = None, **settings: Any
    ) -> PreTrainedModel:
        config = DistillationConfig(**{**HIDDEN, **settings})
        student = self.benchmark.cut(CUT)
        inputs: dict[str, Any] = {"quantization": quantization, "train_dataset": train_dataset}
        return self.benchmark.train(student, STEPS, seed, LEARNING_RATE, config, **inputs)[0]


MEASUREMENTS: dict[str, Callable[[Measurements, int], dict[str, float]]] = {
    "connections": Measurements.connections,
    "accumulation": Measurements.accumulation,
    "aware": Measurements.aware,
    "few labels": Measurements.few_labels,
    "ticket": Measurements.ticket,
}
CARDS = RESULTS.parents[2] / "model_cards"
ONE_SEED = ("connections", "accumulation")


@dataclass(frozen=True)
class Verdict:
    """A claim, the figures that were measured, whether they confirm it, and why not."""

    claim: str
    figures: str
    holds: bool
    why: str
    source: str


def published(name: str) -> Any:
    """Return the published results of another benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def judge_connections(seeds: Sequence[Mapping[str, float]]) -> Verdict:
    """Judge whether single connections save no time, and heads, neurons and layers do."""
    figures = ", ".join(f"{name} {seeds[0][name]:.2f}x" for name in seeds[0])
    return Verdict(
        "Pruning single connections does not speed a model up; removing heads, neurons and layers does",
        f"90% of the connections, half of the operations, half of the layers: {figures} as fast",
        seeds[0]["connections"] < 1.1 and min(seeds[0]["heads and neurons"], seeds[0]["layers"]) > 1.5,
        "",
        "claims.py",
    )


def judge_iterative() -> list[Verdict]:
    """Judge whether iterative pruning is better than one step, and training better than none."""
    curves, fractions = published("sparsity_curves")["curves"], ("0.6", "0.8", "0.9")
    columns = {name: [100 * curve[fraction] for fraction in fractions] for name, curve in curves.items()}

    def describe(*names: str) -> str:
        rows = "; ".join(f"{name} {', '.join(f'{value:.1f}' for value in columns[name])}" for name in names)
        return f"accuracy in % with 60, 80 and 90% removed: {rows} (one seed, 872 rows)"

    def is_better(name: str, other: str) -> bool:
        return all(first > second for first, second in zip(columns[name], columns[other], strict=True))

    source = "sparsity_curves.py"
    return [
        Verdict(
            f"Iterative pruning is better than pruning once, {how} training",
            describe(f"iterative{ending}", f"one-shot{ending}"),
            is_better(f"iterative{ending}", f"one-shot{ending}"),
            "with as many examples in total, a student pruned once has all of them at its final shape",
            source,
        )
        for how, ending in (("without", ""), ("with", ", retrained"))
    ] + [
        Verdict(
            "Training again is better than not",
            describe("one-shot", "one-shot, retrained"),
            is_better("one-shot, retrained", "one-shot"),
            "",
            source,
        )
    ]


def judge_int8() -> list[Verdict]:
    """Judge whether 8 bits are four times smaller and 1.5 times faster, in torch and in OpenVINO."""
    results = published("int8_amx")
    sizes = [f"{batch}x{tokens}" for batch in (1, 8) for tokens in (16, 64, 256)]
    verdicts = []
    for runtime, plain, quantized in (("torch", "float32", "int8_static"), ("OpenVINO", "openvino", "openvino_int8")):
        latencies = {size: results[f"latency minilm-sst2 {size}"] for size in sizes}
        ratios = {size: values[plain] / values[quantized] for size, values in latencies.items()}
        verdicts.append(
            Verdict(
                f"8 bits are at least 1.5 times faster than float, in {runtime}",
                "CPU with AMX, " + ", ".join(f"{size} {ratio:.1f}x" for size, ratio in ratios.items()),
                min(ratios.values()) >= 1.5,
                f"not at {', '.join(size for size, ratio in ratios.items() if ratio < 1.5)}: there the products are a "
                "small part of the time",
                "int8",
            )
        )
    card = json.loads((CARDS / "minilm-sst2-2x-int8" / "compression_report.json").read_text(encoding="utf-8"))
    sizes_on_disk = {row["role"]: row["bytes_on_disk"] for row in card["models"]}
    ratio = sizes_on_disk["student"] / sizes_on_disk["quantized"]
    claim = "8 bits are four times smaller"
    figures = f"{ratio:.2f} times: scales and code are in the files too"
    return [*verdicts, Verdict(claim, figures, ratio >= 3.8, "", "main_job")]


def judge_aware(seeds: Sequence[Mapping[str, float]]) -> Verdict:
    """Judge whether quantization-aware training loses less than quantization after training."""
    means = _means(seeds)
    loss = 100 * (means["float"] - means["after training"])
    return Verdict(
        "Quantization-aware training loses less than quantization after training",
        f"8 bits, student with {CUT}x fewer operations: {_format(means)} ({len(seeds)} seeds, 8,006 rows)",
        all(seed["aware"] > seed["after training"] for seed in seeds),
        f"8 bits with calibrated ranges lose {loss:.1f} points, so there is little to win back",
        "claims.py",
    )


def judge_codebooks() -> Verdict:
    """Judge whether levels found by k-means are better than evenly spaced ones."""
    results = published("codebooks")
    pairs = {name: (value["accuracy"], value["accuracy_of_even_steps"]) for name, value in results.items()}
    figures = ", ".join(f"{name}: {100 * a:.1f}% against {100 * b:.1f}%" for name, (a, b) in pairs.items())
    return Verdict(
        "Levels found by k-means are better than evenly spaced ones of as many bits",
        f"{figures} (872 rows)",
        all(a > b for a, b in pairs.values()),
        "",
        "codebooks.py",
    )


def judge_soft_labels(seeds: Sequence[Mapping[str, float]]) -> Verdict:
    """Judge whether soft labels help where few rows have labels."""
    return Verdict(
        f"Soft labels of the teacher help, with {FEW_LABELS:,} rows",
        f"{_format(_means(seeds))} ({len(seeds)} seeds, 8,006 rows)",
        all(seed["soft labels"] > seed["labels"] for seed in seeds),
        "",
        "claims.py",
    )


def judge_ticket(seeds: Sequence[Mapping[str, float]]) -> Verdict:
    """Judge whether initial weights under a mask found by training learn as well as all of them."""
    means = _means(seeds)
    return Verdict(
        f"Lottery ticket: with {TICKET_SPARSITY:.0%} of the connections zero, the initial weights train as well as "
        "all of them, and better than under a random mask",
        f"{_format(means)} ({len(seeds)} seeds, 8,006 rows)",
        means["ticket"] > means["dense"] - 0.01 and means["ticket"] > means["random mask"],
        f"{100 * (means['ticket'] - means['random mask']):+.1f} points against a random mask, "
        f"{100 * (means['ticket'] - means['dense']):+.1f} against all connections",
        "claims.py",
    )


def judge_checkpointing() -> Verdict:
    """Judge whether checkpointing trades time for memory."""
    result = published("training_costs")["checkpointing"]
    return Verdict(
        "Gradient checkpointing trades time for memory",
        f"shape of BERT-base, 16 x 256 tokens: {result['less_activation_memory']:.0%} of the activations and "
        f"{result['less_peak_memory']:.0%} of the peak saved, {result['times_step']:.2f} times the time",
        result["less_peak_memory"] > 0 and result["times_step"] > 1,
        "",
        "training_costs.py",
    )


def judge_accumulation(seeds: Sequence[Mapping[str, float]]) -> Verdict:
    """Judge whether accumulated gradients are those of the large batch."""
    difference, change = seeds[0]["difference"], seeds[0]["change"]
    return Verdict(
        "Gradient accumulation equals the large batch",
        f"20 steps of 64 examples, at once and as 4 x 16: weights differ by at most {difference:.1e}, and have "
        f"changed by up to {change:.1e}",
        difference < 0.05 * change,
        "",
        "claims.py",
    )


def _means(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.mean(seed[name] for seed in seeds) for name in seeds[0]}


def _format(accuracies: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.1f}%" for name, value in accuracies.items())


def write_table(measured: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Write claims.md: each claim whose figures are there."""
    verdicts = [*judge_iterative(), *judge_int8(), judge_codebooks(), judge_checkpointing()]
    judges = {
        "connections": judge_connections,
        "aware": judge_aware,
        "few labels": judge_soft_labels,
        "ticket": judge_ticket,
        "accumulation": judge_accumulation,
    }
    verdicts += [judge(measured[name]) for name, judge in judges.items() if measured.get(name)]
    lines = ["# Claims", "", "| claim | measured | holds | by |", "| --- | --- | --- | --- |"]
    for verdict in verdicts:
        holds = "yes" if verdict.holds else f"not here: {verdict.why}" if verdict.why else "not here"
        lines.append(f"| {verdict.claim} | {verdict.figures} | {holds} | `{verdict.source}` |")
    (RESULTS / "claims.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Measure what has no result yet, then write the table of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="*", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of the trainings [3]")
    args = parser.parse_args()
    results, measurements = Results(FOLDER.parent / "claims" / "results.json"), None
    for seed in range(args.seeds):
        for name in args.measure:
            key = f"{name} seed {seed}"
            if key in results or (seed and name in ONE_SEED):
                continue
            measurements = measurements or Measurements()
            results[key] = MEASUREMENTS[name](measurements, seed)
    measured: dict[str, list[Any]] = {}
    for key in sorted(results.values):
        measured.setdefault(key.rpartition(" seed ")[0], []).append(results[key])
    (RESULTS / "claims.json").write_text(json.dumps(results.values, indent=2) + "\n", encoding="utf-8")
    write_table(measured)


if __name__ == "__main__":
    main()
