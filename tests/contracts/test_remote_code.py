"""What every family must do in a process without the package: code next to the weights loads the same model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from heads import CLASSIFIERS, HEADS, PRUNED_CLASSES

from hf_efficient import QuantizationConfig, quantize
from hf_efficient.pruning.selection import remove_units

GENERATION = ("T5ForConditionalGeneration", "MarianMTModel")
LOADED_HEADS = [*CLASSIFIERS, *(head for head in HEADS if head.startswith("Bert") and head not in CLASSIFIERS)]
LOADED_HEADS += GENERATION
# By folder, with the scheme.
QUANTIZED = {
    "BertForSequenceClassification-static": "int8_static",
    "T5ForConditionalGeneration-static": "int8_static",
    "DistilBertForSequenceClassification-dynamic": "int8_dynamic",
    "RobertaForSequenceClassification-weights": "int8_weight_only",
}
CODEBOOKS = [f"{head}-codebook" for head in ("BertForSequenceClassification", "T5ForSequenceClassification")]
# All families, and all folders that are saved again where the package is not installed.
SAVED_AGAIN = [*CLASSIFIERS, *GENERATION, *CODEBOOKS, *QUANTIZED]
INT8_CODE = {"config_checks.py", "in_place_gelu.py", "int8.py", "int8_kernels.py"}
# Runs where `hf_efficient` cannot be imported. `expected.pt` holds for each folder the Auto class, whether to save
# again, inputs, outputs, weights and generated tokens.
CONSUMER = """
import copy, json, sys
sys.modules["hf_efficient"] = None  # importing it raises ImportError
import torch, transformers
from pathlib import Path

torch.set_num_threads(1)

def outputs_of(model, batch):
    with torch.no_grad():
        outputs = copy.deepcopy(model)(**batch)  # a copy: weights in a mapped file may have another alignment
    return {name: value for name, value in outputs.items() if torch.is_tensor(value)}

def differences(model, expected):
    outputs, state, weights = outputs_of(model, expected["batch"]), model.state_dict(), expected["weights"]
    return {
        "outputs": max(float((outputs[name] - value).abs().max()) for name, value in expected["outputs"].items()),
        "names": sorted(set(state) ^ set(weights)) + sorted(set(outputs) ^ set(expected["outputs"])),
        "weights": [name for name in weights if not torch.equal(state[name], weights[name])],
    }

facts = {}
for folder, expected in torch.load("expected.pt").items():
    auto_class = getattr(transformers, expected["auto_class"])
    try:
        auto_class.from_pretrained(folder, trust_remote_code=False)
        untrusted = "loaded"
    except ValueError as error:
        untrusted = str(error)
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    facts[folder] = {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "untrusted": untrusted,
        "loaded": differences(model, expected),
    }
    if "generated" in expected:
        tokens = model.generate(**expected["source"], max_new_tokens=8, min_new_tokens=8)
        facts[folder]["generates_the_same"] = torch.equal(tokens, expected["generated"])
    if expected["is_saved_again"]:
        base = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
        base_state, state = base.state_dict(), model.base_model.state_dict()
        state.pop("lm_head.weight", None)  # a T5 that generates is its own base model
        facts[folder]["base"] = type(base).__name__
        facts[folder]["base_weights"] = [name for name in state if not torch.equal(state[name], base_state[name])]
        model.save_pretrained(folder + "-again")
        again = auto_class.from_pretrained(folder + "-again", trust_remote_code=True)
        facts[folder]["saved_again"] = differences(again, expected)
