"""The parser of all commands: its errors, its help, and how the type of a configuration's field is parsed."""

from __future__ import annotations

import argparse
import difflib
import textwrap
import types
from collections.abc import Sequence
from typing import Any, NoReturn, Union, get_args, get_origin

from hf_efficient.errors import UserError

# Flags that a configuration file cannot hold.
NO_KEYS = {"config", "help", "help_all"}
# How truth values are written.
TRUE, FALSE = ("yes", "true", "t", "y", "on", "1"), ("no", "false", "f", "n", "off", "0")
HELP_COLUMN, HELP_WIDTH = 33, 120


class FlagParser(argparse.ArgumentParser):
    """A parser that raises `UserError` where argparse would print its usage and exit."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(
            prog=f"hf-efficient {prog}", allow_abbrev=False, formatter_class=_HelpFormatter, add_help=False, **options
        )
        # Group title -> flags that the help names after those that it describes.
        self.other_flags: dict[str, list[str]] = {}

    def format_help(self) -> str:
        """Return the help; a group ends with the names of its flags that are not described."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_arguments(group._group_actions)
            others = self.other_flags.get(str(group.title), ())
            if others:
                names = ", ".join(f"--{name}" for name in others)
                width = formatter._width - 4
                formatter.add_text(textwrap.fill(f"also {names}", width, break_on_hyphens=False))
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def keys(self) -> list[str]:
        """Return the names of the flags that take a value, as a configuration file has them, also with dashes."""
        taking_values = ((name[2:], action) for name, action in self._option_string_actions.items() if action.dest)
        return [
            name
            for name, action in taking_values
            if name.replace("-", "_") == action.dest and action.dest not in NO_KEYS and action.nargs != 0
        ]

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError` with the message."""
        raise UserError(message)

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the parsed flags. Raises UserError if a flag is unknown; the message names similar ones."""
        namespace, extra = self.parse_known_args(argv)
        unknown = [argument.partition("=")[0] for argument in extra if argument.startswith("-")]
        if unknown:
            self.error("; ".join(map(self._describe_unknown, unknown)))
        if extra:
            self.error(f"unexpected argument {extra[0]!r}: it follows no flag; {self.prog} --help lists the flags")
        return namespace

    def _describe_unknown(self, flag: str) -> str:
        names = [name for name in self._option_string_actions if name.startswith("--") and "-" not in name[2:]]
        similar = difflib.get_close_matches(flag.replace("-", "_").replace("__", "--", 1), names, cutoff=0.75)
        hint = f"did you mean {', '.join(similar)}?" if similar else f"{self.prog} --help lists the flags"
        return f"unknown flag {flag}: {hint}"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One line a flag: its name, what it does, its default."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=HELP_COLUMN)
        self._width = min(self._width, HELP_WIDTH)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return "" if action.metavar is None else str(action.metavar)


def parse_options(hint: Any) -> dict[str, Any]:
    """Return how argparse reads the values of a field: the `type`, and how many of them."""
    if get_origin(hint) in (Union, types.UnionType):
        alternatives = [each for each in get_args(hint) if each is not type(None)]
        hint = str if str in alternatives else alternatives[0]
    if hint is bool:
        return {"type": _parse_bool, "nargs": "?", "const": True}
    if get_origin(hint) is list:
        return {"type": get_args(hint)[0], "nargs": "+"}
    return {"type": hint}


def _parse_bool(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def describe_default(help: str, default: Any) -> str:
    """Return a help text with the default in brackets, where there is one."""
    shown = "" if default is None or default == "" else f" [{default}]"
    return f"{help.rstrip('.')}{shown}".replace("%", "%%")
