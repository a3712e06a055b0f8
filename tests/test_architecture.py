"""The rules of the house: which room may import which, read from the imports themselves."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hf_efficient

HOUSE = Path(hf_efficient.__file__).parent
LEVELS = {
    "quiet": 0,
    "whole": 0,
    "models": 0,
    "distillation": 1,
    "pruning": 1,
    "quantization": 1,
    "measurement": 1,
    "tasks": 1,
    "data": 1,
    "demo_corpus": 1,
    "speedup": 2,
    "rounds": 2,
    "ordering": 2,
    "sharding": 2,
    "asking": 2,
    "distilling": 2,
    "quantizing": 2,
    "exported": 2,
    "exporting": 2,
    "pushable": 2,
    "pushing": 2,
    "space": 2,
    "hub": 2,
    "reporting": 2,
    "trainer": 2,
    "job": 3,
    "ready": 3,
    "compress": 3,
    "forms": 3,
    "side_by_side": 3,
    "training_worker": 3,
    "training_measured": 3,
    "measuring": 4,
    "demo": 4,
    "cli": 5,
    "__init__": 6,
}
# Rooms import what lies on levels below, and of their own level only this.
NEIGHBOURS = {
    "tasks": {"measurement", "data"},
    "ready": {"job"},
    "compress": {"job", "ready"},
    "side_by_side": {"forms"},
    "training_measured": {"training_worker"},
    "distilling": {"asking"},
    "trainer": {"distilling", "exporting", "ordering", "quantizing", "reporting", "rounds", "sharding"},
    "hub": {"pushable", "pushing"},
    "pushing": {"pushable"},
    "space": {"pushable", "pushing"},
    "reporting": {"exported", "exporting", "hub", "pushing"},
    "exporting": {"exported"},
    "rounds": {"speedup"},
}
KNOWS_NOTHING_OF_OURS = {"measurement"}
HEAVY = {
    "torchao",
    "matplotlib",
    "rich",
    "onnx",
    "onnxruntime",
    "sacrebleu",
    "seqeval",
    "rouge_score",
    "codecarbon",
    "sklearn",
}
PRINTS = {"cli", "demo"}
MODULES = {
    ".".join(path.relative_to(HOUSE).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(HOUSE.rglob("*.py"))
}


def room(module):
    return module.partition(".")[0]


def imports(module, tree):
    """Yields (name, line) of every module that `module` imports; of ours without the package's name in front."""
    folder = module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = folder[: len(folder) - node.level + 1] if node.level else []
            start = ["hf_efficient", *parts] if node.level else []
            start += node.module.split(".") if node.module else []
            for alias in node.names:
                whole = [*start, alias.name]
                yield ".".join(whole if whole[0] == "hf_efficient" and is_ours(whole[1:]) else start), node.lineno


def is_ours(parts):
    return ".".join(parts) in MODULES or ".".join([*parts, "__init__"]) in MODULES


def own_imports(module, tree):
    """Yields (module, line) of our own modules that `module` imports."""
    for name, line in imports(module, tree):
        first, *rest = name.split(".")
        if first == "hf_efficient":
            yield next(known for known in (".".join(rest), ".".join([*rest, "__init__"])) if known in MODULES), line


def trespasses(module, tree):
    """Returns the imports of `module` that go up, or sideways where they may not."""
    here, found = room(module), []
    for name, line in own_imports(module, tree):
        there = room(name)
        below = LEVELS[there] < LEVELS[here] and here not in KNOWS_NOTHING_OF_OURS
        if there != here and not below and there not in NEIGHBOURS.get(here, ()):
            found.append(f"{module}:{line} imports {name}")
    return found


def late_imports(module, tree):
    """Returns the imports inside functions that are not of a heavy optional dependency."""
    found = []
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                late = [alias.name for alias in node.names if alias.name.partition(".")[0] not in HEAVY]
            elif isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                allowed = (node.module or "").partition(".")[0] in HEAVY and not node.level
                allowed |= node.module == "transformers" and names == {"TorchAoConfig"}
                late = [] if allowed else sorted(names)
            else:
                continue
            found += [f"{module}:{node.lineno} imports {name} inside a function" for name in late]
    return found


def prints(module, tree):
    return [
        f"{module}:{node.lineno} prints"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def test_every_room_has_a_level():
    assert {room(module) for module in MODULES} <= LEVELS.keys(), "give the new module a level in this file"


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    assert trespasses(module, MODULES[module]) == []


def test_there_is_no_cycle():
    graph = {module: {name for name, _ in own_imports(module, tree)} - {module} for module, tree in MODULES.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")
    assert len(order) == len(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_only_heavy_optional_dependencies_are_imported_late(module):
    assert late_imports(module, MODULES[module]) == []


@pytest.mark.parametrize(
    "module",
    [name for name in MODULES if room(name) == "models" and name not in ("models.__init__", "models.surgery")],
)
def test_remote_code_stands_on_its_own(module):
    tree = MODULES[module]
    absolute = {name.partition(".")[0] for name, _ in imports(module, tree)} - {"hf_efficient"}
    assert absolute <= {"torch", "transformers"} | sys.stdlib_module_names
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("hf_efficient")):
            assert node.level == 1, (
                f"line {node.lineno}: code beside the weights imports its neighbours as `.structure`"
            )
            shared = {"codebook", "encoder", "structure", "t5_layers"}
            assert node.module in shared, f"line {node.lineno}: {node.module} is saved with no model"
        elif isinstance(node, ast.Import):
            assert not [alias for alias in node.names if alias.name.startswith("hf_efficient")]


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) not in PRINTS])
def test_the_library_does_not_print(module):
    assert prints(module, MODULES[module]) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("pruning.gates", "from hf_efficient.models import family_of", []),
        ("pruning.gates", "from hf_efficient.pruning import budget", []),
        ("pruning.gates", "from hf_efficient.distillation.distiller import x", ["distillation.distiller"]),
        ("pruning.gates", "from hf_efficient import speedup", ["speedup"]),
        ("pruning.gates", "from ..quantization.int8 import quantize", ["quantization.int8"]),
        ("pruning.gates", "from hf_efficient import PruningConfig", ["__init__"]),
        ("pruning.gates", "import hf_efficient.hub.model_card", ["hub"]),
        ("measurement.cost", "from hf_efficient.models import family_of", ["models.__init__"]),
        ("hub", "from hf_efficient.trainer.trainer import EfficientTrainer", ["trainer"]),
        ("reporting", "from hf_efficient import hub", []),
        ("tasks", "from hf_efficient.data.loading import DataConfig", []),
        ("data", "def f():\n    from hf_efficient.tasks import Task", ["tasks.__init__"]),
    ],
)
def test_the_rule_on_imports_can_fail(module, source, found):
    assert [line.rpartition(" ")[2] for line in trespasses(module, ast.parse(source))] == found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f():\n    import torchao, rich.table", 0),
        ("def f():\n    from matplotlib.figure import Figure", 0),
        ("def f():\n    from transformers import TorchAoConfig", 0),
        ("import json", 0),
        ("def f():\n    from transformers import AutoModel", 1),
        ("class A:\n    def f(self):\n        import json", 1),
        ("def f():\n    from . import hub", 1),
    ],
)
def test_the_rule_on_late_imports_can_fail(source, count):
    assert len(late_imports("trainer", ast.parse(source))) == count
