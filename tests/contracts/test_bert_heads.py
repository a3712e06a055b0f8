"""What every class of the BERT family owes to who loads it: with the package, without it, and saved once more."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from hf_efficient import QuantizationConfig, quantize
from hf_efficient.pruning.budget import Selection
from hf_efficient.pruning.surgery import cut

PY_FILES = ["encoder.py", "pruned_bert.py", "structure.py"]
# Run where `hf_efficient` cannot be imported. `expected.pt` holds, by folder: Auto class, inputs, outputs and weights.
CONSUMER = """
import copy, json, sys
sys.modules["hf_efficient"] = None  # importing it raises ImportError
import torch, transformers
from pathlib import Path

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
        model.save_pretrained(folder + "-again")
        again = auto.from_pretrained(folder + "-again", trust_remote_code=True)
        facts[folder]["saved_again"] = differences(again, expected)
folder = "BertForSequenceClassification"
expected = torch.load("expected.pt")[folder]
base = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
whole = transformers.AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
own, theirs = answers(base, expected["batch"]), answers(whole.bert, expected["batch"])
facts["base"] = {
    "class": type(base).__name__,
    "difference": float((own["last_hidden_state"] - theirs["last_hidden_state"]).abs().max()),
}
facts["package"] = sys.modules["hf_efficient"]
Path("facts.json").write_text(json.dumps(facts))
"""
QUANTIZED = "BertForSequenceClassification-int8"


def auto_class(head):
    return {"BertModel": "AutoModel"}.get(head, head.replace("Bert", "AutoModel", 1))


@pytest.fixture(scope="module")
def consumer(tmp_path_factory, make_model, make_batch, outputs, select, heads):
    """What a process without the package found in the folders that this one saved, and those folders."""
    place = tmp_path_factory.mktemp("consumer")
    expected, students = {}, {head: cut(make_model(head), select("all of these")) for head in heads}
    students[QUANTIZED] = quantize(students["BertForSequenceClassification"], QuantizationConfig())
    for folder, student in students.items():
        head = folder.partition("-")[0]
        student.save_pretrained(place / folder)
        batch = make_batch(head)
        expected[folder] = {
            "auto": auto_class(head),
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


def test_reloads_with_the_package(
    make_model, make_batch, outputs, assert_same, assert_same_weights, select, head, uneven_shape, tmp_path
):
    student, batch = cut(make_model(head), select(uneven_shape)), make_batch(head)
    student.save_pretrained(tmp_path)
    loaded = getattr(transformers, auto_class(head)).from_pretrained(tmp_path)
    assert type(loaded) is type(student)
    assert loaded.config.structure == student.config.structure
    assert_same_weights(loaded, student)
    assert_same(outputs(loaded, batch), outputs(student, batch), atol=1e-6)


def test_stock_shape_reloads_without_code(
    make_model, make_batch, outputs, assert_same, assert_same_weights, select, head, tmp_path
):
    student, batch = cut(make_model(head), select("a stock shape")), make_batch(head)
    student.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    written = json.loads((tmp_path / "config.json").read_text())
    assert "auto_map" not in written
    assert (written["model_type"], written["architectures"]) == ("bert", [head])
    loaded = getattr(transformers, head).from_pretrained(tmp_path)
    assert_same_weights(loaded, student)
    assert_same(outputs(loaded, batch), outputs(student, batch), atol=1e-6)


def test_pruned_and_saved_again_reloads(make_model, make_batch, outputs, assert_same, select, head, tmp_path):
    cut(make_model(head), select("uneven widths")).save_pretrained(tmp_path / "once")
    once = getattr(transformers, auto_class(head)).from_pretrained(tmp_path / "once")
    half = {name: tuple(range(len(units) // 2)) for name, units in select("uneven widths").units.items()}
    twice = cut(once, Selection(("encoder.0", "encoder.2"), half))
    twice.save_pretrained(tmp_path / "twice")
    loaded = getattr(transformers, auto_class(head)).from_pretrained(tmp_path / "twice")
    assert [layer["source"] for layer in loaded.config.structure["encoder"]] == [0, 2]
    assert_same(outputs(loaded, make_batch(head)), outputs(twice, make_batch(head)), atol=1e-6)


def test_folder_names_the_code_of_every_auto_class(consumer, head, heads):
    folder = consumer.place / head
    assert sorted(path.name for path in folder.glob("*.py")) == PY_FILES
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    names = {"AutoConfig", *(auto_class(name) for name in heads)}
    assert auto_map.keys() == names
    assert auto_map[auto_class(head)] == f"pruned_bert.Pruned{head}"


def test_loads_where_the_package_is_not_installed(consumer, head):
    facts = consumer.facts[head]
    assert consumer.facts["package"] is None
    assert facts["class"] == f"Pruned{head}"
    assert facts["module"].startswith("transformers_modules.")
    assert (facts["loaded"]["names"], facts["loaded"]["weights"]) == ([], [])
    assert facts["loaded"]["outputs"] <= 1e-6


def test_asks_for_trust_where_the_package_is_not_installed(consumer, head):
    assert "trust_remote_code=True" in consumer.facts[head]["untrusted"]


def test_saved_again_without_the_package_is_as_good_as_new(
    consumer, make_batch, outputs, assert_same, assert_same_weights, head
):
    facts = consumer.facts[head]["saved_again"]
    assert (facts["names"], facts["weights"]) == ([], [])
    assert facts["outputs"] <= 1e-6
    first, again = consumer.place / head, consumer.place / f"{head}-again"
    auto_maps = [json.loads((folder / "config.json").read_text())["auto_map"] for folder in (first, again)]
    assert auto_maps[1] == auto_maps[0]
    assert sorted(path.name for path in again.glob("*.py")) == PY_FILES
    here = getattr(transformers, auto_class(head))
    assert_same_weights(here.from_pretrained(again), here.from_pretrained(first))
    assert_same(outputs(here.from_pretrained(again), make_batch(head)), consumer.expected[head]["outputs"], atol=1e-6)


def test_base_model_is_found_in_a_folder_with_a_task_head(consumer):
    assert consumer.facts["base"]["class"] == "PrunedBertModel"
    assert consumer.facts["base"]["difference"] <= 1e-6


def test_eight_bit_loads_where_the_package_is_not_installed(consumer):
    facts = consumer.facts[QUANTIZED]
    assert facts["class"] == "PrunedBertForSequenceClassification"
    assert facts["loaded"]["outputs"] <= 1e-6


@pytest.mark.parametrize("name", PY_FILES)
def test_code_in_the_folder_is_the_code_of_the_package(consumer, name):
    source = Path(sys.modules["hf_efficient.models"].__file__).parent / name
    assert (consumer.place / "BertModel" / name).read_bytes() == source.read_bytes()
