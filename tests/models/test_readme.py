"""The page on families: its example is a family that works, its table is what FAMILIES says."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY

import hf_efficient.models
from hf_efficient import FAMILIES
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.selection import Selection, remove_units

PAGE = (Path(hf_efficient.models.__file__).parent / "README.md").read_text(encoding="utf-8")
MODULE = "hf_efficient.models.pruned_data2vec_text"


@pytest.fixture
def family(monkeypatch):
    """Return the family of the example, as an entry of FAMILIES."""
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(MODULE, loader=None))
    monkeypatch.setitem(sys.modules, MODULE, module)
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], module.__dict__)
    monkeypatch.setitem(FAMILIES, "data2vec-text", module.DATA2VEC_TEXT)
    return module.DATA2VEC_TEXT


def test_example_is_a_family_whose_models_are_pruned(family):
    stock = next(cls for cls in family.pruned_classes if "Classification" in cls.__name__)
    torch.manual_seed(0)
    model = stock(family.config_class(**{**TINY, "pad_token_id": 1})).double().eval()
    units = {name: tuple(range(0, block.units, 3)) for name, block in family.blocks(model).items()}
    gates = {name: torch.zeros(block.units) for name, block in family.blocks(model).items()}
    for name, kept in units.items():
        gates[name][list(kept)] = 1
    batch = {"input_ids": torch.randint(2, 100, (2, 7))}
    student = remove_units(model, Selection(tuple(family.layers(model)), units))
    with torch.no_grad(), apply_gates(model, gates):
        expected = model(**batch).logits
    assert type(student).__name__ == "PrunedData2VecTextForSequenceClassification"
    torch.testing.assert_close(student(**batch).logits, expected, atol=1e-12, rtol=1e-9)


def test_table_has_what_families_say():
    rows = []
    for model_type, each in FAMILIES.items():
        attention = "yes" if each.attention_scores_differ is None else f"refused: {each.attention_scores_differ}"
        rows.append(f"| {model_type} | yes | yes | {attention} | yes | yes |")
    assert "| --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n" in PAGE


def test_description_is_under_one_screen():
    assert len(PAGE.partition("# What works")[0].splitlines()) <= 48
