"""TrainingArguments built from the flags of a command line; importing this module imports torch and Transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from transformers import HfArgumentParser, Seq2SeqTrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from hf_efficient.errors import UserError

# `report_to` also takes these.
_REPORT_TO = ("all", "none")


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def build_training_arguments(flags: Mapping[str, Sequence[str]]) -> Seq2SeqTrainingArguments:
    """Return the training arguments that `flags`, field name -> arguments of the command line, describe.

    Without an accelerator `use_cpu` is set, unless it was given.

    Raises UserError if a value is refused, or if the package that it needs is not installed.
    """
    arguments = [argument for given in flags.values() for argument in given]
    if "use_cpu" not in flags and not torch.accelerator.is_available():
        arguments.append("--use_cpu=True")
    try:
        (args,) = _Parser(Seq2SeqTrainingArguments, allow_abbrev=False).parse_args_into_dataclasses(
            arguments, look_for_args_file=False
        )
    except UserError:
        raise
    except (ValueError, ImportError, OSError) as error:
        # Its checks of values, of the packages that they need, and of the files that they name.
        raise UserError(str(error)) from error
    available = get_available_reporting_integrations()
    for integration in args.report_to:
        if integration not in (*available, *_REPORT_TO):
            raise UserError(
                f"report_to={integration!r} is unknown or its package is not installed: give none, or one of "
                f"{', '.join(available) or 'the packages that Transformers supports, after installing it'}"
            )
    return args


def format_training_help() -> str:
    """Return the help of all flags of TrainingArguments."""
    text: str = _Parser(Seq2SeqTrainingArguments, add_help=False, usage="").format_help()
    return text.partition("options:")[2].strip("\n")
