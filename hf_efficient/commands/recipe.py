"""The file of `--config`: its keys as flags, and its values as they are written.

What a value means is decided by its flag: `no` is a text for `source_lang` and a truth value for `bf16`, and `2:4` is
no number. YAML would decide by the looks of the value.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_efficient.errors import UserError

FORM = "write keys and values, such as `target_speedup: 2`"
NULL = {"", "~", "null"}
TRUTH_VALUES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

# Lists of scalars for flags of several values, mappings for flags of keyword arguments.
Value = str | list[str] | dict[str, Any] | None


def read_recipe(path: str, keys: Sequence[str]) -> list[str]:
    """Return the keys of a YAML or JSON file as arguments of a command line, without those that are null or empty.

    Raises UserError if the file cannot be read, or has a key that is not in `keys`; the message names its line.
    """
    return [
        argument
        for key, node in _read_items(path, keys)
        for argument in _to_arguments(key, _read_value(node, path), f"config={path!r}, line {_line(node)}")
    ]


def _read_items(path: str, keys: Sequence[str]) -> Iterator[tuple[str, yaml.Node]]:
    """Yield the keys of the file with the nodes of their values."""
    root = _parse(path, _read_text(path))
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise UserError(f"config={path!r} holds no keys: {FORM}")
    lines: dict[str, int] = {}
    for key, node in root.value:
        place = f"config={path!r}, line {_line(key)}"
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{place}: a key is no name: {FORM}")
        name = str(key.value)
        if name in lines:
            raise UserError(f"{place}: the key {name!r} is in line {lines[name]} already: give it once")
        lines[name] = _line(key)
        if name not in keys:
            raise UserError(f"{place}: unknown key {name!r}: {_advise(name, node, keys)}")
        yield name, node


def _read_text(path: str) -> str:
    file = Path(path).expanduser()
    if not file.exists():
        raise UserError(f"config={path!r} does not exist: give the path of a YAML file")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"config={path!r} is not UTF-8 (byte {error.start + 1}): save the file as UTF-8") from error
    except OSError as error:
        raise UserError(f"config={path!r} cannot be read: {error.strerror or error}") from error


def _parse(path: str, text: str) -> yaml.Node | None:
    """Return the root of the file; None if it is empty."""
    try:
        if path.lower().endswith(".json"):
            text = json.dumps(json.loads(text, object_pairs_hook=_check_repeated), indent=2, ensure_ascii=False)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except json.JSONDecodeError as error:
        raise UserError(f"config={path!r}, line {error.lineno}: it is not JSON: {error.msg}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or " ".join(str(error).split())
        raise UserError(f"config={path!r}{place}: it is not YAML: {problem}; {FORM}") from error
    except RecursionError as error:
        raise UserError(f"config={path!r} is nested too deeply: {FORM}") from error


def _check_repeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object. Raises UserError if a key is repeated."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f"the key {repeated!r} of the configuration file is given twice: give it once")
    return values


def _advise(name: str, node: yaml.Node, keys: Sequence[str]) -> str:
    shown_keys = [key for key in keys if "-" not in key]
    similar = difflib.get_close_matches(name.strip("-").replace("-", "_"), shown_keys, cutoff=0.6)
    if isinstance(node, yaml.MappingNode) and not similar:
        return "the keys are not in groups: write those below it at the left margin"
    return f"did you mean {', '.join(similar)}?" if similar else "keys are the flags that --help-all lists"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _read_value(node: yaml.Node, path: str) -> Value:
    """Return the value of a key as it is written; the values in a mapping are numbers, truth values and texts."""
    if isinstance(node, yaml.ScalarNode):
        return None if _is_null(node) else str(node.value)
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if not isinstance(item, yaml.ScalarNode):
                raise UserError(f"config={path!r}, line {_line(item)}: a list holds single values only")
        return [str(item.value) for item in node.value if not _is_null(item)]
    try:
        return dict(_interpret(node))
    except RecursionError as error:
        raise UserError(f"config={path!r}, line {_line(node)}: the value contains itself: write it out") from error


def _is_null(node: yaml.ScalarNode) -> bool:
    return node.style is None and node.value.lower() in NULL


def _interpret(node: yaml.Node) -> Any:
    """Return the value of a keyword argument: quoted texts stay texts, others are read by their looks."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _interpret(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_interpret(item) for item in node.value]
    text = str(node.value)
    if node.style is not None:
        return text
    if _is_null(node):
        return None
    return TRUTH_VALUES.get(text.lower(), _to_number(text))


def _to_number(text: str) -> Any:
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    return text


def _to_arguments(key: str, value: Value, place: str) -> list[str]:
    if value is None or value in ([], {}):
        return []
    if isinstance(value, Mapping):
        return [f"--{key}={json.dumps(value)}"]
    if isinstance(value, str):
        return [f"--{key}={value}"]
    flags = [item for item in value if item.startswith("-") and not isinstance(_to_number(item), int | float)]
    if flags:
        raise UserError(f"{place}: {flags[0]!r} begins with a dash, as a flag does: leave it out")
    return [f"--{key}={value[0]}"] if len(value) == 1 else [f"--{key}", *value]
