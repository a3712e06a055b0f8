"""What every class of every family owes: cut it computes what gates computed, it trains, it reloads, it shrinks on."""

import json

import pytest
import torch
import transformers

from hf_efficient import FAMILIES
from hf_efficient.models import family_of
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.selection import Selection, remove_units

PRUNED = {cls.__name__: pruned for family in FAMILIES.values() for cls, pruned in family.pruned_classes.items()}
CLASSIFIERS = [head for head in PRUNED if head.endswith("ForSequenceClassification")]
AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
)


def halved(selection):
    """Returns a selection in the network that `selection` leaves: half of every block, and its second layer gone."""
    left = {stack: [n for n in selection.layers if n.startswith(stack)] for stack in ("encoder", "decoder")}
    units, layers = {}, []
    for stack, names in left.items():
        for index, old in enumerate(names):
            layers += [] if index == 1 else [f"{stack}.{index}"]
            for name, keep in selection.units.items():
                if name.rpartition(".")[0] == old:
                    units[f"{stack}.{index}.{name.rpartition('.')[2]}"] = tuple(range(len(keep) // 2, len(keep)))
    return Selection(tuple(layers), units)


def sum_of_outputs(outputs):
    return sum(value.square().sum() for value in outputs.values() if torch.is_tensor(value))


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("auto", AUTO_CLASSES)
def test_family_has_every_head_that_the_architecture_has(model_type, auto):
    family = FAMILIES[model_type]
    assert (
        family.pruned_config_class.model_type == f"pruned_{model_type}" == f"pruned_{family.config_class.model_type}"
    )
    mapping = getattr(transformers, auto)._model_mapping
    if family.config_class in mapping:
        pruned = family.pruned_classes[mapping[family.config_class]]
        assert pruned._auto_class == auto
        assert mapping[family.pruned_config_class] is pruned


def test_cut_equals_gated(make_model, make_batch, outputs, assert_same, select, gates_of, any_head, shape):
    model, batch, selection = make_model(any_head).double(), make_batch(any_head), select(shape, any_head)
    with apply_gates(model, *gates_of(model, selection)):
        expected = outputs(model, batch)
    assert_same(outputs(remove_units(model, selection), batch), expected, atol=1e-9)


def test_cut_equals_gated_with_eager_attention(
    make_model, make_batch, outputs, assert_same, select, gates_of, any_head
):
    model, batch = make_model(any_head, attn_implementation="eager").double(), make_batch(any_head)
    selection = select("all of these", any_head)
    with apply_gates(model, *gates_of(model, selection)):
        expected = outputs(model, batch)
    assert_same(outputs(remove_units(model, selection), batch), expected, atol=1e-9)


def test_cut_twice_equals_gated_twice(make_model, make_batch, outputs, assert_same, select, gates_of, any_head):
    batch, first = make_batch(any_head), select("uneven widths", any_head)
    once, second = remove_units(make_model(any_head).double(), first), halved(first)
    with apply_gates(once, *gates_of(once, second)):
        expected = outputs(once, batch)
    twice = remove_units(once, second)
    assert_same(outputs(twice, batch), expected, atol=1e-9)
    for layers in family_of(twice).structure(twice.config).stacks.values():
        assert [layer.source for layer in layers] == [0, 2]


@pytest.mark.parametrize("shape", ["uneven widths", "all of these"])
def test_reloads_to_the_same_bits(
    make_model, make_batch, outputs, assert_same, assert_same_weights, select, any_head, shape, tmp_path
):
    student, batch = remove_units(make_model(any_head), select(shape, any_head)), make_batch(any_head)
    student.save_pretrained(tmp_path)
    pruned = PRUNED[any_head]
    loaded = getattr(transformers, pruned._auto_class).from_pretrained(tmp_path)
    assert type(loaded) is type(student) is pruned
    assert loaded.config.structure == student.config.structure
    assert_same_weights(loaded, student)
    assert_same(outputs(loaded, batch), outputs(student, batch), atol=0)


@pytest.mark.parametrize("head", CLASSIFIERS)
def test_every_shape_reloads_to_the_same_weights(
    make_model, assert_same_weights, select, head, uneven_shape, tmp_path
):
    student = remove_units(make_model(head), select(uneven_shape, head))
    student.save_pretrained(tmp_path)
    loaded = PRUNED[head].from_pretrained(tmp_path)
    assert loaded.config.structure == student.config.structure
    assert_same_weights(loaded, student)


@pytest.mark.parametrize("head", CLASSIFIERS)
def test_pruned_and_saved_again_reloads(make_model, make_batch, outputs, assert_same, select, head, tmp_path):
    first = select("uneven widths", head)
    remove_units(make_model(head), first).save_pretrained(tmp_path / "once")
    once = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "once")
    twice = remove_units(once, halved(first))
    twice.save_pretrained(tmp_path / "twice")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "twice")
    assert loaded.config.structure == twice.config.structure
    assert_same(outputs(loaded, make_batch(head)), outputs(twice, make_batch(head)), atol=0)


def test_stock_shape_reloads_without_code(
    make_model, make_batch, outputs, assert_same, assert_same_weights, select, any_head, tmp_path
):
    model, batch = make_model(any_head), make_batch(any_head)
    student = remove_units(model, select("a stock shape", any_head))
    assert type(student) is type(model)
    student.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    written = json.loads((tmp_path / "config.json").read_text())
    assert not {"auto_map", "structure"} & written.keys()
    assert (written["model_type"], written["architectures"]) == (model.config.model_type, [any_head])
    loaded = getattr(transformers, any_head).from_pretrained(tmp_path)
    assert_same_weights(loaded, student)
    assert_same(outputs(loaded, batch), outputs(student, batch), atol=0)


def test_cut_model_trains(make_model, make_batch, select, any_head):
    student = remove_units(make_model(any_head), select("all of these", any_head))
    has_loss = "For" in any_head
    batch = make_batch(any_head, labelled=has_loss)

    def loss():
        answer = student(**batch)
        return answer.loss if has_loss else sum_of_outputs(answer)

    first = loss()
    first.backward()
    before = first.item()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    squares = sum(float(gradient.square().sum()) for gradient in gradients.values())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter -= 1e-3 * before / squares * parameter.grad
    assert loss().item() / before == pytest.approx(0.999, abs=5e-4)
