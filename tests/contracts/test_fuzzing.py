"""Random settings, structures and reports end in success or in a documented error, within a second of computing."""

import copy
import json
import string
import time
from contextlib import contextmanager
from dataclasses import fields
from types import SimpleNamespace
from typing import get_type_hints

import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertConfig

from hf_efficient import CompressionReport, DistillationConfig, PruningConfig, QuantizationConfig
from hf_efficient.data.config import DataConfig
from hf_efficient.errors import UnsupportedModelError, UserError
from hf_efficient.models import BERT, FAMILIES, family_of
from hf_efficient.models.config_checks import check_codebooks, check_int8
from hf_efficient.pruning.budget_search import required_attention_blocks, select_uniformly, select_within_budget
from hf_efficient.pruning.selection import BlockInfo, CostTable, Scores
from hf_efficient.tasks.inference import infer_task, with_label_column

CONFIGS = (PruningConfig, QuantizationConfig, DistillationConfig)
NUMBERS = st.one_of(
    st.integers(-3, 12),
    st.floats(-2, 4),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 10**30, 0.5, 0.0, -0.0]),
)
TEXTS = st.one_of(
    st.sampled_from(
        ["taylor", "fisher", "magnitude", "weights", "int8_static", "codebook", "2:4", "4:2", "a,(", "(a+)+$", ""]
    ),
    st.text(string.printable, max_size=8),
)
VALUES = st.one_of(NUMBERS, TEXTS, st.booleans(), st.none())
JSON = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


