"""Which training restores the accuracy of a cut student: recipes tried one by one, on many rows nobody was trained on.

    HF_EFFICIENT_ASSETS=... python scripts/benchmarks/recipe.py [--budget_minutes 35] [--cells 'sst2 4x *'] [--list]

A teacher is fine-tuned from minilm-l6-h384 on SST-2 without 8,000 held-out rows, whole sentences with all of their
phrases; on Banking77, STS-B and WNUT-17 the held-out rows are the validation and test splits. Its students are cut,
corrected by least squares and trained on the same rows as the teacher. Model and teacher are judged on the same
held-out rows: each comparison is paired, with its 95% interval (bootstrap over the rows, mean over the seeds).

A cell is one training: dataset, cut, recipe, steps and seed. Cells are kept in out/recipe, so that an interrupted
benchmark is continued; the most telling ones come first. Results in results/recipe.json, .md and .png.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipe_data import DATASETS, FOLDER, SCORING_SAMPLES, Benchmark
from recipe_table import write_results
from sst2 import RESULTS
from transformers import PreTrainedModel, TrainerCallback
from transformers.utils import logging

from hf_efficient import DistillationConfig, PruningConfig
from hf_efficient.commands.training_defaults import RAMP, choose_learning_rate
from hf_efficient.errors import UserError
from hf_efficient.models import family_of
from hf_efficient.pruning.reconstruction import reconstruct_outputs
from hf_efficient.pruning.selection import Selection

logger = logging.get_logger("hf_efficient")
EMA_DECAY = 0.99
MASKED_SHARE = 0.1


class AveragedWeights(TrainerCallback):
    """Replaces the weights, at the end of training, by their exponential moving average."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Start with the weights as they are."""
        self.average = {name: value.detach().clone() for name, value in model.named_parameters()}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Move the average towards the weights; a shorter memory in the first steps."""
        decay = min(EMA_DECAY, state.global_step / (state.global_step + 10))
        with torch.no_grad():
            for name, value in model.named_parameters():
                self.average[name].lerp_(value, 1 - decay)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Install the average."""
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(self.average[name])


