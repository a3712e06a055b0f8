"""What every family owes to a process without the package: code beside the weights that loads to the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from hf_efficient import FAMILIES, QuantizationConfig, quantize
from hf_efficient.pruning.selection import remove_units

PRUNED = {cls.__name__: pruned for family in FAMILIES.values() for cls, pruned in family.pruned_classes.items()}
FAMILY_OF = {cls.__name__: family for family in FAMILIES.values() for cls in family.pruned_classes}
CLASSIFIERS = [head for head in PRUNED if head.endswith("ForSequenceClassification")]
HEADS = [*CLASSIFIERS, *(head for head in PRUNED if head.startswith("Bert") and head not in CLASSIFIERS)]
QUANTIZED = "BertForSequenceClassification-int8"
CODEBOOKS = [f"{head}-codebook" for head in ("BertForSequenceClassification", "T5ForSequenceClassification")]
# Run where `hf_efficient` cannot be imported. `expected.pt` holds, by folder: Auto class, inputs, outputs and weights.
CONSUMER = """
import copy, json, sys
sys.modules["hf_efficient"] = None  # importing it raises ImportError
import torch, transformers
from pathlib import Path

torch.set_num_threads(1)

def answers(model, batch):
    with torch.no_grad():
        answer = copy.deepcopy(model)(**batch)  # a copy, for weights in a mapped file may be aligned otherwise
    return {name: value for name, value in answer.items() if torch.is_tensor(value)}

def differences(model, expected):
    found, ours, weights = answers(model, expected["batch"]), model.state_dict(), expected["weights"]
    return {
        "outputs": max(float((found[name] - value).abs().max()) for name, value in expected["outputs"].items()),
        "names": sorted(set(ours) ^ set(weights)) + sorted(set(found) ^ set(expected["outputs"])),
        "weights": [name for name in weights if not torch.equal(ours[name], weights[name])],
    }

facts = {}
for folder, expected in torch.load("expected.pt").items():
    auto = getattr(transformers, expected["auto"])
    try:
        auto.from_pretrained(folder, trust_remote_code=False)
        untrusted = "loaded"
    except ValueError as error:
        untrusted = str(error)
    model = auto.from_pretrained(folder, trust_remote_code=True)
    facts[folder] = {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "untrusted": untrusted,
        "loaded": differences(model, expected),
    }
    if not folder.endswith("int8"):  # which transformers cannot save again once it is loaded
        base = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
        own, theirs = base.state_dict(), model.base_model.state_dict()
        facts[folder]["base"] = type(base).__name__
        facts[folder]["base_weights"] = [name for name in theirs if not torch.equal(theirs[name], own[name])]
        model.save_pretrained(folder + "-again")
        again = auto.from_pretrained(folder + "-again", trust_remote_code=True)
        facts[folder]["saved_again"] = differences(again, expected)
