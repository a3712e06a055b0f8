import pytest
import torch

from hf_efficient.models import Structure, family_of
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.selection import Selection, remove_units

# In the shape "uneven widths", whose heads are (1, 3), (0,), (0, 1, 2, 3) and neurons 22, 5, 64.
SECOND = Selection(
    layers=("encoder.0", "encoder.2"),
    units={
        "encoder.0.attention": (1,),
        "encoder.0.feed_forward": (0, 21),
        "encoder.1.attention": (),
        "encoder.1.feed_forward": (),
        "encoder.2.attention": (0, 2),
        "encoder.2.feed_forward": tuple(range(10, 20)),
    },
)


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BertForMaskedLM"])
def test_pruning_twice_equals_gating_twice(make_model, make_batch, outputs, assert_same, select, gates_of, head):
    model, batch = make_model(head), make_batch(head)
    once = remove_units(model, select("uneven widths"))
    with apply_gates(once, *gates_of(once, SECOND)):
        expected = outputs(once, batch)
    twice = remove_units(once, SECOND)
    assert_same(outputs(twice, batch), expected, atol=1e-5)

    combined = Selection(
        SECOND.layers,
        {
            name: tuple(select("uneven widths").units[name][position] for position in keep)
            for name, keep in SECOND.units.items()
        },
    )
    with apply_gates(model, *gates_of(model, combined)):
        assert_same(outputs(twice, batch), outputs(model, batch), atol=1e-5)


def test_structure_refers_to_the_unpruned_network_after_every_pruning(make_model, select):
    twice = remove_units(remove_units(make_model(), select("uneven widths")), SECOND)
    assert twice.config.structure == {
        "encoder": [
            {"source": 0, "heads": {"attention": [3]}, "neurons": {"feed_forward": 2}},
            {"source": 2, "heads": {"attention": [0, 2]}, "neurons": {"feed_forward": 10}},
        ]
    }
    assert family_of(twice).structure(twice.config) == Structure.from_dict(twice.config.structure)


def test_pruning_does_not_change_the_model_itself(make_model, make_batch, outputs, assert_same, select):
    model, batch = make_model(), make_batch()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before, config = outputs(model, batch), model.config.to_dict()
    student = remove_units(model, select("all of these"))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.state_dict().keys() == weights.keys()
    assert model.config.to_dict() == config
    assert_same(outputs(model, batch), before, atol=0)


def test_removed_units_have_no_parameters(make_model, select):
    student = remove_units(make_model(), select("uneven widths"))
    removed_heads, removed_neurons = 2 + 3, (64 - 22) + (64 - 5)
    weights_of_a_head, weights_of_a_neuron = 8 * (3 * (32 + 1) + 32), (32 + 1) + 32
    before = sum(parameter.numel() for parameter in make_model().parameters())
    after = sum(parameter.numel() for parameter in student.parameters())
    assert before - after == removed_heads * weights_of_a_head + removed_neurons * weights_of_a_neuron


@pytest.mark.parametrize("training", [True, False])
def test_mode_dtype_and_attention_implementation_are_kept(make_model, select, training):
    model = make_model(attn_implementation="eager").double().train(training)
    student = remove_units(model, select("uneven widths"))
    assert student.training is training
    assert student.dtype == torch.float64
    assert student.config._attn_implementation == "eager"


def test_tied_weights_are_kept_tied(make_model, select):
    student = remove_units(make_model("BertForMaskedLM"), select("uneven widths"))
    assert student.cls.predictions.decoder.weight is student.bert.embeddings.word_embeddings.weight


def test_pruning_draws_no_random_number(make_model, select):
    model = make_model()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    remove_units(model, select("uneven widths"))
    assert torch.equal(torch.rand(3), expected)


def test_pruned_model_can_be_trained(make_model, make_batch, select):
    student = remove_units(make_model(), select("all of these"))
    student(**make_batch(labelled=True)).loss.backward()
    assert not [name for name, parameter in student.named_parameters() if parameter.grad is None]


def test_stock_shape_has_the_stock_class(make_model, select):
    student = remove_units(make_model(), select("a stock shape"))
    assert type(student) is type(make_model())
    assert (student.config.num_hidden_layers, student.config.intermediate_size) == (2, 32)
    assert student.config.model_type == "bert"
