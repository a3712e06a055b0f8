"""Checks of what a config says, before a model is built from it: it may come from anyone.

All raise ValueError, as the configs of Transformers do.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from torch import nn

from .structure import LayerStructure, Structure

# No network of these families comes near these; they bound what a config can make a program build.
MAX_LAYERS, MAX_HEADS, MAX_NEURONS = 256, 1024, 1 << 20
MAX_BITS = 8
STACKS = ("encoder", "decoder")
ACTIVATIONS = ("static", "dynamic", None)


def check_sizes(config: Any, limits: Mapping[str, int]) -> None:
    """Raise ValueError if a field of `config` is not an integer from 0 to its limit in `limits`."""
    for name, limit in limits.items():
        value = getattr(config, name, None)
        _check(_is_index(value, limit + 1), name, value, f"a number from 0 to {limit}")


def check_structure(stacks: Any, full: Structure) -> None:
    """Raise ValueError unless `stacks` is the `to_dict` of a structure that keeps a part of `full`, all its layers.

    An encoder that is loaded alone has the structure of its decoder too, which is not used.
    """
    is_valid = _is_mapping(stacks, STACKS) and "encoder" in stacks
    _check(is_valid, "structure", stacks, f"the stacks {', '.join(full.stacks)}")
    for stack in stacks.keys() & full.stacks.keys():
        layers = stacks[stack]
        depth = len(full.stacks[stack])
        is_list = isinstance(layers, (list, tuple)) and len(layers) == depth
        _check(is_list, f"structure of the {stack}", layers, f"a list of {depth} layers, as many as the config has")
        for index, (layer, full_layer) in enumerate(zip(layers, full.stacks[stack], strict=True)):
            _check_layer(layer, full_layer, f"structure of {stack} layer {index}")
        _check_sources(stack, [layer["source"] for layer in layers], depth)


def check_layer_sources(layer_sources: Any, full: Structure) -> None:
    """Raise ValueError unless `layer_sources` maps stacks of `full` to the index that each of their layers had."""
    is_valid = _is_mapping(layer_sources, STACKS)
    _check(is_valid, "layer_sources", layer_sources, f"lists by stack, {', '.join(full.stacks)}")
    for stack in layer_sources.keys() & full.stacks.keys():
        _check_sources(stack, layer_sources[stack], len(full.stacks[stack]))


def _check_sources(stack: str, sources: Any, depth: int) -> None:
    """Raise ValueError unless `sources` are `depth` ascending indices of layers in a larger network."""
    is_list = isinstance(sources, (list, tuple)) and len(sources) == depth
    are_indices = is_list and all(_is_index(source, MAX_LAYERS) for source in sources)
    is_valid = are_indices and list(sources) == sorted(set(sources))
    expected = f"{depth} ascending numbers from 0 to {MAX_LAYERS - 1}"
    _check(is_valid, f"source of each layer of the {stack}", sources, expected)


def check_codebooks(model: nn.Module, codebooks: Any) -> None:
    """Raise ValueError unless `install_codebooks` can replace these modules of the base model `model`."""
    _check(isinstance(codebooks, Mapping), "codebooks", codebooks, "settings by name of module")
    modules = dict(model.named_modules())
    for name, settings in codebooks.items():
        module, where = modules.get(name), f"codebook of {reprlib.repr(name)}"
        if not isinstance(module, (nn.Linear, nn.Embedding)):
            _fail(where, settings, "the name of a Linear or an Embedding of the model")
        _check_keys(where, settings, ("bits", "group"), ("keep_packed",))
        bits, group, rows = settings["bits"], settings["group"], len(module.weight)
        _check(_is_index(bits, MAX_BITS + 1) and bits > 0, f"bits, {where}", bits, f"a number from 1 to {MAX_BITS}")
        _check(_is_index(group, rows + 1) and group > 0, f"group, {where}", group, f"a number from 1 to {rows}")
        keep_packed = settings.get("keep_packed", False)
        _check(isinstance(keep_packed, bool), f"keep_packed, {where}", keep_packed, "true or false")


def check_int8(model: nn.Module, settings: Any) -> None:
    """Raise ValueError unless `install_int8` can replace these modules of the base model `model`."""
    _check_keys("int8", settings, ("activations", "linears", "embeddings"))
    _check_activations("int8", settings["activations"])
    modules = dict(model.named_modules())
    embeddings, linears = settings["embeddings"], settings["linears"]
    is_list = isinstance(embeddings, (list, tuple)) and all(isinstance(name, str) for name in embeddings)
    is_valid = is_list and all(isinstance(modules.get(name), nn.Embedding) for name in embeddings)
    is_valid = is_valid and len(set(embeddings)) == len(embeddings)
    _check(is_valid, "embeddings, int8", embeddings, "different names of Embeddings of the model")
    _check(isinstance(linears, Mapping), "linears, int8", linears, "settings by name of Linear")
    replaced: set[str] = set()
    for name, linear in linears.items():
        replaced |= _check_linear(name, linear, modules, replaced)


def _check_linear(name: str, linear: Any, modules: Mapping[str, nn.Module], replaced: set[str]) -> set[str]:
    """Check the settings of one 8-bit Linear, and return the names of the Linears that it replaces."""
    where = f"int8 Linear {reprlib.repr(name)}"
    _check_keys(where, linear, (), ("outliers", "members", "activations"))
    parent, _, short_name = name.rpartition(".")
    members = linear.get("members", [short_name])
    is_list = isinstance(members, (list, tuple)) and all(isinstance(member, str) for member in members)
    names = [f"{parent}.{member}" for member in members] if is_list else []
    found = [modules.get(member) for member in names]
    linears = [module for module in found if isinstance(module, nn.Linear)]
    is_valid = 0 < len(linears) == len(found) == len(set(names)) and not replaced & set(names)
    is_valid = is_valid and len({(module.in_features, module.bias is None) for module in linears}) == 1
    _check(is_valid, f"members, {where}", members, "Linears that are alike, and in no other 8-bit Linear")
    is_new = short_name.isidentifier() and not hasattr(modules[parent], short_name)
    has_own_name = list(members) == [short_name] or (len(members) > 1 and is_new)
    _check(has_own_name, f"members, {where}", members, "that Linear itself, or several under a new name")
    _check_activations(where, linear.get("activations"))
    outliers, inputs = linear.get("outliers", 0), linears[0].in_features
    _check(_is_index(outliers, inputs + 1), f"outliers, {where}", outliers, f"a number from 0 to {inputs}")
    return set(names)


def _check_layer(layer: Any, full: LayerStructure, where: str) -> None:
    _check_keys(where, layer, ("source", "heads", "neurons"))
    _check_keys(f"heads, {where}", layer["heads"], full.heads)
    _check_keys(f"neurons, {where}", layer["neurons"], full.neurons)
    for name, kept in layer["heads"].items():
        count = len(full.heads[name])
        is_list = isinstance(kept, (list, tuple)) and all(_is_index(head, count) for head in kept)
        is_valid = is_list and len(set(kept)) == len(kept)
        _check(is_valid, f"heads of {name}, {where}", kept, f"different numbers from 0 to {count - 1}")
    for name, kept in layer["neurons"].items():
        width = full.neurons[name]
        _check(_is_index(kept, width + 1), f"neurons of {name}, {where}", kept, f"a number from 0 to {width}")


def _check_keys(where: str, value: Any, needed: Collection[str], optional: Collection[str] = ()) -> None:
    is_valid = _is_mapping(value, [*needed, *optional]) and all(key in value for key in needed)
    _check(is_valid, where, value, f"the keys {', '.join([*needed, *optional])}")


def _check_activations(where: str, value: Any) -> None:
    is_valid = value is None or (isinstance(value, str) and value in ACTIVATIONS)
    _check(is_valid, f"activations, {where}", value, "static, dynamic or null")


def _is_index(value: Any, stop: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < stop


def _is_mapping(value: Any, keys: Collection[str]) -> bool:
    return isinstance(value, Mapping) and all(key in keys for key in value)


def _check(is_valid: bool, where: str, value: Any, expected: str) -> None:
    if not is_valid:
        _fail(where, value, expected)


def _fail(where: str, value: Any, expected: str) -> NoReturn:
    raise ValueError(f"the config of the model is damaged: {where}: {reprlib.repr(value)}, expected {expected}")
