"""The rules of the package's layout, checked on the source: which room imports which, what is light, what is long."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hf_efficient

PACKAGE = Path(hf_efficient.__file__).parent
# A room imports rooms of earlier lines only, never one of its own line.
LEVELS = (
    ("errors",),
    ("registry", "field_checks", "files"),
    ("models",),
    ("data", "pruning", "distillation", "quantization", "measurement"),
    ("tasks", "exporters", "hub"),
    ("functions",),
    ("variants",),
    ("trainer",),
    ("commands",),
    ("cli",),
    ("__init__",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# Measures any torch module, not only the models of this package.
INDEPENDENT = {"measurement": {"errors", "registry", "files"}}
MAX_FILES_BESIDE_ROOMS = 6
MAX_LINES = 330
MIN_DOCSTRING_LINES = 3
# Optional, or slow to import and needed by few users: these may be imported where they are used.
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
    "sentence_transformers",
}
# Modules of models/ that are not saved next to a model's weights.
NOT_SHIPPED = {
    "models.__init__",
    "models.surgery",
    "models.inputs",
    "models.batches",
    "models.loading",
    "models.sentence_files",
    "models.sentence_modules",
}
# Imported in milliseconds.
LIGHT_PACKAGES = {"regex"}
REMOTE_CODE_PACKAGES = {"torch", "transformers"} | sys.stdlib_module_names
DYNAMIC_IMPORTS = {"import_module", "resolve_name", "__import__"}
# The registry resolves texts, which are read as imports here; the demo reads the docstrings of other packages.
IMPORT_BY_TEXT = {"__init__", "registry", "commands.demo_dataset"}
SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = {module: ast.parse(source) for module, source in SOURCES.items()}
ROOMS = sorted(module.removesuffix(".__init__") for module in MODULES if module.endswith(".__init__"))
CONFIG_MODULES = [name for name in MODULES if name.endswith(".config")]
REMOTE_CODE = {name for name in MODULES if name.startswith("models.")} - NOT_SHIPPED
LIGHT_MODULES = ["__init__", *CONFIG_MODULES, "pruning.criteria", "tasks.__init__"]


def room_of(module):
    return module.partition(".")[0]


def module_named(name):
    """Return the module of the package that a dotted name means, None if there is none."""
    first, *rest = name.split(".")
    if first != "hf_efficient":
        return None
    return next((module for module in (".".join(rest), ".".join([*rest, "__init__"])) if module in MODULES), None)


def statement_imports(module, tree):
    """Yield (name, line) of the import statements in `tree`, relative ones with the package's name in front."""
    folder = ["hf_efficient", *module.split(".")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) - node.level + 1] if node.level else []
            start = [*start, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                full = ".".join([*start, alias.name])
                if full != "hf_efficient.__version__":
                    yield (full if module_named(full) else ".".join(start)), node.lineno


def text_imports(module, tree):
    """Yield (name, line) of the modules named by texts: entries of registries, the table of public names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = re.fullmatch(r"(hf_efficient(?:\.\w+)+)(?::\w+)?", node.value)
            if match and module_named(match[1]):
                yield match[1], node.lineno
        elif isinstance(node, ast.Assign) and module == "__init__" and "_MODULES" in map(ast.unparse, node.targets):
            yield from ((f"hf_efficient.{value.value}", value.lineno) for value in node.value.values)


def own_imports(module, tree):
    """Yield (module, line) of the package's modules that `module` imports or names by a text."""
    for name, line in (*statement_imports(module, tree), *text_imports(module, tree)):
        imported = module_named(name)
        if imported:
            yield imported, line


def import_violations(module, tree):
    """Return the imports of `module` that are not of a lower level."""
    room, violations = room_of(module), []
    for name, line in own_imports(module, tree):
        imported = room_of(name)
        is_lower = LEVEL[imported] < LEVEL[room] and imported in INDEPENDENT.get(room, LEVEL)
        if imported != room and not is_lower:
            violations.append(f"{module}:{line} imports {name}")
    return violations


def late_imports(module, tree):
    """Return the imports inside functions, except of heavy dependencies and in the `run` of a command."""
    runs = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    allowed = {id(node) for run in runs for node in ast.walk(run)} if room_of(module) == "commands" else set()
    violations = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.partition(".")[0] not in HEAVY]
            elif isinstance(node, ast.ImportFrom):
                is_heavy = (node.module or "").partition(".")[0] in HEAVY and not node.level
                imported = {alias.name for alias in node.names}
                is_heavy |= node.module == "transformers" and imported == {"TorchAoConfig"}  # imports torchao
                names = [] if is_heavy else sorted(imported)
            else:
                continue
            if id(node) not in allowed:
                violations += [f"{module}:{node.lineno} imports {name} inside a function" for name in names]
    return violations


def dynamic_imports(module, tree):
    """Return the calls that import a module by a name that may be computed."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        f"{module}:{node.lineno} imports by {ast.unparse(node.func)}"
        for node in calls
        if ast.unparse(node.func).rpartition(".")[2] in DYNAMIC_IMPORTS
    ]


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"


def import_time_statements(node):
    """Yield the statements that run when the module is imported: not those of functions or under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child) or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.stmt):
            yield child
        yield from import_time_statements(child)