class MaskedWords:
    """Makes the batches of `collator` with a share of the tokens masked; the teacher sees the same texts."""

    def __init__(self, collator: Any, tokenizer: Any) -> None:
        self.collator, self.tokenizer = collator, tokenizer

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch."""
        batch = dict(self.collator(examples))
        ids = batch["input_ids"]
        is_special = torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids))
        chosen = (torch.rand(ids.shape) < MASKED_SHARE) & ~is_special
        return {**batch, "input_ids": ids.masked_fill(chosen, self.tokenizer.mask_token_id)}


@dataclass(frozen=True)
class Recipe:
    """How a student is trained.

    | field | meaning |
    | --- | --- |
    | distillation | fields of `DistillationConfig` |
    | learning_rate | its peak; None: what `compress` chooses for the cut |
    | first | the same, for the first half of the steps |
    | pruning | fields of `PruningConfig` for a removal during training; None: the student is cut before |
    | corrected_again | least squares once more after training |
    """

    distillation: dict[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    criterion: str = "fisher"
    first: dict[str, Any] | None = None
    pruning: dict[str, Any] | None = None
    collator: Callable[..., Any] | None = None
    callback: type[TrainerCallback] | None = None
    corrected_again: bool = False


BOTH: dict[str, Any] = {"hard_label_weight": 0.5, "logits_weight": 0.5, "hidden_weight": 0.0, "student_dropout": 0.0}
SOFT = {**BOTH, "hard_label_weight": 0.0}
HIDDEN = {**SOFT, "hidden_weight": 10.0}
WITH_DROPOUT = {"student_dropout": 0.1}  # of MiniLM
# What a plain loop of distillation does, what most others differ from, and the defaults of `compress`.
BASE, MAIN, DEFAULT = "hard and soft, dropout, lr 1e-4", "soft, hidden", "hard and soft, hidden"
GRADUAL = f"{DEFAULT}, ramp"
BOTH_HIDDEN = {**BOTH, "hidden_weight": 10.0}
with_hidden = partial(Recipe, HIDDEN)
RECIPES = {
    BASE: Recipe({**BOTH, **WITH_DROPOUT}, 1e-4),
    DEFAULT: Recipe(BOTH_HIDDEN),
    GRADUAL: Recipe(BOTH_HIDDEN, pruning={"ramp": RAMP}),
    f"{GRADUAL}, lr 2e-4": Recipe(BOTH_HIDDEN, 2e-4, pruning={"ramp": RAMP}),
    MAIN: with_hidden(),
    "hard and soft": Recipe(BOTH),
    f"{DEFAULT}, dropout": Recipe({**BOTH_HIDDEN, **WITH_DROPOUT}),
    f"{DEFAULT}, dropout, lr 1e-4": Recipe({**BOTH_HIDDEN, **WITH_DROPOUT}, 1e-4),
    "soft": Recipe(SOFT),
    "soft, dropout, lr 1e-4": Recipe({**SOFT, **WITH_DROPOUT}, 1e-4),
    "soft, hidden, dropout, lr 1e-4": Recipe({**HIDDEN, **WITH_DROPOUT}, 1e-4),
    "hard": Recipe({**BOTH, "hard_label_weight": 1.0, "logits_weight": 0.0}),
    f"{DEFAULT}, lr 2e-4": Recipe(BOTH_HIDDEN, 2e-4),
    "soft, hidden, lr 5e-5": with_hidden(5e-5),
    "soft, hidden, lr 1e-4": with_hidden(1e-4),
    "soft, hidden, lr 2e-4": with_hidden(2e-4),
    "soft, hidden, lr 3e-4": with_hidden(3e-4),
    "soft, hidden 100": Recipe({**SOFT, "hidden_weight": 100.0}),
    "soft, hidden 1": Recipe({**SOFT, "hidden_weight": 1.0}),
    "soft, relations": Recipe({**SOFT, "relation_weight": 10.0}),
    "soft, hidden, relations": Recipe({**HIDDEN, "relation_weight": 10.0}),
    "soft, hidden, attention": Recipe({**HIDDEN, "attention_weight": 0.1}),
    "soft, hidden, T 1": Recipe({**HIDDEN, "temperature": 1.0}),
    "soft, hidden, T 4": Recipe({**HIDDEN, "temperature": 4.0}),
    "hidden, then soft": with_hidden(first={**HIDDEN, "logits_weight": 0.0}),
    "soft, hidden, averaged weights": with_hidden(callback=AveragedWeights),
    "soft, hidden, masked words": with_hidden(collator=MaskedWords),
    "soft, hidden, corrected again": with_hidden(corrected_again=True),
    "soft, hidden, 3 rounds": with_hidden(pruning={"rounds": 3}),
    "soft, hidden, ramp": with_hidden(pruning={"ramp": 0.3}),
    "soft, hidden, ramp, lr 3e-4": with_hidden(3e-4, pruning={"ramp": 0.3}),
    "soft, hidden, taylor": with_hidden(criterion="taylor"),
    "soft, hidden, magnitude": with_hidden(criterion="magnitude"),
    "soft, hidden, even layers": with_hidden(criterion="even layers"),
}


@dataclass(frozen=True)
class Cell:
    """One training."""

    dataset: str
    cut: float
    recipe: str
    steps: int
    seed: int = 0

    @property
    def name(self) -> str:
        """The name that `--cells` selects by."""
        return f"{self.dataset} {self.cut:g}x {self.recipe} {self.steps} seed {self.seed}"

    @property
    def path(self) -> Path:
        """The file of the result; the predictions lie beside it."""
        return FOLDER / "cells" / f"{self.name.replace(' ', '_').replace(',', '')}.json"


def plan(seeds: int) -> list[Cell]:
    """Return all cells, the most telling ones first."""
    cells = [Cell("sst2", cut, DEFAULT, 0) for cut in (2, 4, 8)]
    cells += [Cell("sst2", cut, recipe, 300) for cut in (4, 2, 8) for recipe in (BASE, DEFAULT, GRADUAL, MAIN)]
    cells += [Cell("sst2", 4, recipe, 300) for recipe in RECIPES if "lr" in recipe or recipe in ("soft", "hard")]
    cells += [
        Cell("sst2", cut, recipe, 300, seed)
        for seed in range(1, seeds)
        for cut in (4, 2, 8)
        for recipe in (BASE, DEFAULT, GRADUAL)
    ]
    cells += [
        Cell("sst2", cut, recipe, steps)
        for steps in (100, 1000, 3000)
        for cut in (4, 2, 8)
        for recipe in (DEFAULT, GRADUAL)
    ]
    for dataset in ("banking77", "stsb", "wnut17"):
        cells += [Cell(dataset, 4, recipe, steps) for steps in (0, 300) for recipe in (DEFAULT, GRADUAL, BASE)]
    cells += [Cell("sst2", cut, recipe, 300) for cut in (4, 8, 2) for recipe in RECIPES]
    cells += [
        Cell(dataset, cut, recipe, steps, seed)
        for steps in (300, 100, 1000, 3000, 10_000)
        for dataset in DATASETS
        for cut in (4, 2, 8)
        for seed in range(seeds)
        for recipe in RECIPES
        if recipe in (BASE, DEFAULT, GRADUAL) or steps == 300
    ]
    by_name = {cell.name: cell for cell in map(_without_training, cells) if _is_possible(cell)}
    return list(by_name.values())


def _without_training(cell: Cell) -> Cell:
    """Return the cell itself, or the only one without training, whatever its recipe."""
    return cell if cell.steps else Cell(cell.dataset, cell.cut, "not trained", 0)


def _is_possible(cell: Cell) -> bool:
    # Three of six layers are half the operations; of one or two layers no cut is a quarter or an eighth.
    return "even layers" not in cell.recipe or cell.cut == 2


def run(cell: Cell, benchmark: Benchmark) -> dict[str, Any]:
    """Train the student of a cell; return its record and keep its predictions."""
    recipe = RECIPES.get(cell.recipe, Recipe())
    seconds = 0.0
    if recipe.pruning is not None:
        student = copy.deepcopy(benchmark.teacher)
    else:
        student = benchmark.cut(cell.cut, recipe.criterion)
    learning_rate = recipe.learning_rate or choose_learning_rate(cell.cut)
    for steps, fields in _phases(cell.steps, recipe):
        pruning = PruningConfig(target_flops=cell.cut, **recipe.pruning) if recipe.pruning else None
        student, duration = benchmark.train(
            student,
            steps,
            cell.seed,
            learning_rate,
            DistillationConfig(**fields),
            recipe.collator,
            [recipe.callback()] if recipe.callback else [],
            pruning,
        )
        seconds += duration
    if recipe.corrected_again:
        correct(student, benchmark)
    predictions = benchmark.predict(student)
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(cell.path.with_suffix(".npz"), predictions=predictions)
    return {**asdict(cell), "seconds": round(seconds, 1), "predictions": cell.path.with_suffix(".npz").name}


def _phases(steps: int, recipe: Recipe) -> Iterator[tuple[int, dict[str, Any]]]:
    if steps and recipe.first is not None:
        yield steps // 2, recipe.first
        steps -= steps // 2
    if steps:
        yield steps, recipe.distillation


def correct(student: PreTrainedModel, benchmark: Benchmark) -> None:
    """Fit the output projections of a trained student to the teacher's hidden states once more."""
    stacks = family_of(student).structure(student.config).stacks
    layers = tuple(f"{stack}.{layer.source}" for stack, kept in stacks.items() for layer in kept)
    batches = benchmark.sample(SCORING_SAMPLES // 2, seed=0)
    reconstruct_outputs(student, benchmark.teacher, Selection(layers, {}), batches)


def keep_reference(benchmark: Benchmark, name: str) -> None:
    """Keep the labels of the held-out rows and the teacher's predictions, which students are compared with."""
    path = FOLDER / "cells" / f"{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_suffix(".partial.npz")
        np.savez_compressed(partial_path, predictions=benchmark.predict(benchmark.teacher), labels=benchmark.labels())
        partial_path.replace(path)


def run_cells(cells: list[Cell], budget_seconds: float) -> None:
    """Run the cells that have no result yet and fit into the budget, by what a step has taken so far."""
    start, benchmarks = time.perf_counter(), {}
    seconds_per_step = 0.1
    for cell in cells:
        if cell.path.exists():
            continue
        elapsed = time.perf_counter() - start
        if elapsed + cell.steps * seconds_per_step + 15 > budget_seconds:
            logger.warning(f"{cell.name}: skipped, it does not fit into the budget")
            continue
        if cell.dataset not in benchmarks:
            benchmarks[cell.dataset] = Benchmark(cell.dataset)
            keep_reference(benchmarks[cell.dataset], cell.dataset)
        try:
            record = run(cell, benchmarks[cell.dataset])
        except UserError as error:  # a recipe that these shapes do not allow
            record = {**asdict(cell), "error": str(error)}
        partial_path = cell.path.with_suffix(".partial")
        partial_path.parent.mkdir(parents=True, exist_ok=True)
        partial_path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        partial_path.replace(cell.path)
        if cell.steps >= 100 and "seconds" in record:
            seconds_per_step = record["seconds"] / cell.steps
        logger.warning(f"{cell.name}: {record.get('error') or record['seconds']}")


def main() -> None:
    """Run the cells, then write the results of all that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=["*"], help="names or patterns, such as 'sst2 4x * 300 seed *'")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds [3]")
    parser.add_argument("--budget_minutes", type=float, default=float("inf"), help="start no cell that ends later")
    parser.add_argument("--teachers", nargs="*", choices=DATASETS, help="only train these teachers")
    parser.add_argument("--list", action="store_true", help="print the names of the cells")
    args = parser.parse_args()
    cells = [cell for cell in plan(args.seeds) if any(fnmatch.fnmatch(cell.name, name) for name in args.cells)]
    if args.list:
        sys.stdout.write("".join(f"{cell.name}\n" for cell in cells))
        return
    if args.teachers is not None:
        for name in args.teachers:
            keep_reference(Benchmark(name), name)
        return
    run_cells(cells, 60 * args.budget_minutes)
    write_results(FOLDER / "cells", RESULTS, baseline=BASE, curves=(BASE, DEFAULT, GRADUAL))


if __name__ == "__main__":
    main()
