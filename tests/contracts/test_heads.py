"""What every model class of every family must do: compute as with gates, train, reload, be pruned again."""

import json

import conftest
import pytest
import torch
import transformers
from heads import CLASSIFIERS, ONE_HEAD_PER_FAMILY, PRUNED_CLASSES, pairs_of_heads_and

from hf_efficient import FAMILIES
from hf_efficient.models import family_of
from hf_efficient.models.inputs import task_head_of
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.selection import Selection, remove_units

SHAPES = list(conftest.SHAPES)
AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
    "AutoModelForSeq2SeqLM",
)
ENCODER_DECODERS = ["T5ForConditionalGeneration", "MT5Model"]


def halve(selection):
    """Return a selection within the model that `selection` keeps: half of every block, without its second layer."""
    kept = {stack: [name for name in selection.layers if name.startswith(stack)] for stack in ("encoder", "decoder")}
    units, layers = {}, []
    for stack, names in kept.items():
        for index, old_name in enumerate(names):
            layers += [] if index == 1 else [f"{stack}.{index}"]
            for name, keep in selection.units.items():
                if name.rpartition(".")[0] == old_name:
                    units[f"{stack}.{index}.{name.rpartition('.')[2]}"] = tuple(range(len(keep) // 2, len(keep)))
    return Selection(tuple(layers), units)


def sum_of_squares(outputs):
    return sum(value.square().sum() for value in outputs.values() if torch.is_tensor(value))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_family_has_all_task_heads_of_its_architecture(model_type):
    family = FAMILIES[model_type]
    assert (
        family.pruned_config_class.model_type == f"pruned_{model_type}" == f"pruned_{family.config_class.model_type}"
    )
    for auto_class in AUTO_CLASSES:
        mapping = getattr(transformers, auto_class)._model_mapping
        # AutoModelForMaskedLM also loads a BART that generates, to fill masks.
        if family.config_class in mapping and (model_type, auto_class) != ("bart", "AutoModelForMaskedLM"):
            pruned = family.pruned_classes[mapping[family.config_class]]
            assert pruned._auto_class == auto_class
            assert mapping[family.pruned_config_class] is pruned


@pytest.mark.parametrize(("head", "shape"), pairs_of_heads_and(SHAPES))
def test_pruned_equals_gated(make_model, make_batch, outputs, assert_same, select, gates_of, head, shape):
    model, batch, selection = make_model(head).double(), make_batch(head), select(shape, head)
    with apply_gates(model, *gates_of(model, selection)):
        expected = outputs(model, batch)
    assert_same(outputs(remove_units(model, selection), batch), expected, atol=1e-9)


@pytest.mark.parametrize("head", [*ONE_HEAD_PER_FAMILY, *ENCODER_DECODERS])
def test_pruned_equals_gated_with_eager_attention(
    make_model, make_batch, outputs, assert_same, select, gates_of, head
):
    model, batch = make_model(head, attn_implementation="eager").double(), make_batch(head)
    selection = select("all of these", head)
    with apply_gates(model, *gates_of(model, selection)):
        expected = outputs(model, batch)
    assert_same(outputs(remove_units(model, selection), batch), expected, atol=1e-9)


@pytest.mark.parametrize("head", [*ONE_HEAD_PER_FAMILY, *ENCODER_DECODERS])
def test_pruned_twice_equals_gated_twice(make_model, make_batch, outputs, assert_same, select, gates_of, head):
    batch, first = make_batch(head), select("uneven widths", head)
    once, second = remove_units(make_model(head).double(), first), halve(first)
    with apply_gates(once, *gates_of(once, second)):
        expected = outputs(once, batch)
    twice = remove_units(once, second)
    assert_same(outputs(twice, batch), expected, atol=1e-9)
    for layers in family_of(twice).structure(twice.config).stacks.values():
        assert [layer.source for layer in layers] == [0, 2]


@pytest.mark.parametrize(("head", "shape"), pairs_of_heads_and(conftest.UNEVEN))
def test_reloaded_model_is_bit_identical(
    make_model, make_batch, outputs, assert_same, assert_same_weights, select, head, shape, tmp_path
):
    student, batch = remove_units(make_model(head), select(shape, head)), make_batch(head)
    student.save_pretrained(tmp_path)
    pruned_class = PRUNED_CLASSES[head]
    loaded = getattr(transformers, pruned_class._auto_class).from_pretrained(tmp_path)
    assert type(loaded) is type(student) is pruned_class
    assert loaded.config.structure == student.config.structure
    assert_same_weights(loaded, student)
    assert_same(outputs(loaded, batch), outputs(student, batch), atol=0)


@pytest.mark.parametrize("head", CLASSIFIERS)
def test_reloaded_model_can_be_pruned_and_saved_again(
    make_model, make_batch, outputs, assert_same, select, head, tmp_path
):
    first = select("uneven widths", head)
    remove_units(make_model(head), first).save_pretrained(tmp_path / "once")
    once = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "once")
    twice = remove_units(once, halve(first))
    twice.save_pretrained(tmp_path / "twice")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "twice")
    assert loaded.config.structure == twice.config.structure
    assert_same(outputs(loaded, make_batch(head)), outputs(twice, make_batch(head)), atol=0)


@pytest.mark.parametrize("head", [*ONE_HEAD_PER_FAMILY, "T5ForConditionalGeneration", "T5EncoderModel"])
def test_stock_shape_reloads_as_stock_class(
    make_model, make_batch, outputs, assert_same, assert_same_weights, select, head, tmp_path
):
    model, batch = make_model(head), make_batch(head)
    student = remove_units(model, select("a stock shape", head))
    assert type(student) is type(model)
    student.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"auto_map", "structure"} & config.keys()
    assert (config["model_type"], config["architectures"]) == (model.config.model_type, [head])
    loaded = getattr(transformers, head).from_pretrained(tmp_path)
    assert_same_weights(loaded, student)
    assert_same(outputs(loaded, batch), outputs(student, batch), atol=0)


def test_pruned_model_trains(make_model, make_batch, select, any_head):
    student = remove_units(make_model(any_head), select("all of these", any_head))
    has_loss = bool(task_head_of(any_head))
    batch = make_batch(any_head, labelled=has_loss)

    def compute_loss():
        outputs = student(**batch)
        return outputs.loss if has_loss else sum_of_squares(outputs)

    loss = compute_loss()
    loss.backward()
    before = loss.item()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    squared_norm = sum(float(gradient.square().sum()) for gradient in gradients.values())
    with torch.no_grad():
        for name, gradient in gradients.items():
            student.get_parameter(name).sub_(1e-3 * before / squared_norm * gradient)
    assert compute_loss().item() / before == pytest.approx(0.999, abs=5e-4)
