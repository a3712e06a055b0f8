"""Measure models and compare them with the first; with --training, measure what training one of them costs."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, get_type_hints

from hf_efficient.commands.arguments import check_model_name
from hf_efficient.commands.flag_parser import FlagParser, describe_default, parse_options
from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UserError
from hf_efficient.measurement.training_settings import (
    ACCUMULATIONS,
    ATTENTIONS,
    ON_OFF,
    PRECISIONS,
    parse_budget,
    setting_grid,
)
from hf_efficient.tasks import TASKS
from hf_efficient.variants.config import VARIANTS

logger = logging.getLogger(__name__)

DATA_FIELDS = (
    "validation_file",
    "train_file",
    "dataset_name",
    "dataset_config_name",
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

RETRIEVAL_FLAGS = {
    "queries_file": "queries with an id and a text, to measure retrieval by sentence embedders",
    "corpus_file": "documents with an id and a text",
    "relevance_file": "ids of a query and of a document that answers it, a pair a row",
}


def run(argv: Sequence[str]) -> None:
    """Run `hf-efficient measure`.

    Raises UserError if a flag is given that has a meaning only with --training, or only without it.
    """
    args = _parse(argv)
    from rich.console import Console

    if not args.training:
        data = DataConfig(**{name: getattr(args, name) for name in DATA_FIELDS})
        data.check_files()
        from hf_efficient.commands.compare_models import compare_models
        from hf_efficient.commands.job import print_report
        from hf_efficient.commands.pretrained import load_config
        from hf_efficient.hub.usage import auto_class_name
        from hf_efficient.tasks.retrieval import read_retrieval_data
        from hf_efficient.variants.builders import has_calibration_data
        from hf_efficient.variants.usage import variant_code

        files = [getattr(args, name) for name in RETRIEVAL_FLAGS]
        retrieval = read_retrieval_data(*files) if all(files) else None
        report = compare_models(
            args.models,
            data,
            args.latency_batch_size,
            args.latency_sequence_length,
            args.trust_remote_code,
            args.variants,
            args.tokenizer_name,
            retrieval,
        )
        print_report(report)
        if args.variants and len(args.models) == 1 and report.recommended is not None:
            recommended = args.variants[0] if report.recommended == "teacher" else report.recommended
            auto_class = auto_class_name(load_config(args.models[0], args.trust_remote_code))
            code = variant_code(recommended, args.models[0], auto_class, has_calibration_data(data))
            Console().print("Load it by:", *code, sep="\n", markup=False, highlight=False, soft_wrap=True)
        if args.output_dir:
            report.save(args.output_dir)
            report.plot(args.output_dir)
        return

    budget = None if args.memory_budget is None else parse_budget(args.memory_budget)
    settings = setting_grid(
        args.train_batch_size,
        [ON_OFF[value] for value in args.checkpointing],
        args.accumulation,
        args.precision,
        args.attention,
        [ON_OFF[value] for value in args.distil],
    )
    from hf_efficient.commands.training_costs import measure_training_costs
    from hf_efficient.measurement.training_costs_plot import plot_costs

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
    for recommendation in costs.recommendations(budget):
        console.print(recommendation, markup=False)
    if args.output_dir:
        plot_costs(costs, args.output_dir, budget)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = FlagParser("measure", usage="hf-efficient measure MODEL [MODEL ...] [flags]", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="directories, or names on the Hub")
    parser.add_argument("--training", action="store_true", help="measure memory and time of training, over a grid")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code from the models' repositories")
    parser.add_argument("--output_dir", help="write a report (JSON) and a picture here")
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    comparison_flags = _add_comparison_flags(parser.add_argument_group("Comparison of models"))
    training_flags = _add_training_cost_flags(parser.add_argument_group("Costs of training (with --training)"))
    args = parser.parse_all(argv)
    unused_flags = comparison_flags if args.training else training_flags
    given = [f"--{name}" for name in unused_flags if getattr(args, name) != parser.get_default(name)]
    if given:
        condition = "without" if args.training else "with"
        raise UserError(f"{', '.join(given)}: only {condition} --training; leave out one or the other")
    if args.training and len(args.models) > 1:
        raise UserError(f"--training measures one model, {len(args.models)} are given: {', '.join(args.models)}")
    if args.forms is not None:
        logger.warning("--forms is now called --variants, and will be removed")
        args.variants = args.forms
    missing = [f"--{name}" for name in RETRIEVAL_FLAGS if not getattr(args, name)]
    if 0 < len(missing) < len(RETRIEVAL_FLAGS):
        raise UserError(f"retrieval needs queries, documents and which answers which: give {', '.join(missing)} too")
    for name in args.models:
        check_model_name("MODEL", name)
    return args


def _add_comparison_flags(group: Any) -> list[str]:
    """Add the flags of a comparison and return their names."""
    several: dict[str, Any] = {"nargs": "+", "metavar": "VARIANT"}
    actions = [
        group.add_argument("--variants", **several, default=[], help=f"measure each model as {', '.join(VARIANTS)}"),
        group.add_argument("--forms", **several, help=argparse.SUPPRESS),
        *(group.add_argument(f"--{name}", **_data_flag_options(name)) for name in DATA_FIELDS),
        *(group.add_argument(f"--{name}", help=help) for name, help in RETRIEVAL_FLAGS.items()),
        group.add_argument("--tokenizer_name", help="tokenizer of models whose directories have none"),
        group.add_argument("--latency_batch_size", type=int, default=1, help="batch size of timed batches [1]"),
        group.add_argument("--latency_sequence_length", type=int, default=128, help="tokens in a timed text [128]"),
    ]
    return [action.dest for action in actions]


def _data_flag_options(name: str) -> dict[str, Any]:
    """Return how a flag of the same name as a field of `DataConfig` is parsed."""
    field = next(field for field in dataclasses.fields(DataConfig) if field.name == name)
    help = describe_default(field.metadata["help"], field.default)
    return {"default": field.default, "help": help, **parse_options(get_type_hints(DataConfig)[name])}


def _add_training_cost_flags(group: Any) -> list[str]:
    """Add the flags of training costs and return their names."""
    on_off, several = list(ON_OFF), {"nargs": "+"}
    actions = [
        group.add_argument("--memory_budget", metavar="8GB", help="recommend the fastest setting that fits"),
        group.add_argument("--train_batch_size", type=int, default=32, help="examples per optimizer step [32]"),
        group.add_argument("--train_sequence_length", type=int, default=128, help="tokens in an example [128]"),
        group.add_argument("--checkpointing", **several, choices=on_off, default=on_off, help="off, on [off on]"),
        group.add_argument(
            "--accumulation",
            **several,
            type=int,
            default=list(ACCUMULATIONS),
            help=f"micro-batches per step; those that do not divide the batch are left out {list(ACCUMULATIONS)}",
        ),
        group.add_argument(
            "--precision", **several, choices=PRECISIONS, default=list(PRECISIONS), help=", ".join(PRECISIONS)
        ),
        group.add_argument(
            "--attention", **several, choices=ATTENTIONS, default=list(ATTENTIONS), help=", ".join(ATTENTIONS)
        ),
        group.add_argument(
            "--distil", **several, choices=on_off, default=on_off, help="off, on: with a copy of the model as teacher"
        ),
        group.add_argument("--train_steps", type=int, default=3, help="steps whose median is reported [3]"),
        group.add_argument("--warmup_steps", type=int, default=1, help="steps before these [1]"),
        group.add_argument("--task", choices=list(TASKS), help="by default that of the model's head"),
    ]
    return [action.dest for action in actions]
