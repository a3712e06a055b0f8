"""The flags of the commands that compress: the fields of the configurations, and those of TrainingArguments.

They are parsed in two stages. Here a misspelt flag, a value out of range or a missing file is refused, which takes a
tenth of a second. Only then Transformers is imported, and its own parser reads the flags of TrainingArguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hf_efficient.commands.config import ModelConfig
from hf_efficient.commands.flag_parser import FlagParser, describe_default, parse_options
from hf_efficient.commands.recipe import read_recipe
from hf_efficient.commands.training_flags import (
    HUB_HELP,
    TRAINING_ARGUMENTS,
    TRAINING_HELP,
    add_training_flags,
    read_training_fields,
)
from hf_efficient.data.config import DataConfig
from hf_efficient.distillation.config import DistillationConfig
from hf_efficient.errors import UserError
from hf_efficient.exporters.config import ExportConfig
from hf_efficient.hub.config import check_repo_name
from hf_efficient.pruning.config import PruningConfig
from hf_efficient.quantization.config import QuantizationConfig

CONFIGS: dict[str, Any] = {
    "model": ModelConfig,
    "data": DataConfig,
    "pruning": PruningConfig,
    "distillation": DistillationConfig,
    "quantization": QuantizationConfig,
    "export": ExportConfig,
}
GROUPS = {
    "model": "Model and data",
    "data": "Model and data",
    "pruning": "Pruning",
    "distillation": "Distillation",
    "quantization": "Quantization",
    "export": "Export and measurement",
    "training": "Training (all flags of TrainingArguments: --help-all)",
    "hub": "Hub",
}
# Fields that are shown in another group than their configuration.
MEASUREMENT_FIELDS = (
    "latency_batch_size",
    "latency_sequence_length",
    "latency_new_tokens",
    "latency_runtime",
    "compile",
)
# What the commands that do not train set, whatever was given.
NO_TRAINING = ("--num_train_epochs=0", "--max_steps=-1", "--distil=False")
# Without a flag nothing is quantized, and training stops by itself.
DEFAULTS: dict[str, Any] = {"scheme": None, "stop_when_flat": True}
# Flags that `--help` only names; `--help-all` describes them.
ADVANCED = {
    "attn_implementation",
    "tokenizer_name",
    "text_pair_column",
    "summary_column",
    "source_prefix",
    "max_target_length",
    "max_train_samples",
    "max_eval_samples",
    "blocks",
    "scope",
    "keep_at_least",
    "multiple_of",
    "before_training",
    "recovery",
    "scoring_samples",
    "temperature_end",
    "hard_label_weight_end",
    "logits_weight_end",
    "embedding_weight",
    "student_dropout",
    "hidden_distance",
    "similarity_weight",
    "similarity_distance",
    "uniformity_weight",
    "keep_projection",
    "margin_weight",
    "relations",
    "relation_heads",
    "teacher_weights",
    "teacher_dtype",
    "cache_top_k",
    "target_beams",
    "embedding_bits",
    "codebook_rows",
    "keep_packed",
    "latency_new_tokens",
}
OUTPUT_HELP = "Directory for the model, its card, the report and the picture."
CONFIG_HELP = "YAML file with flags as keys, such as `target_speedup: 2`; flags win over it"


@dataclass(frozen=True)
class JobFlags:
    """What a command line gives: our configurations, and the flags of TrainingArguments as they were written.

    `training` maps the name of a field to its arguments on the command line.
    """

    model: ModelConfig
    data: DataConfig
    pruning: PruningConfig
    distillation: DistillationConfig
    quantization: QuantizationConfig
    export: ExportConfig
    training: dict[str, list[str]]

    @property
    def prunes(self) -> bool:
        """Whether anything is to be removed from the model or its vocabulary."""
        return self.pruning.removes_anything or self.pruning.vocabulary


def parse_flags(
    argv: Sequence[str],
    command: str,
    description: str,
    example: str,
    groups: Iterable[str] = GROUPS,
    fixed: Sequence[str] = (),
) -> JobFlags:
    """Return what `argv` gives to a command that compresses; `--config recipe.yaml` gives the same keys.

    `fixed` are flags that the command sets, whatever `argv` gives. The help shows the flags of `groups`.

    Raises UserError if a flag is unknown, a value is refused, or a file or a model directory does not exist.
    """
    parser = _build_parser(command, description, example, set(groups), in_full="--help-all" in argv)
    namespace = parser.parse_all([*_read_config_file(argv, parser.keys()), *argv, *fixed])
    if namespace.help_all:
        sys.stdout.write(f"{parser.format_help()}\nAll of TrainingArguments:\n{TRAINING_ARGUMENTS['help']()}\n")
        parser.exit()
    if namespace.model_name_or_path is None:
        parser.error("--model_name_or_path is required: give a directory with a model, or a name on the Hub")
    if "output_dir" not in namespace.training:
        parser.error("--output_dir is required: give the directory that the result is written to")
    configs = {
        group: config(**{field.name: getattr(namespace, field.name) for field in dataclasses.fields(config)})
        for group, config in CONFIGS.items()
    }
    flags = JobFlags(**configs, training=namespace.training)
    flags.data.check_files()
    check_model_name("model_name_or_path", flags.model.model_name_or_path)
    for teacher in flags.model.teacher_name_or_path or ():
        check_model_name("teacher_name_or_path", teacher)
    if flags.model.tokenizer_name and not Path(flags.model.tokenizer_name).is_dir():
        check_model_name("tokenizer_name", flags.model.tokenizer_name)
    _check_checkpoint(flags.training)
    return flags


def _check_checkpoint(training: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError if `resume_from_checkpoint` is neither a truth value nor a directory."""
    value = training.get("resume_from_checkpoint", ("",))[-1].partition("=")[2]
    if value and value.lower() not in ("true", "false") and not Path(value).is_dir():
        raise UserError(
            f"resume_from_checkpoint={value!r} is not a directory: give a checkpoint, or True to resume the run in "
            "output_dir"
        )


