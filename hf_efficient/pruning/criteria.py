"""The criteria by name; a user adds an entry to extend them. Importing this module imports none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hf_efficient.registry import Registry

_UNIT_CRITERIA = "hf_efficient.pruning.unit_criteria"
_CONNECTION_CRITERIA = "hf_efficient.pruning.connection_criteria"

CRITERIA: Registry[Callable[..., Any]] = Registry(
    {
        "fisher": f"{_UNIT_CRITERIA}:fisher",
        "taylor": f"{_UNIT_CRITERIA}:taylor",
        "movement": f"{_UNIT_CRITERIA}:movement",
        "snip": f"{_UNIT_CRITERIA}:snip",
        "activation": f"{_UNIT_CRITERIA}:activation",
        "wanda": f"{_UNIT_CRITERIA}:wanda",
        "magnitude": f"{_UNIT_CRITERIA}:magnitude",
        "magnitude_l1": f"{_UNIT_CRITERIA}:magnitude_l1",
        "random": f"{_UNIT_CRITERIA}:random",
    }
)
CONNECTION_CRITERIA: Registry[Callable[..., Any]] = Registry(
    {
        "fisher": f"{_CONNECTION_CRITERIA}:fisher",
        "magnitude": f"{_CONNECTION_CRITERIA}:magnitude",
        "movement": f"{_CONNECTION_CRITERIA}:movement",
        "random": f"{_CONNECTION_CRITERIA}:random",
        "snip": f"{_CONNECTION_CRITERIA}:snip",
        "taylor": f"{_CONNECTION_CRITERIA}:taylor",
        "wanda": f"{_CONNECTION_CRITERIA}:wanda",
    }
)
WEIGHT_BASED_CRITERIA = ("wanda", "magnitude", "magnitude_l1")  # they read the values of the weights
