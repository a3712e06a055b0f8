"""The command line `hf-efficient`: it imports only the command that is called."""

from __future__ import annotations

import difflib
import logging
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from hf_efficient import __version__
from hf_efficient.errors import UserError
from hf_efficient.measurement.formatting import printable
from hf_efficient.registry import Registry

logger = logging.getLogger(__name__)

COMMANDS: Registry[Callable[[Sequence[str]], None]] = Registry(
    {
        "compress": "hf_efficient.commands.compress:run",
        "prune": "hf_efficient.commands.prune:run",
        "distill": "hf_efficient.commands.distill:run",
        "quantize": "hf_efficient.commands.quantize:run",
        "export": "hf_efficient.commands.export:run",
        "measure": "hf_efficient.commands.measure:run",
        "push": "hf_efficient.commands.push:run",
        "demo": "hf_efficient.commands.demo:run",
    }
)
DESCRIPTIONS = {
    "compress": "Prune, distil and quantize a model, measure it, and save what from_pretrained loads.",
    "prune": "Remove parts of a model without training it.",
    "distill": "Train a student with a teacher.",
    "quantize": "Store a model in int8 or in codebooks.",
    "export": "Write a model for ONNX Runtime and OpenVINO.",
    "measure": "Measure models and compare them, or measure what training one of them costs.",
    "push": "Push a directory that holds a model to the Hugging Face Hub.",
    "demo": "Compress a small model on this machine, without network or downloads.",
}
# Access tokens of the Hub, in messages that name what was given; of -hf_... the parser takes the h for a flag.
TOKEN = re.compile(r"(api_org|h?f)_[A-Za-z0-9]{16,}")
REPORT_BUG = "This is a bug in hf_efficient: please report it to the maintainers, with the traceback above."
# Remarks of other libraries while they are imported, that users can do nothing about: logger -> start of the message.
IMPORT_REMARKS = {"torchao": "Failed to load", "torch.utils._pytree": "%s is an Enum subclass"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 after a mistake of the user, 1 after a bug."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        sys.stdout.write(f"{list_commands()}\n")
        return 0
    if command == "--version":
        sys.stdout.write(f"hf_efficient {__version__}\n")
        return 0
    if command not in COMMANDS:
        similar = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f", did you mean {similar[0]}?" if similar else ""
        _write_error(f"hf-efficient: unknown command {command!r}{hint}\n\n{list_commands()}")
        return 2
    for name in IMPORT_REMARKS:
        logging.getLogger(name).addFilter(_is_no_import_remark)
    try:
        COMMANDS[command](arguments[1:])
    except UserError as error:
        logger.debug("traceback of the error", exc_info=True)
        _write_error(f"hf-efficient {command}: {error}")
        return 2
    except KeyboardInterrupt as error:
        sys.stderr.write(f"hf-efficient {command}: {str(error) or 'interrupted'}\n")
        return 130
    except Exception:
        _write_error(f"{traceback.format_exc()}\n{REPORT_BUG}")
        return 1
    return 0


def list_commands() -> str:
    """Return the usage of the command line, with one line for each command."""
    commands = "\n".join(f"  {name:<10}{DESCRIPTIONS[name]}" for name in COMMANDS)
    return (
        f"usage: hf-efficient COMMAND [flags]\n\nCommands:\n{commands}\n\n"
        "hf-efficient COMMAND --help describes the flags of a command; hf-efficient --version prints the version."
    )


def _write_error(message: str) -> None:
    """Write `message` without control characters and access tokens: one may follow a misspelt flag."""
    lines = TOKEN.sub("hf_***", message).split("\n")
    sys.stderr.write("\n".join(map(printable, lines)) + "\n")


def _is_no_import_remark(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(IMPORT_REMARKS[record.name])


if __name__ == "__main__":
    sys.exit(main())
