"""Names whose values are imported on first access: entries of a `Registry`, and our configs in `AutoConfig`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

AUTO_CONFIG_MODULE = "transformers.models.auto.configuration_auto"


class Registry(MutableMapping[str, T]):
    """A dict by name; an entry is a value, or the text "package.module:name", which is imported on first access.

    Listing the names imports nothing. A user extends it like any dict: `CRITERIA["mine"] = my_function`.
    """

    def __init__(self, entries: Mapping[str, T | str]) -> None:
        self._entries: dict[str, T | str] = dict(entries)

    def __getitem__(self, name: str) -> T:
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._entries[name] = resolve_name(entry)
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __setitem__(self, name: str, value: T) -> None:
        self._entries[name] = value

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({', '.join(self._entries)})"


class _ConfigsOnLookup(dict[str, Any]):
    """Extra entries of `CONFIG_MAPPING`: looking up a name with `prefix` imports `module`, which registers its own."""

    def __init__(self, entries: Mapping[str, Any], prefix: str, module: str) -> None:
        super().__init__(entries)
        self.prefix, self.module = prefix, module

    def __contains__(self, model_type: object) -> bool:
        if isinstance(model_type, str) and model_type.startswith(self.prefix):
            import_module(self.module)
        return super().__contains__(model_type)

    def __missing__(self, model_type: str) -> Any:
        if model_type in self:
            return self[model_type]
        raise KeyError(model_type)


class _AutoConfigFinder(MetaPathFinder, Loader):
    """Find the module of `AutoConfig`, and extend its mapping after it has been executed."""

    def __init__(self, prefix: str, module: str) -> None:
        self.prefix, self.module = prefix, module

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of that module with this object as its loader; None for every other module."""
        if name != AUTO_CONFIG_MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return the module of the original loader."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module and add the names of our configs to its mapping."""
        self.loader.exec_module(module)
        module.__loader__ = self.loader
        _add_on_lookup(module, self.prefix, self.module)


def register_on_lookup(prefix: str, module: str) -> None:
    """Let the Auto classes of Transformers find model types with `prefix` that `module` registers on its import.

    `module` is imported when such a name is first looked up, so this imports neither `module` nor Transformers.
    Importing `module` together with Transformers would be too early: Transformers imports its Auto classes while its
    own modules are still being imported.
    """
    loaded = sys.modules.get(AUTO_CONFIG_MODULE)
    if loaded is None:
        sys.meta_path.insert(0, _AutoConfigFinder(prefix, module))
    else:
        _add_on_lookup(loaded, prefix, module)


def _add_on_lookup(auto_config: ModuleType, prefix: str, module: str) -> None:
    mapping = auto_config.CONFIG_MAPPING
    if hasattr(mapping, "_extra_content"):
        mapping._extra_content = _ConfigsOnLookup(mapping._extra_content, prefix, module)
    else:  # in a version of Transformers without this attribute
        import_module(module)
