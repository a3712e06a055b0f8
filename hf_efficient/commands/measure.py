"""`hf-efficient measure`: models side by side, or what training one of them costs."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, get_type_hints

from rich.console import Console

from hf_efficient.commands.compare_models import compare_models
from hf_efficient.commands.training_costs import measure_training_costs
from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.measurement.report import CompressionReport
from hf_efficient.measurement.training_costs import (
    ACCUMULATIONS,
    ATTENTIONS,
    ON_OFF,
    PRECISIONS,
    parse_budget,
    setting_grid,
)
from hf_efficient.measurement.training_costs_plot import plot_costs
from hf_efficient.tasks import TASKS
from hf_efficient.variants.config import VARIANTS

DATA_FIELDS = (
    "text_column",
    "text_pair_column",
    "label_column",
    "summary_column",
    "source_lang",
    "target_lang",
    "source_prefix",
    "max_length",
    "max_target_length",
    "max_eval_samples",
)


def run(argv: Sequence[str]) -> None:
    """Run `hf-efficient measure`.

    Raises ValueError: a flag is given that says something only with --training, or only without it.
    """
    parser = argparse.ArgumentParser(
        prog="hf-efficient measure",
        description="Measure models side by side, the first is what the others are compared with; or, with "
        "--training, what training one of them costs.",
        allow_abbrev=False,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folders, or names on the Hub")
    parser.add_argument("--training", action="store_true", help="measure memory and time of training, over a grid")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code from the models' repositories")
    parser.add_argument("--output_dir", help="write a report (JSON) and a picture here")
    beside = _add_comparison_flags(parser.add_argument_group("models side by side"))
    training = _add_training_cost_flags(parser.add_argument_group("the cost of training (--training)"))
    args = parser.parse_args(argv)
    idle = beside if args.training else training
    given = [f"--{name}" for name in idle if getattr(args, name) != parser.get_default(name)]
    if given:
        condition = "without" if args.training else "with"
        raise UserError(f"{', '.join(given)}: only {condition} --training; leave out one or the other")
    if args.training:
        _measure_training(args)
    else:
        _compare_models(args)


def _add_comparison_flags(group: Any) -> list[str]:
    actions = [
        group.add_argument(
            "--forms",
            nargs="+",
            default=[],
            metavar="FORM",
            help=f"measure each in these forms: {', '.join(VARIANTS)}",
        ),
        group.add_argument("--validation_file", help="rows to measure quality on"),
        group.add_argument("--train_file", help="rows that openvino_int8 finds its ranges on"),
        group.add_argument("--dataset_name", help="a data set on the Hub to measure quality on"),
        group.add_argument("--dataset_config_name"),
        *(group.add_argument(f"--{name}", **_flag_options(DataConfig, name)) for name in DATA_FIELDS),
        group.add_argument("--latency_batch_size", type=int, default=1),
        group.add_argument("--latency_sequence_length", type=int, default=128),
    ]
    return [action.dest for action in actions]


def _add_training_cost_flags(group: Any) -> list[str]:
    switch, several = list(ON_OFF), {"nargs": "+"}
    actions = [
        group.add_argument("--memory_budget", metavar="8GB", help="recommend the fastest setting that fits"),
        group.add_argument("--train_batch_size", type=int, default=32, help="examples of a step of the optimizer"),
        group.add_argument("--train_sequence_length", type=int, default=128, help="tokens of an example"),
        group.add_argument("--checkpointing", **several, choices=switch, default=switch),
        group.add_argument(
            "--accumulation",
            **several,
            type=int,
            default=list(ACCUMULATIONS),
            help="micro-batches of a step; those that do not divide the batch are left out",
        ),
        group.add_argument("--precision", **several, choices=PRECISIONS, default=list(PRECISIONS)),
        group.add_argument("--attention", **several, choices=ATTENTIONS, default=list(ATTENTIONS)),
        group.add_argument(
            "--distil", **several, choices=switch, default=switch, help="with a copy of the model as teacher"
        ),
        group.add_argument("--train_steps", type=int, default=3, help="steps whose median counts"),
        group.add_argument("--warmup_steps", type=int, default=1, help="steps before that"),
        group.add_argument("--task", choices=list(TASKS), help="by default that of the model's head"),
    ]
    return [action.dest for action in actions]


def _flag_options(config: type, name: str) -> dict[str, Any]:
    """Return how a flag of the same name as a field of a config is read."""
    field = next(field for field in dataclasses.fields(config) if field.name == name)
    whole = get_type_hints(config)[name] in (int, int | None)
    return {"default": field.default, "type": int if whole else str, **field.metadata}


def _compare_models(args: argparse.Namespace) -> None:
    names = ("validation_file", "train_file", "dataset_name", "dataset_config_name", *DATA_FIELDS)
    report = compare_models(
        args.models,
        DataConfig(**{name: getattr(args, name) for name in names}),
        args.latency_batch_size,
        args.latency_sequence_length,
        args.trust_remote_code,
        args.forms,
    )
    print_report(report)
    if args.output_dir:
        report.save(args.output_dir)
        report.plot(args.output_dir)


def _measure_training(args: argparse.Namespace) -> None:
    if len(args.models) > 1:
        raise UserError(f"--training measures one model, {len(args.models)} are given: {', '.join(args.models)}")
    budget = None if args.memory_budget is None else parse_budget(args.memory_budget)
    settings = setting_grid(
        args.train_batch_size,
        [ON_OFF[each] for each in args.checkpointing],
        args.accumulation,
        args.precision,
        args.attention,
        [ON_OFF[each] for each in args.distil],
    )
    costs = measure_training_costs(
        args.models[0],
        settings,
        args.train_batch_size,
        args.train_sequence_length,
        args.warmup_steps,
        args.train_steps,
        args.task,
        args.output_dir,
        args.trust_remote_code,
    )
    console = Console()
    console.print(costs.table(budget))
    for sentence in costs.recommendations(budget):
        console.print(sentence, markup=False)
    if args.output_dir:
        plot_costs(costs, args.output_dir, budget)


def print_report(report: CompressionReport) -> None:
    """Print the table of `report`."""
    console = Console()
    for number, stage in enumerate(report.stages, start=1):
        console.print(f"{number}. {stage}")
    console.print(report.table())
