"""The flags of TrainingArguments, read from the source of Transformers: importing it would take seconds."""

from __future__ import annotations

import argparse
import ast
import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_efficient.commands.flag_parser import describe_default
from hf_efficient.registry import Registry

# What is imported only for `--help-all`, or where the fields cannot be read from the source.
TRAINING_ARGUMENTS: Registry[Any] = Registry(
    {
        "class": "transformers:Seq2SeqTrainingArguments",
        "help": "hf_efficient.commands.training_arguments:format_training_help",
    }
)
_CLASSES = (("training_args.py", "TrainingArguments"), ("training_args_seq2seq.py", "Seq2SeqTrainingArguments"))

# The flags of TrainingArguments that `--help` shows; `--help-all` shows all of them.
TRAINING_HELP = {
    "num_train_epochs": "Epochs at most; if not given, about 3,000 steps for a student.",
    "learning_rate": "Peak learning rate; by default, a student's grows with its target.",
    "per_device_train_batch_size": "Training examples in a batch, per device.",
    "gradient_accumulation_steps": "Batches per optimizer step.",
    "gradient_checkpointing": "Recompute activations in the backward pass: less memory, more time.",
    "bf16": "Train in bfloat16 mixed precision.",
    "seed": "Random seed.",
    "resume_from_checkpoint": "True: resume the run in output_dir; or a checkpoint directory.",
}
HUB_HELP = {
    "push_to_hub": "Push the result with its model card.",
    "hub_model_id": "Repository, user/name; by default output_dir's name in your namespace.",
    "hub_private_repo": "Create the repository as private.",
    "hub_revision": "Branch to push to.",
    "hub_strategy": "What is pushed during training: end, every_save, checkpoint, all_checkpoints.",
}


def read_training_fields() -> dict[str, Any]:
    """Return the fields of Seq2SeqTrainingArguments with their defaults, None where a default is computed."""
    spec = find_spec("transformers")
    fields: dict[str, Any] = {}
    if spec is not None and spec.origin is not None:
        for file, name in _CLASSES:
            fields |= _read_fields(Path(spec.origin).with_name(file), name)
    if fields:
        return fields
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(TRAINING_ARGUMENTS["class"])
        if field.init
    }


def _read_fields(file: Path, class_name: str) -> dict[str, Any]:
    tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    return {
        statement.target.id: default
        for statement in (statement for node in classes for statement in node.body)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        for default in _read_default(statement)
    }


def _read_default(statement: ast.AnnAssign) -> list[Any]:
    """Return the default of a field in a list, which is empty where it is no argument of the constructor."""
    keywords: dict[str | None, ast.expr] = {}
    if isinstance(statement.value, ast.Call):
        keywords = {keyword.arg: keyword.value for keyword in statement.value.keywords}
    init, default = keywords.get("init"), keywords.get("default", statement.value)
    if "ClassVar" in ast.unparse(statement.annotation) or (init is not None and ast.unparse(init) == "False"):
        return []
    return [default.value if isinstance(default, ast.Constant) else None]


class TrainingFlagAction(argparse.Action):
    """Keeps a flag of TrainingArguments as it was given, for the parser of Transformers.

    Its values go to `namespace.training`: field name -> arguments of the command line.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Keep the flag with its values."""
        given = list(values or ())
        arguments = [f"{option_string}={given[0]}"] if len(given) == 1 else [str(option_string), *given]
        namespace.training = {**namespace.training, self.dest: arguments}


def add_training_flags(parser: Any, fields: dict[str, Any], helps: dict[str, str]) -> None:
    """Add the flags of `fields` to a parser or group; those without an entry in `helps` are hidden."""
    for name, default in fields.items():
        options: dict[str, Any] = {"action": TrainingFlagAction, "dest": name, "nargs": "*"}
        options["default"] = argparse.SUPPRESS
        help = helps.get(name)
        parser.add_argument(
            f"--{name}", **options, help=describe_default(help, default) if help else argparse.SUPPRESS
        )
        spellings = [f"--{name.replace('_', '-')}"] if "_" in name else []
        if default is True:
            spellings += list(dict.fromkeys([f"--no_{name}", f"--no-{name.replace('_', '-')}"]))
        for spelling in spellings:
            parser.add_argument(spelling, **options, help=argparse.SUPPRESS)