facts["package"] = sys.modules["hf_efficient"]
Path("facts.json").write_text(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def consumer(tmp_path_factory, make_model, make_batch, outputs, select):
    """What a process without the package found in the folders that this one saved, and those folders."""
    place = tmp_path_factory.mktemp("consumer")
    expected, students = {}, {head: remove_units(make_model(head), select("all of these", head)) for head in HEADS}
    students[QUANTIZED] = quantize(students["BertForSequenceClassification"], QuantizationConfig())
    for folder in CODEBOOKS:
        head = folder.partition("-")[0]
        students[folder] = quantize(students.get(head) or make_model(head), QuantizationConfig("codebook"))
    for folder, student in students.items():
        head = folder.partition("-")[0]
        student.save_pretrained(place / folder)
        batch = make_batch(head)
        expected[folder] = {
            "auto": PRUNED[head]._auto_class,
            "batch": batch,
            "outputs": outputs(student, batch),
            "weights": {} if folder == QUANTIZED else student.state_dict(),
        }
    torch.save(expected, place / "expected.pt")
    environment = {**os.environ, "HF_HOME": str(place / "home"), "HF_MODULES_CACHE": str(place / "home" / "modules")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", CONSUMER], cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(place=place, expected=expected, facts=json.loads((place / "facts.json").read_text()))


def code_in(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.py")}


def assert_equal(differences):
    """Fails unless the weights are equal bit by bit; processes may align them, and so round, otherwise."""
    assert (differences["names"], differences["weights"]) == ([], [])
    assert differences["outputs"] <= 1e-6


@pytest.mark.parametrize("head", HEADS)
def test_folder_names_the_code_of_every_auto_class(consumer, head):
    auto_map = json.loads((consumer.place / head / "config.json").read_text())["auto_map"]
    classes = FAMILY_OF[head].pruned_classes.values()
    module = PRUNED[head].__module__.rpartition(".")[2]
    assert auto_map.keys() == {"AutoConfig", *(cls._auto_class for cls in classes)}
    assert len(auto_map) == 1 + len(classes)
    assert auto_map[PRUNED[head]._auto_class] == f"{module}.Pruned{head}"


@pytest.mark.parametrize("head", CLASSIFIERS)
def test_code_in_the_folder_is_the_code_of_the_package(consumer, head):
    code = code_in(consumer.place / head)
    source = Path(sys.modules["hf_efficient.models"].__file__).parent
    assert {f"{PRUNED[head].__module__.rpartition('.')[2]}.py", "structure.py"} <= code.keys()
    assert code == {name: (source / name).read_bytes() for name in code}


@pytest.mark.parametrize("head", HEADS)
def test_loads_where_the_package_is_not_installed(consumer, head):
    facts = consumer.facts[head]
    assert consumer.facts["package"] is None
    assert facts["class"] == f"Pruned{head}"
    assert facts["module"].startswith("transformers_modules.")
    assert_equal(facts["loaded"])


@pytest.mark.parametrize("head", HEADS)
def test_asks_for_trust_where_the_package_is_not_installed(consumer, head):
    assert "trust_remote_code=True" in consumer.facts[head]["untrusted"]


@pytest.mark.parametrize("head", HEADS)
def test_saved_again_without_the_package_is_as_good_as_new(
    consumer, make_batch, outputs, assert_same, assert_same_weights, head
):
    assert_equal(consumer.facts[head]["saved_again"])
    first, again = consumer.place / head, consumer.place / f"{head}-again"
    auto_maps = [json.loads((folder / "config.json").read_text())["auto_map"] for folder in (first, again)]
    assert auto_maps[1] == auto_maps[0]
    assert code_in(again) == code_in(first)
    here = getattr(transformers, PRUNED[head]._auto_class)
    assert_same_weights(here.from_pretrained(again), here.from_pretrained(first))
    assert_same(outputs(here.from_pretrained(again), make_batch(head)), consumer.expected[head]["outputs"], atol=1e-6)


@pytest.mark.parametrize("head", CLASSIFIERS)
def test_base_model_is_found_in_a_folder_with_a_task_head(consumer, head):
    facts = consumer.facts[head]
    assert facts["base"] == f"Pruned{head.partition('For')[0]}Model"
    assert facts["base_weights"] == []


def test_eight_bit_loads_where_the_package_is_not_installed(consumer):
    facts = consumer.facts[QUANTIZED]
    assert facts["class"] == "PrunedBertForSequenceClassification"
    assert facts["loaded"]["outputs"] <= 1e-6


@pytest.mark.parametrize("folder", CODEBOOKS)
def test_codebooks_load_where_the_package_is_not_installed(consumer, folder):
    facts = consumer.facts[folder]
    assert facts["class"] == f"Pruned{folder.partition('-')[0]}"
    assert "codebook.py" in code_in(consumer.place / folder)
    assert_equal(facts["loaded"])
    assert_equal(facts["saved_again"])
