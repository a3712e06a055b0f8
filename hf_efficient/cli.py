"""The command line: `hf-efficient compress | prune | distill | quantize | export | measure | push | demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from rich.console import Console
from transformers import HfArgumentParser, Seq2SeqTrainingArguments
from transformers.utils import logging

from hf_efficient.commands.compress import compress
from hf_efficient.commands.config import JobConfig, ModelConfig
from hf_efficient.commands.demo import run as run_demo
from hf_efficient.commands.measure import print_report
from hf_efficient.commands.measure import run as run_measure
from hf_efficient.data.config import DataConfig
from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.errors import NonFiniteLossError, UserError
from hf_efficient.exporters.config import EXPORT_FORMATS, ExportConfig
from hf_efficient.hub.config import TRANSFORMERS_JS_URL, PushConfig, SpaceConfig
from hf_efficient.hub.files import file_size_bytes
from hf_efficient.hub.onnx_repository import plan_repositories
from hf_efficient.hub.push import push_folder
from hf_efficient.hub.space import check_space_folder, push_space
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.quantization.config import SCHEMES, QuantizationConfig

logger = logging.get_logger(__name__)

DESCRIPTIONS = {
    "compress": "Make a model small and fast, measure it, and save what from_pretrained loads.",
    "distill": "Train a student towards a teacher, measure it, and save what from_pretrained loads.",
    "quantize": "Store a model in 8 bits or in codebooks, measure it, and save what from_pretrained loads.",
    "export": "Write a model for ONNX Runtime and OpenVINO beside torch, and measure all of them.",
    "prune": "Remove parts of a model without training it, measure it, and save what from_pretrained loads.",
}
UNTRAINED = ("--num_train_epochs", "0", "--max_steps", "-1", "--distil", "False")
USER_ERRORS = (ValueError, TypeError, OSError, NonFiniteLossError)


def parse_job(argv: Sequence[str], command: str = "compress") -> JobConfig:
    """Return the job that the flags describe; `--config recipe.yaml` gives the same keys, and flags win over it.

    Exits with status 2 on unknown or abbreviated flags. Raises ValueError: a value is out of its range.
    """
    recipe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    recipe.add_argument("--config")
    named, flags = recipe.parse_known_args(list(argv))
    flags = [*_recipe_flags(named.config), *flags]
    if not _accelerated() and "--use_cpu" not in flags:
        flags += ["--use_cpu", "True"]
    parser = HfArgumentParser(
        (
            ModelConfig,
            DataConfig,
            DistillationConfig,
            PruningConfig,
            QuantizationConfig,
            Seq2SeqTrainingArguments,
            ExportConfig,
        ),
        prog=f"hf-efficient {command}",
        description=DESCRIPTIONS[command],
        epilog="All flags can also be given as keys of a YAML file: --config recipe.yaml",
        allow_abbrev=False,
    )
    parser.set_defaults(scheme=None)
    if "--output_dir" not in flags and not {"-h", "--help"} & set(flags):
        parser.error("the following arguments are required: --output_dir")
    *settings, unknown = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True)
    if unknown:
        parser.error(f"unknown flags: {' '.join(unknown)}")
    return JobConfig(*settings)


def _recipe_flags(path: str | None) -> list[str]:
    if path is None:
        return []
    if not Path(path).is_file():
        raise UserError(f"config={path!r} does not exist")
    recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(recipe, dict):
        raise UserError(f"config={path!r} must hold keys and values, such as `target_speedup: 2`")
    flags = []
    for key, value in recipe.items():
        values = value if isinstance(value, list) else [value]
        flags += [f"--{key}", *map(str, values)]
    return flags


def _accelerated() -> bool:
    return torch.accelerator.is_available()


def run_compress(argv: Sequence[str]) -> None:
    """Run `hf-efficient compress`."""
    job = parse_job(argv)
    finish(job)


def finish(job: JobConfig) -> None:
    """Does the job, and prints what was measured and where it is."""
    print_report(compress(job))
    Console().print(f"Model, card, report and picture: {job.training.output_dir}")


def run_prune(argv: Sequence[str]) -> None:
    """Run `hf-efficient prune`, which is `compress` without any training.

    Raises ValueError: nothing is to be pruned, or something besides.
    """
    job = parse_job([*argv, *UNTRAINED], command="prune")
    if not (job.pruning.active or job.pruning.vocabulary):
        raise UserError(
            "nothing is to be pruned: give --target_speedup 2, --target_flops 2, --heads 0.3, --layers 0.5, "
            "--weights 0.5, --vocabulary or another flag of pruning (--help)"
        )
    if job.quantization.scheme is not None:
        raise UserError("prune does not quantize: leave out --scheme, or use `hf-efficient compress`")
    finish(job)


def run_quantize(argv: Sequence[str]) -> None:
    """Run `hf-efficient quantize`, which is `compress` without any training; it needs no data.

    Raises ValueError: no scheme was given, or something is asked for besides.
    """
    job = parse_job([*argv, *UNTRAINED], command="quantize")
    if job.quantization.scheme is None:
        raise UserError(f"in which form? give --scheme, one of {', '.join(SCHEMES)}")
    if job.pruning.active or job.pruning.vocabulary or job.quantization.aware:
        raise UserError("quantize neither prunes nor trains: use `hf-efficient compress`, which quantizes at the end")
    finish(job)


def run_export(argv: Sequence[str]) -> None:
    """Run `hf-efficient export`, which is `compress` that changes nothing; data is for calibration and metrics.

    Raises ValueError: no runtime was given, or the model is to be changed.
    """
    job = parse_job([*argv, *UNTRAINED], command="export")
    if not job.export.formats:
        raise UserError(f"for which runtime? give --export, one or more of {', '.join(EXPORT_FORMATS)}")
    if job.pruning.active or job.pruning.vocabulary or job.quantization.scheme is not None:
        raise UserError("export leaves the model as it is: use `hf-efficient compress`, which exports at the end")
    finish(job)


def run_distill(argv: Sequence[str]) -> None:
    """Run `hf-efficient distill`, which is `compress` with a teacher and nothing besides.

    Raises ValueError: something else is asked for, or the student would be its own teacher.
    """
    job = parse_job([*argv, "--distil", "True"], command="distill")
    if job.pruning.active or job.pruning.vocabulary or job.quantization.scheme is not None:
        raise UserError("distill neither prunes nor quantizes: use `hf-efficient compress`, which distils besides")
    if not (job.model.creates_student or job.model.teacher_name_or_path):
        raise UserError(
            "there is nothing to learn from: name a teacher (--teacher_name_or_path), or make a student of the model "
            "(--student_layers 3, --student_config hidden_size=128,...)"
        )
    finish(job)


def run_push(argv: Sequence[str]) -> None:
    """Run `hf-efficient push`."""
    parser = argparse.ArgumentParser(
        prog="hf-efficient push",
        description="Put a folder that holds a model on the Hugging Face Hub.",
        epilog="The token is that of `hf auth login` or HF_TOKEN: a flag would show in the list of processes.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="what `hf-efficient compress` or save_pretrained wrote")
    parser.add_argument("--repo_id", required=True, help="user/name or organisation/name")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="push to this branch, made where there is none")
    parser.add_argument("--tag", metavar="NAME", help="give the commit this tag")
    parser.add_argument("--create_pr", action="store_true", help="propose the commit in a pull request")
    parser.add_argument("--commit_message", default=PushConfig.commit_message)
    parser.add_argument("--dry_run", action="store_true", help="list what would be pushed; needs no token")
    parser.add_argument(
        "--space", metavar="USER/NAME", help="also make a Space where a classifier runs in the browser"
    )
    parser.add_argument(
        "--space_teacher", metavar="USER/NAME", help="a model on the Hub with an onnx/ to show beside it"
    )
    parser.add_argument(
        "--space_library", default=TRANSFORMERS_JS_URL, metavar="URL", help="where the page finds transformers.js"
    )
    parser.add_argument("--space_runtime", metavar="URL", help="folder with ONNX Runtime's files for the web")
    known = vars(parser.parse_args(argv))
    folder, dry = Path(known.pop("folder")), known.pop("dry_run")
    space = SpaceConfig(**{name: known.pop(name) for name in list(known) if name.startswith("space")})
    config, console = PushConfig(**known), Console(soft_wrap=True)
    if space.space:
        check_space_folder(folder, config)
    if not dry:
        commits = push_folder(folder, config)
        for repo_id, commit in commits.items():
            console.print(f"{repo_id}: {commit.pr_url or commit.commit_url}", markup=False)
        if space.space:
            console.print(f"{space.space}: {push_space(folder, next(iter(commits)), space)}", markup=False)
        return
    for repo_id, contents in plan_repositories(folder, config.repo_id).items():
        console.print(f"{repo_id}: {len(contents)} files, nothing is pushed", markup=False)
        for path, content in sorted(contents.items()):
            console.print(f"{file_size_bytes(content):>14,}  {path}", markup=False, highlight=False)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "compress": run_compress,
    "prune": run_prune,
    "distill": run_distill,
    "quantize": run_quantize,
    "export": run_export,
    "measure": run_measure,
    "push": run_push,
    "demo": run_demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and returns its exit status: 0, or 2 after a sentence that says what to mend."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in COMMANDS:
        wanted = arguments[0] if arguments else ""
        usage = f"usage: hf-efficient {{{','.join(COMMANDS)}}} ...   (each explains itself with --help)"
        if wanted in ("-h", "--help"):
            Console().print(usage, markup=False)
            return 0
        Console(stderr=True).print(f"{usage}\nunknown command {wanted!r}" if wanted else usage, markup=False)
        return 2
    try:
        COMMANDS[arguments[0]](arguments[1:])
    except USER_ERRORS as error:
        logger.debug("where it happened", exc_info=True)
        Console(stderr=True, soft_wrap=True).print(f"hf-efficient {arguments[0]}: {error}", style="red", markup=False)
        return 2
    return 0
