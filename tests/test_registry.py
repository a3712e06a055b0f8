import os.path
import sys
from types import ModuleType, SimpleNamespace

import pytest

from hf_efficient.registry import AUTO_CONFIG_MODULE, Registry, register_on_lookup


@pytest.fixture
def plugin(monkeypatch):
    """Registers an importable module whose import is counted, and returns a function for the count."""
    imported = []

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name != "registry_plugin":
                return None
            imported.append(name)
            return None

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "registry_plugin", raising=False)
    return imported


def test_values_are_imported_on_access_and_kept():
    choices = Registry({"join": "os.path:join", "own": len})
    assert list(choices) == ["join", "own"]
    assert len(choices) == 2
    assert "join" in choices
    assert choices._entries["join"] == "os.path:join"

    assert choices["join"] is os.path.join
    assert choices._entries["join"] is os.path.join
    assert choices["own"] is len
    assert repr(choices) == "Registry(join, own)"


def test_listing_and_asking_for_names_imports_nothing(plugin):
    choices = Registry({"plugin": "registry_plugin:function"})
    assert "plugin" in choices
    assert {**dict.fromkeys(choices)} == {"plugin": None}
    assert plugin == []
    with pytest.raises(ModuleNotFoundError):
        choices["plugin"]
    assert plugin == ["registry_plugin"]


def test_registry_is_extended_like_a_dict():
    choices = Registry({"len": len})
    choices["max"] = max
    assert choices["max"] is max
    del choices["len"]
    assert list(choices) == ["max"]
    with pytest.raises(KeyError):
        choices["len"]


class Mapping:
    """What `CONFIG_MAPPING` does with configs that were registered."""

    def __init__(self):
        self._extra_content = {"registered": "its config"}

    def register(self, name, value):
        self._extra_content[name] = value


def test_lookup_of_a_model_type_imports_the_module_that_registers_it(monkeypatch):
    mapping = Mapping()
    auto_config = SimpleNamespace(CONFIG_MAPPING=mapping)
    monkeypatch.setitem(sys.modules, AUTO_CONFIG_MODULE, auto_config)
    monkeypatch.setattr(
        "hf_efficient.registry.import_module", lambda name: mapping.register("pruned_x", f"config of {name}")
    )
    register_on_lookup("pruned_", "our.models")
    configs = mapping._extra_content
    assert "other" not in configs
    assert list(configs) == ["registered"]
    assert "pruned_x" in configs
    assert "pruned_y" not in configs
    assert configs["registered"] == "its config"
    assert configs["pruned_x"] == "config of our.models"
    assert list(configs) == ["registered", "pruned_x"]
    with pytest.raises(KeyError):
        configs["pruned_y"]
    with pytest.raises(KeyError):
        configs["other"]


def test_module_is_imported_where_configs_are_kept_elsewhere(monkeypatch):
    imported = []
    auto_config = ModuleType("configuration_auto")
    auto_config.CONFIG_MAPPING = {}
    monkeypatch.setitem(sys.modules, AUTO_CONFIG_MODULE, auto_config)
    monkeypatch.setattr("hf_efficient.registry.import_module", imported.append)
    register_on_lookup("pruned_", "our.models")
    assert imported == ["our.models"]