def cases(count: int) -> settings:
    """Return how many cases are tried, the same ones in each run."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


@contextmanager
def documented(*errors: type[Exception]):
    """Accept `errors`, with a message, and nothing that computes for a second."""
    start = time.process_time()
    try:
        yield
    except errors as error:
        message = str(error)
    else:
        message = "no error"
    assert message
    assert time.process_time() - start < 1


def values_of(hint: object) -> st.SearchStrategy:
    """Return values of the types that the annotation of a field names."""
    text = str(hint)
    options = [st.none()] if "None" in text else []
    options += [NUMBERS] if "float" in text else [st.integers(-3, 10**6)] if "int" in text else []
    options += [TEXTS] if "str" in text else []
    options += [st.booleans()] if "bool" in text else []
    return st.one_of(options) if options else st.none()


@pytest.mark.parametrize("config_class", CONFIGS)
@cases(300)
@given(data=st.data())
def test_settings(config_class, data):
    hints = get_type_hints(config_class)
    names = data.draw(
        st.lists(st.sampled_from([field.name for field in fields(config_class)]), max_size=4, unique=True)
    )
    with documented(UserError):
        config_class(**{name: data.draw(values_of(hints[name])) for name in names})


def damage(value: object, data: st.DataObject) -> object:
    """Return JSON values with one of them replaced or removed."""
    if isinstance(value, (dict, list)) and value and data.draw(st.integers(0, 5)):
        changed = copy.copy(value)
        key = data.draw(st.sampled_from(sorted(changed) if isinstance(changed, dict) else range(len(changed))))
        if data.draw(st.integers(0, 8)):
            changed[key] = damage(changed[key], data)
        else:
            del changed[key]
        return changed
    return data.draw(JSON)


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture(scope="module")
def pruned_config(model):
    return BERT.pruned_config(model.config, BERT.full_structure(model.config))


@cases(800)
@given(data=st.data())
def test_structures(pruned_config, data):
    config = copy.copy(pruned_config)
    config.structure = damage(pruned_config.structure, data)
    with documented(ValueError):
        structure = BERT.structure(config)
        assert all(set(layer.heads["attention"]) <= set(range(4)) for layer in structure.stacks["encoder"])
        assert all(0 <= layer.neurons["feed_forward"] <= 64 for layer in structure.stacks["encoder"])


DENSE = "encoder.layer.0.attention.output.dense"
INT8 = {
    "activations": "static",
    "linears": {
        DENSE: {"outliers": 2},
        "encoder.layer.0.attention.self.query_key_value": {"members": ["query", "key", "value"]},
    },
    "embeddings": ["embeddings.word_embeddings"],
}


@cases(300)
@given(data=st.data())
def test_settings_of_int8_modules(model, data):
    with documented(ValueError):
        check_int8(model.base_model, damage(INT8, data))


@cases(200)
@given(data=st.data())
def test_codebooks(model, data):
    with documented(ValueError):
        check_codebooks(model.base_model, damage({DENSE: {"bits": 4, "group": 8, "keep_packed": False}}, data))


REPORT = {
    "schema_version": 1,
    "task": "text-classification",
    "stages": ["pruned"],
    "models": [{"name": "teacher", "role": "teacher", "metrics": {"accuracy": 0.9}, "ratios": {}}],
    "configs": {"pruning": {"target_speedup": 2.0}},
    "training": {"seconds": 3.0},
}


@cases(500)
@given(data=st.data())
def test_reports(data):
    with documented(UserError):
        CompressionReport.from_json(json.dumps(damage(REPORT, data)))


@cases(100)
@given(text=st.text(max_size=30))
def test_reports_that_are_not_json(text):
    with documented(UserError):
        CompressionReport.from_json(text)


AMOUNTS = st.one_of(st.integers(0, 5).map(float), st.sampled_from([0.0, 1e-30, 1e30]))


def networks(data: st.DataObject) -> tuple[list[BlockInfo], Scores, CostTable]:
    """Return a small network with drawn widths, scores and costs."""
    blocks = []
    for index in range(data.draw(st.integers(1, 3))):
        for kind, name in (("heads", "attention"), ("neurons", "feed_forward")):
            units, step = data.draw(st.integers(0, 4)), 1 if kind == "heads" else data.draw(st.integers(1, 5))
            layer, least = f"encoder.{index}", data.draw(st.integers(0, units))
            blocks.append(BlockInfo(f"{layer}.{name}", layer, kind, units, step, name, least))
    layers = sorted({block.layer for block in blocks})
    score = st.one_of(st.floats(-2, 4), st.sampled_from([1e30, -1e30, 0.0]))
    scores = {block.name: data.draw(st.lists(score, min_size=block.units, max_size=block.units)) for block in blocks}
    costs = {
        block.name: sorted([0.0, *data.draw(st.lists(AMOUNTS, min_size=block.units, max_size=block.units))])
        for block in blocks
    }
    table = CostTable(
        data.draw(AMOUNTS),
        {layer: data.draw(AMOUNTS) for layer in layers},
        {block.name: list(range(block.units + 1)) for block in blocks},
        costs,
    )
    removable = data.draw(st.lists(st.sampled_from(layers), unique=True))
    tensors = {name: torch.tensor(values) for name, values in scores.items()}
    return blocks, Scores(tensors, {layer: data.draw(score) for layer in removable}), table


@pytest.mark.parametrize("select", [select_within_budget, select_uniformly])
@cases(150)
@given(data=st.data())
def test_selections_within_a_budget(select, data):
    blocks, scores, table = networks(data)
    budget = data.draw(st.one_of(NUMBERS, st.floats(0, 40)))
    with documented(UserError):
        selection = select(blocks, scores, table, float(budget))
        assert table.total(selection) <= budget * (1 + 1e-6)
        kept = {name for name, units in selection.units.items() if units}
        required = required_attention_blocks(blocks)
        assert kept & required or not required
        assert all(len(selection.units[block.name]) in (0, *block.widths) for block in blocks)


NAMES = st.one_of(
    st.sampled_from(
        ["text", "sentence", "sentence1", "sentence2", "label", "labels", "tokens", "ner_tags", "answers"]
    ),
    st.sampled_from(["question", "context", "premise", "hypothesis", "translation", "summary", "ending0", "ending1"]),
    st.text(string.printable, min_size=1, max_size=6),
)
CELLS = st.one_of(st.integers(-2, 3), st.floats(-2, 4), st.text(max_size=4), st.booleans(), st.none())
CELLS = st.one_of(
    CELLS,
    st.sampled_from([float("nan"), 10**12, {"de": "a", "en": "b"}, {"text": ["a"], "answer_start": [0]}]),
    st.lists(st.integers(0, 2), max_size=3),
    st.lists(st.sampled_from(["a", "b"]), max_size=3),
)
HEADS = st.one_of(
    st.sampled_from(
        ["SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice", "MaskedLM"]
    ),
    st.sampled_from(["ConditionalGeneration", "Model", "CausalLM", ""]),
    st.text(string.printable, max_size=6),
)


@cases(200)
@given(data=st.data())
def test_choice_of_task_columns_and_classes(data):
    columns = data.draw(st.dictionaries(NAMES, CELLS, min_size=1, max_size=4))
    count = data.draw(st.integers(1, 3))
    rows = Dataset.from_dict({name: [value] * count for name, value in columns.items()})
    splits = DatasetDict({"train": rows, "evaluation": rows})
    config = BertConfig(architectures=[f"Bert{data.draw(HEADS)}"], num_labels=data.draw(st.integers(1, 4)))
    named = data.draw(st.sampled_from([{}, {}, {"text_column": "text"}, {"label_column": data.draw(NAMES)}]))
    with documented(UserError):
        splits, settings_of_data = with_label_column(splits, DataConfig(**named))
        task = infer_task(config, splits, settings_of_data)
        found = task.get_columns(splits, settings_of_data)
        assert set(found.texts) <= set(rows.column_names)
        task.find_classes(splits, found)


@cases(100)
@given(model_type=st.one_of(st.sampled_from([*FAMILIES, "gpt2", "llama"]), st.text(max_size=8)), name=HEADS)
def test_choice_of_family(model_type, name):
    config = BertConfig(architectures=[name])
    config.model_type = model_type
    model = SimpleNamespace(config=config)
    with documented(UnsupportedModelError):
        assert family_of(model).model_type == model_type
