"""The public names: lazy, complete, and enough for the Auto classes of Transformers to load pruned models."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from reviews import save_model, tiny_config
from transformers import CONFIG_MAPPING, BertForSequenceClassification, set_seed

import hf_efficient
from hf_efficient import FAMILIES, PruningConfig, prune

# How a process may come to load a pruned model. Each order runs in a process of its own; `config` and `model` are what
# it loaded, where it loaded any.
ORDERS = {
    "package first": """
import hf_efficient
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(folder)
""",
    "Transformers first": """
from transformers import AutoModelForSequenceClassification
import hf_efficient
model = AutoModelForSequenceClassification.from_pretrained(folder)
""",
    "BertModel after the package": """
import hf_efficient
from transformers import BertModel, AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(folder)
""",
    "BertModel before the package": """
from transformers import BertModel, AutoModelForSequenceClassification
import hf_efficient
model = AutoModelForSequenceClassification.from_pretrained(folder)
""",
    "configuration_auto before the package": """
import transformers.models.auto.configuration_auto
import hf_efficient
config = transformers.AutoConfig.from_pretrained(folder)
""",
    "AutoConfig alone": """
import hf_efficient
from transformers import AutoConfig
config = AutoConfig.from_pretrained(folder)
""",
    "AutoTokenizer alone": """
import hf_efficient
from transformers import AutoTokenizer
assert AutoTokenizer.from_pretrained(folder)("a good film")["input_ids"]
""",
    "pipeline": """
import hf_efficient
from transformers import pipeline
classifier = pipeline("text-classification", folder)
model = classifier.model
assert classifier("a good film")[0]["label"] in ("negative", "positive")
""",
}
# What takes most of the time of an import is imported once, before the processes are forked.
RUN_IN_FORKS = """
import json, os, sys, traceback
import torch, torchao, accelerate
assert not [name for name in sys.modules if name.startswith(("transformers", "hf_efficient"))]
folder, orders = sys.argv[1], json.loads(sys.argv[2])
failed = []
for name, source in orders.items():
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            scope = {"folder": folder}
            exec(source, scope)
            for loaded in (scope.get("model"), scope.get("config")):
                if loaded is not None:
                    assert type(loaded).__module__ == "hf_efficient.models.pruned_bert", type(loaded)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    if os.waitpid(process, 0)[1]:
        failed.append(name)
assert not failed, failed
"""


@pytest.fixture(scope="module")
def pruned_dir(tmp_path_factory):
    """Returns a folder with a model of a shape that only a class of this package can hold."""
    set_seed(0)
    folder = tmp_path_factory.mktemp("pruned")
    model = BertForSequenceClassification(tiny_config())
    return save_model(folder, prune(model, PruningConfig(heads=0.25, neurons=0.3, criterion="magnitude")))


@pytest.mark.slow
def test_pruned_models_load_in_any_order_of_imports(pruned_dir):
    arguments = [sys.executable, "-c", RUN_IN_FORKS, str(pruned_dir), json.dumps(ORDERS)]
    process = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_model_type_of_a_pruned_config_is_found_by_the_auto_classes(family):
    assert family.pruned_config_class.model_type == f"pruned_{family.model_type}"
    assert CONFIG_MAPPING[family.pruned_config_class.model_type] is family.pruned_config_class


def test_public_names_are_also_written_for_type_checkers():
    tree = ast.parse(Path(hf_efficient.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    assert imported == {name: f"hf_efficient.{module}" for name, module in hf_efficient._MODULES.items()}
    assert set(hf_efficient.__all__) == imported.keys()


@pytest.mark.parametrize("name", hf_efficient.__all__)
def test_public_name_is_resolved_and_kept(name):
    assert getattr(hf_efficient, name) is vars(hf_efficient)[name]
    assert name in dir(hf_efficient)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'hf_efficient' has no attribute 'pruner'"):
        _ = hf_efficient.pruner


def test_public_names_are_sorted_and_the_promised_ones_are_among_them():
    constants = [name for name in hf_efficient.__all__ if name.isupper()]
    classes = [name for name in hf_efficient.__all__ if name[0].isupper() and not name.isupper()]
    functions = [name for name in hf_efficient.__all__ if name.islower()]
    assert hf_efficient.__all__ == sorted(constants) + sorted(classes) + sorted(functions)
    assert {
        "CRITERIA", "FAMILIES", "CompressionReport", "DistillationConfig", "EfficientSeq2SeqTrainer",
        "EfficientTrainer", "ExportConfig", "NonFiniteLossError", "PruningConfig", "QuantizationConfig", "Structure",
        "export", "load_exported", "measure", "prune", "quantize",
    } <= set(hf_efficient.__all__)  # fmt: skip
