"""TrainingArguments built from the flags of a command line; importing this module imports torch and Transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NoReturn, get_type_hints

import torch
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from hf_efficient.errors import UserError
from hf_efficient.trainer.argument_checks import check_report_to

_HINTS = get_type_hints(Seq2SeqTrainingArguments)
_TRUTH_FIELDS = {name for name, hint in _HINTS.items() if hint in (bool, bool | None)}
_KEYWORD_FIELDS = {name for name in _HINTS if name.endswith("_kwargs")}
_OBJECT_OR_FILE_FIELDS = {"accelerator_config", "fsdp_config", "deepspeed", "liger_kernel_config"}
_OBJECT = """give one, such as '{"num_cycles": 2}'"""


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def build_training_arguments(flags: Mapping[str, Sequence[str]]) -> Seq2SeqTrainingArguments:
    """Return the training arguments that `flags`, field name -> arguments of the command line, describe.

    Without an accelerator `use_cpu` is set, and with one batches are copied to it without waiting, unless other values
    were given.

    Raises UserError if a value is refused, or if the package that it needs is not installed.
    """
    arguments = [argument for name, given in flags.items() for argument in _readable(name, given)]
    if "use_cpu" not in flags and not torch.accelerator.is_available():
        arguments.append("--use_cpu=True")
    try:
        (args,) = _Parser(Seq2SeqTrainingArguments, allow_abbrev=False).parse_args_into_dataclasses(
            arguments, look_for_args_file=False
        )
    except UserError:
        raise
    except (ValueError, TypeError, ImportError, OSError) as error:
        # Its checks of values, of the packages that they need, and of the files and keyword arguments that they name.
        raise UserError(str(error)) from error
    if "accelerator_config" not in flags and not args.use_cpu:
        args.accelerator_config.non_blocking = True
    check_report_to(args)
    return args


def _readable(name: str, given: Sequence[str]) -> Sequence[str]:
    """Return the arguments of a flag as the parser of Transformers reads them: `on` and `off` are truth values.

    Raises UserError if keyword arguments are no JSON object.
    """
    flag, _, value = given[0].partition("=")
    if len(given) > 1 or not value:
        return given
    if name in _TRUTH_FIELDS and value.lower() in ("on", "off"):
        return [f"{flag}={value.lower() == 'on'}"]
    if name in _KEYWORD_FIELDS or (name in _OBJECT_OR_FILE_FIELDS and value.startswith("{")):
        try:
            is_object = isinstance(json.loads(value), dict)
        except json.JSONDecodeError as error:
            raise UserError(f"{name}={value!r} is not JSON: {error}; {_OBJECT}") from error
        if not is_object:
            raise UserError(f"{name}={value!r} is no JSON object: {_OBJECT}")
    return given


def format_training_help() -> str:
    """Return the help of all flags of TrainingArguments."""
    text: str = _Parser(Seq2SeqTrainingArguments, add_help=False, usage="").format_help()
    return text.partition("options:")[2].strip("\n")