def import_time_imports(module, tree):
    """Yield the names of the modules that importing `module` imports, with the rooms that they lie in."""
    for node in import_time_statements(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name, _ in statement_imports(module, ast.Module([node], [])):
                yield name
                imported = module_named(name)
                if imported and "." in imported:
                    yield f"hf_efficient.{room_of(imported)}"


def heavy_imports(module, tree, allowed=frozenset()):
    """Return what importing `module` imports, directly or not, that is neither standard, light, ours nor allowed."""
    violations, seen, todo = set(), {module}, [(module, tree)]
    while todo:
        current, current_tree = todo.pop()
        for name in import_time_imports(current, current_tree):
            imported, package = module_named(name), name.partition(".")[0]
            if imported and imported not in seen:
                seen.add(imported)
                todo.append((imported, MODULES[imported]))
            elif not imported and package not in sys.stdlib_module_names | {"hf_efficient"} | LIGHT_PACKAGES | allowed:
                violations.add(f"{current} imports {package}")
    return sorted(violations)


def prints(module, tree):
    return [
        f"{module}:{node.lineno} prints"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def plain_errors(module, tree):
    """Return the places that raise ValueError or TypeError, which the command line shows with their traceback."""
    return [
        f"{module}:{node.lineno} raises {ast.unparse(node.exc).partition('(')[0]}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        and node.exc is not None
        and ast.unparse(node.exc).partition("(")[0] in ("ValueError", "TypeError")
    ]


def remote_code_violations(module, tree):
    """Return the imports of a module saved next to the weights that fail where this package is not installed."""
    violations = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            is_saved = node.level == 1 and f"models.{node.module}" in REMOTE_CODE
            names = [] if is_saved else ["." * node.level + (node.module or "")]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            names = [name for name in names if name.partition(".")[0] not in REMOTE_CODE_PACKAGES]
        else:
            continue
        violations += [f"{module}:{node.lineno} imports {name}" for name in names]
    return violations


def wrong_texts(module, tree):
    """Return the texts "module:name" that name no definition of the package."""
    violations = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = re.fullmatch(r"(hf_efficient(?:\.\w+)*):(\w+)", node.value)
            target = match and module_named(match[1])
            if match and not (target and match[2] in defined_names(MODULES[target])):
                violations.append(f"{module}:{node.lineno} names {node.value}")
    return violations


def check(rule, modules=MODULES):
    """Return the violations of a rule in all of `modules`."""
    return [violation for module in sorted(modules) for violation in rule(module, MODULES[module])]


def defined_names(tree):
    """Yield the names that a module defines or imports at its top level."""
    for node in import_time_statements(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
    yield from (node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_every_room_has_a_level():
    assert {room_of(module) for module in MODULES} == LEVEL.keys(), "give the new room a level in this file"


def test_few_files_lie_beside_the_rooms():
    assert len([module for module in MODULES if "." not in module]) <= MAX_FILES_BESIDE_ROOMS


def test_imports_run_downwards():
    assert not check(import_violations)


def test_modules_do_not_import_each_other():
    graph = {
        module: {module_named(name) for name, _ in statement_imports(module, tree)} - {module, None}
        for module, tree in MODULES.items()
    }
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")
    assert len(order) == len(MODULES)


def test_imports_are_at_the_top_of_a_module():
    assert not check(late_imports)


def test_modules_are_imported_by_name():
    assert not check(dynamic_imports, MODULES.keys() - IMPORT_BY_TEXT)


def test_texts_that_name_a_definition_are_right():
    assert not check(wrong_texts)


def test_the_package_itself_imports_next_to_nothing():
    imported = {module_named(name) for name in import_time_imports("__init__", MODULES["__init__"])} - {None}
    assert imported == {"registry"}


def test_light_modules_import_only_the_standard_library():
    assert not check(heavy_imports, LIGHT_MODULES)


def test_the_command_line_is_light():
    commands = {module_named(name) for name, _ in text_imports("cli", MODULES["cli"])}
    for module in ("cli", *sorted(commands)):
        assert heavy_imports(module, MODULES[module], allowed={"yaml", "rich"}) == []


def test_remote_code_is_self_contained():
    assert not check(remote_code_violations, REMOTE_CODE)


def test_the_library_does_not_print():
    assert not check(prints)


def test_errors_that_a_user_can_fix_are_user_errors():
    assert not check(plain_errors, MODULES.keys() - REMOTE_CODE)


def test_no_module_is_long():
    lines = {module: len(source.splitlines()) for module, source in SOURCES.items()}
    assert not {module: count for module, count in lines.items() if count > MAX_LINES}, "split these modules"


def test_rooms_say_what_they_own():
    lines = {room: (ast.get_docstring(MODULES[f"{room}.__init__"]) or "").splitlines() for room in ROOMS}
    short = [room for room in ROOMS if len(list(filter(None, lines[room]))) < MIN_DOCSTRING_LINES]
    assert not short, "say what these rooms own, take and give"


@pytest.mark.parametrize(
    ("module", "source", "violations"),
    [
        ("pruning.gates", "from hf_efficient.models import family_of", []),
        ("pruning.gates", "from hf_efficient.pruning import selection", []),
        ("pruning.gates", "from hf_efficient.errors import UserError", []),
        ("pruning.gates", "from hf_efficient.distillation.distiller import x", ["distillation.distiller"]),
        ("pruning.gates", "from hf_efficient import functions", ["functions"]),
        ("pruning.gates", "from ..quantization.int8 import quantize", ["quantization.int8"]),
        ("pruning.gates", "from hf_efficient import PruningConfig", ["__init__"]),
        ("pruning.gates", "import hf_efficient.hub.model_card", ["hub.model_card"]),
        ("pruning.gates", "CRITERIA = {'x': 'hf_efficient.tasks.task:Task'}", ["tasks.task"]),
        ("pruning.gates", "CRITERIA = {'x': 'hf_efficient.pruning.losses:task_loss'}", []),
        ("pruning.gates", "if TYPE_CHECKING:\n    from hf_efficient.tasks.task import Task", ["tasks.task"]),
        ("pruning.gates", "def f():\n    from hf_efficient.tasks.task import Task", ["tasks.task"]),
        ("commands.measure", "WORKER_MODULE = 'hf_efficient.cli'", ["cli"]),
        ("measurement.cost", "from hf_efficient.models import family_of", ["models.__init__"]),
        ("models.surgery", "from hf_efficient.errors import UserError", []),
        ("hub.push", "from hf_efficient.exporters.export import export", ["exporters.export"]),
        ("hub.push", "from hf_efficient.trainer.trainer import EfficientTrainer", ["trainer.trainer"]),
        ("variants.builders", "from hf_efficient.functions import quantize", []),
        ("functions", "from hf_efficient.variants.config import VARIANTS", ["variants.config"]),
        ("errors", "_MODULES = {'prune': 'functions'}", []),
        ("__init__", "_MODULES = {'prune': 'functions'}", []),
    ],
)
def test_rule_on_imports_can_fail(module, source, violations):
    assert [line.rpartition(" ")[2] for line in import_violations(module, ast.parse(source))] == violations


def test_public_names_are_read_as_imports():
    names = [name for name, _ in own_imports("__init__", ast.parse("_MODULES = {'A': 'models', 'b': 'functions'}"))]
    assert names == ["models.__init__", "functions"]


@pytest.mark.parametrize(
    ("module", "source", "count"),
    [
        ("trainer.trainer", "def f():\n    import torchao, rich.table", 0),
        ("trainer.trainer", "def f():\n    from matplotlib.figure import Figure", 0),
        ("trainer.trainer", "def f():\n    from transformers import TorchAoConfig", 0),
        ("trainer.trainer", "import json", 0),
        ("trainer.trainer", "def f():\n    from transformers import AutoModel", 1),
        ("trainer.trainer", "class A:\n    def f(self):\n        import json", 1),
        ("trainer.trainer", "def f():\n    from . import hub", 1),
        ("trainer.trainer", "def run():\n    import torch", 1),
        ("commands.push", "def run():\n    import torch", 0),
        ("commands.push", "def check():\n    import torch", 1),
        ("commands.push", "class A:\n    def run(self):\n        import torch", 1),
    ],
)
def test_rule_on_late_imports_can_fail(module, source, count):
    assert len(late_imports(module, ast.parse(source))) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import json", 0),
        ("from hf_efficient.errors import UserError", 0),
        ("from hf_efficient.pruning.config import PruningConfig", 0),
        ("if TYPE_CHECKING:\n    import torch", 0),
        ("def f():\n    import torch", 0),
        ("import torch.nn", 1),
        ("try:\n    import torch\nexcept ImportError:\n    pass", 1),
        ("class A:\n    import torch", 1),
    ],
)
def test_rule_on_light_modules_can_fail(source, count):
    assert len(heavy_imports("data.config", ast.parse(source))) == count


def test_rule_on_light_modules_follows_imports():
    assert heavy_imports("data.config", ast.parse("from hf_efficient.pruning.gates import apply_gates"))


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (prints, "print('done')"),
        (plain_errors, "def f():\n    raise ValueError('x')"),
        (plain_errors, "raise TypeError"),
        (dynamic_imports, "importlib.import_module('torch')"),
        (dynamic_imports, "resolve_name(name)"),
        (remote_code_violations, "from hf_efficient.models.structure import Structure"),
        (remote_code_violations, "from ..errors import UserError"),
        (remote_code_violations, "from .inputs import select_inputs"),
        (remote_code_violations, "import numpy"),
        (wrong_texts, "TASKS = {'x': 'hf_efficient.tasks.task:Tusk'}"),
        (wrong_texts, "TASKS = {'x': 'hf_efficient.tasks.tusk:Task'}"),
    ],
)
def test_other_rules_can_fail(rule, source):
    assert len(rule("models.structure", ast.parse(source))) == 1
    fine = "import torch\nfrom .structure import Structure\nT = 'hf_efficient.tasks.task:Task'\nraise UserError('no')"
    assert rule("models.structure", ast.parse(fine)) == []