facts["package"] = sys.modules["hf_efficient"]
Path("facts.json").write_text(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def consumer(tmp_path_factory, make_model, make_batch, outputs, select):
    """Load saved models in a process without the package; return the folders and what that process reports."""
    root = tmp_path_factory.mktemp("consumer")
    students = {head: remove_units(make_model(head), select("all of these", head)) for head in LOADED_HEADS}
    for folder, scheme in QUANTIZED.items():
        head = folder.partition("-")[0]
        calibration = [make_batch(head, seed=1)] if scheme == "int8_static" else None
        students[folder] = quantize(students[head], QuantizationConfig(scheme), calibration)
    for folder in CODEBOOKS:
        students[folder] = quantize(students[folder.partition("-")[0]], QuantizationConfig("codebook"))
    expected = {}
    for folder, student in students.items():
        head = folder.partition("-")[0]
        student.save_pretrained(root / folder)
        batch = make_batch(head)
        expected[folder] = {
            "auto_class": PRUNED_CLASSES[head]._auto_class,
            "is_saved_again": folder in SAVED_AGAIN,
            "batch": batch,
            "outputs": outputs(student, batch),
            "weights": student.state_dict(),
        }
    for head in GENERATION:
        source = {name: make_batch(head)[name] for name in ("input_ids", "attention_mask")}
        generated = students[head].generate(**source, max_new_tokens=8, min_new_tokens=8)
        expected[head] |= {"source": source, "generated": generated}
    torch.save(expected, root / "expected.pt")
    environment = {**os.environ, "HF_HOME": str(root / "home"), "HF_MODULES_CACHE": str(root / "home" / "modules")}
    process = subprocess.run(
        [sys.executable, "-I", "-c", CONSUMER], cwd=root, env=environment, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0, process.stderr
    return SimpleNamespace(root=root, expected=expected, facts=json.loads((root / "facts.json").read_text()))


def code_in(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.py")}


def assert_equal(differences):
    """Fail unless the weights are bit-identical; outputs may differ by rounding, since alignments differ."""
    assert (differences["names"], differences["weights"]) == ([], [])
    assert differences["outputs"] <= 1e-6


@pytest.mark.parametrize("head", LOADED_HEADS)
def test_config_names_the_code_of_every_auto_class(consumer, head):
    auto_map = json.loads((consumer.root / head / "config.json").read_text())["auto_map"]
    classes = HEADS[head][0].pruned_classes.values()
    module = PRUNED_CLASSES[head].__module__.rpartition(".")[2]
    assert auto_map.keys() == {"AutoConfig", *(cls._auto_class for cls in classes)}
    assert len(auto_map) == 1 + len(classes)
    assert auto_map[PRUNED_CLASSES[head]._auto_class] == f"{module}.Pruned{head}"


@pytest.mark.parametrize("head", CLASSIFIERS)
def test_code_in_the_folder_is_the_code_of_the_package(consumer, head):
    code = code_in(consumer.root / head)
    source = Path(sys.modules["hf_efficient.models"].__file__).parent
    shared = {"T5": {"t5_attention.py", "t5_family.py"}, "Bart": {"bart_family.py"}}
    family = next((files for name, files in shared.items() if head.removeprefix("M").startswith(name)), {"encoder.py"})
    module = f"{PRUNED_CLASSES[head].__module__.rpartition('.')[2]}.py"
    assert code.keys() == {module, *family, "blocks.py", "codebook.py", "family.py", "structure.py"} | INT8_CODE
    assert code == {name: (source / name).read_bytes() for name in code}


@pytest.mark.parametrize("head", LOADED_HEADS)
def test_model_loads_without_the_package(consumer, head):
    facts = consumer.facts[head]
    assert consumer.facts["package"] is None
    assert facts["class"] == f"Pruned{head}"
    assert facts["module"].startswith("transformers_modules.")
    assert_equal(facts["loaded"])


@pytest.mark.parametrize("head", LOADED_HEADS)
def test_loading_without_the_package_requires_trust(consumer, head):
    assert "trust_remote_code=True" in consumer.facts[head]["untrusted"]


@pytest.mark.parametrize("head", [*CLASSIFIERS, *GENERATION])
def test_model_saved_without_the_package_is_the_same(
    consumer, make_batch, outputs, assert_same, assert_same_weights, head
):
    assert_equal(consumer.facts[head]["saved_again"])
    first, again = consumer.root / head, consumer.root / f"{head}-again"
    auto_maps = [json.loads((folder / "config.json").read_text())["auto_map"] for folder in (first, again)]
    assert auto_maps[1] == auto_maps[0]
    assert code_in(again) == code_in(first)
    auto_class = getattr(transformers, PRUNED_CLASSES[head]._auto_class)
    reloaded = auto_class.from_pretrained(again)
    assert_same_weights(reloaded, auto_class.from_pretrained(first))
    assert_same(outputs(reloaded, make_batch(head)), consumer.expected[head]["outputs"], atol=1e-6)


@pytest.mark.parametrize("head", [*CLASSIFIERS, *GENERATION])
def test_base_model_loads_from_a_folder_with_a_task_head(consumer, head):
    facts = consumer.facts[head]
    assert facts["base"] == f"Pruned{next(iter(HEADS[head][0].pruned_classes)).__name__}"
    assert facts["base_weights"] == []


@pytest.mark.parametrize("head", GENERATION)
def test_generates_the_same_without_the_package(consumer, head):
    assert consumer.facts[head]["generates_the_same"]


@pytest.mark.parametrize("folder", QUANTIZED)
def test_int8_models_load_without_the_package(consumer, folder):
    facts = consumer.facts[folder]
    assert facts["class"] == f"Pruned{folder.partition('-')[0]}"
    assert code_in(consumer.root / folder).keys() >= INT8_CODE
    assert_equal(facts["loaded"])
    assert_equal(facts["saved_again"])


@pytest.mark.parametrize("folder", CODEBOOKS)
def test_codebooks_load_without_the_package(consumer, folder):
    facts = consumer.facts[folder]
    assert facts["class"] == f"Pruned{folder.partition('-')[0]}"
    assert "codebook.py" in code_in(consumer.root / folder)
    assert_equal(facts["loaded"])
    assert_equal(facts["saved_again"])