def check_model_name(flag: str, name: str) -> None:
    """Raise UserError if `name`, the value of `flag`, is neither a directory with a model nor a name on the Hub."""
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{flag}={name!r} contains no config.json: give a directory that save_pretrained wrote")
    if path.is_file():
        raise UserError(f"{flag}={name!r} is a file: give the directory of the model")
    if not path.exists():
        try:
            check_repo_name(name, flag)
        except UserError:
            raise UserError(
                f"{flag}={name!r} does not exist: give a directory that save_pretrained wrote, or the name of a model "
                "on the Hub, such as google-bert/bert-base-uncased"
            ) from None


def _read_config_file(argv: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return the keys of the file that `--config` names as flags."""
    parser = FlagParser("")
    parser.add_argument("--config")
    path = parser.parse_known_args(argv)[0].config
    if path is None:
        return []
    return read_recipe(path, keys)


def _build_parser(command: str, description: str, example: str, shown: set[str], in_full: bool) -> FlagParser:
    parser = FlagParser(
        command,
        usage=f"hf-efficient {command} --model_name_or_path MODEL --output_dir DIRECTORY [flags]",
        description=f"{description}\nDefaults are in brackets. --help-all describes every flag.",
        epilog=f"Example:\n  {example}",
    )
    sections: dict[str, Any] = {title: parser.add_argument_group(title) for title in dict.fromkeys(GROUPS.values())}
    training_fields = read_training_fields()
    first = sections[GROUPS["model"]]
    add_training_flags(first, {"output_dir": training_fields.pop("output_dir", None)}, {"output_dir": OUTPUT_HELP})
    first.add_argument("--config", help=CONFIG_HELP)
    for group, config in CONFIGS.items():
        hints = get_type_hints(config)
        for field in dataclasses.fields(config):
            placed = "export" if field.name in MEASUREMENT_FIELDS else group
            title, help = GROUPS[placed], None
            if placed in shown and (in_full or field.name not in ADVANCED):
                help = field.metadata["help"] if in_full else field.metadata["help"].partition(". ")[0]
            elif placed in shown:
                parser.other_flags.setdefault(title, []).append(field.name)
            _add_field(sections[title], field, hints[field.name], help)
    for group, helps in (("training", TRAINING_HELP), ("hub", HUB_HELP)):
        fields = {name: training_fields.pop(name) for name in helps if name in training_fields}
        add_training_flags(sections[GROUPS[group]], fields, helps if group in shown else {})
    add_training_flags(parser, training_fields, {})
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    parser.add_argument("--help-all", action="store_true", dest="help_all", help=argparse.SUPPRESS)
    parser.set_defaults(training={}, **DEFAULTS)
    return parser


def _add_field(group: Any, field: dataclasses.Field[Any], hint: Any, help: str | None) -> None:
    """Add the flag of a field of a configuration, also spelt with dashes, which is not shown."""
    default = None if field.default is MISSING else DEFAULTS.get(field.name, field.default)
    options: dict[str, Any] = {"dest": field.name, **parse_options(hint)}
    shown_help = argparse.SUPPRESS if help is None else describe_default(help, default)
    group.add_argument(f"--{field.name}", **options, default=default, help=shown_help)
    hidden: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    dashed = field.name.replace("_", "-")
    if dashed != field.name:
        group.add_argument(f"--{dashed}", **options, **hidden)
    if field.default is True:
        for spelling in dict.fromkeys((f"--no_{field.name}", f"--no-{dashed}")):
            group.add_argument(spelling, action="store_false", dest=field.name, **hidden)
