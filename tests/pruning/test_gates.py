import torch

from hf_efficient.models import family_of
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.selection import remove_units


def ones(model, *batch):
    family = family_of(model)
    units = {name: torch.ones(*batch, block.units) for name, block in family.blocks(model).items()}
    return units, {name: torch.ones(batch) for name in family.layers(model)}


def test_gates_of_one_change_nothing(make_model, make_batch, outputs, assert_same):
    model, batch = make_model("BertModel"), make_batch("BertModel")
    expected = outputs(model, batch)
    with apply_gates(model, *ones(model)):
        assert_same(outputs(model, batch), expected, atol=1e-6)


def test_gates_are_removed_after_the_context(make_model, make_batch, outputs, assert_same):
    model, batch = make_model("BertModel"), make_batch("BertModel")
    expected = outputs(model, batch)
    units, layers = ones(model)
    units["encoder.0.attention"][1], layers["encoder.2"] = 0, torch.tensor(0.0)
    with apply_gates(model, units, layers):
        gated = outputs(model, batch)
    assert (gated["last_hidden_state"] - expected["last_hidden_state"]).abs().max() > 0.1
    assert_same(outputs(model, batch), expected, atol=0)


def test_closed_layer_returns_its_input(make_model, make_batch):
    model, batch = make_model("BertModel"), make_batch("BertModel")
    with torch.no_grad(), apply_gates(model, layers={"encoder.1": torch.tensor(0.0)}):
        states = model(**batch, output_hidden_states=True).hidden_states
    assert torch.equal(states[2], states[1])


def test_half_open_layer_adds_half_of_its_output(make_model, make_batch):
    model, batch = make_model("BertModel"), make_batch("BertModel")
    with torch.no_grad():
        ungated = model(**batch, output_hidden_states=True).hidden_states
        with apply_gates(model, layers={"encoder.2": torch.tensor(0.5)}):
            half = model(**batch).last_hidden_state
    torch.testing.assert_close(half, (ungated[2] + ungated[3]) / 2)


def test_every_example_can_have_its_own_gates(make_model, make_batch, outputs):
    model, batch = make_model(), make_batch()
    units, layers = ones(model, 3)
    units["encoder.0.attention"][1, 2] = 0
    layers["encoder.1"][2] = 0
    ungated = outputs(model, batch)["logits"]
    with apply_gates(model, units, layers):
        mixed = outputs(model, batch)["logits"]
    with apply_gates(model, {"encoder.0.attention": torch.tensor([1.0, 1.0, 0.0, 1.0])}):
        without_head = outputs(model, batch)["logits"]
    with apply_gates(model, layers={"encoder.1": torch.tensor(0.0)}):
        without_layer = outputs(model, batch)["logits"]
    torch.testing.assert_close(mixed, torch.stack([ungated[0], without_head[1], without_layer[2]]))


def test_gates_of_an_example_apply_to_all_its_choices(make_model, make_batch, outputs):
    model, batch = make_model("BertForMultipleChoice"), make_batch("BertForMultipleChoice")
    units, layers = ones(model, 3)
    units["encoder.0.attention"][1, 2] = 0
    layers["encoder.1"][1] = 0
    ungated = outputs(model, batch)["logits"]
    with apply_gates(model, units, layers):
        mixed = outputs(model, batch)["logits"]
    one = {"encoder.0.attention": torch.tensor([1.0, 1.0, 0.0, 1.0])}
    with apply_gates(model, one, {"encoder.1": torch.tensor(0.0)}):
        closed = outputs(model, batch)["logits"]
    torch.testing.assert_close(mixed, torch.stack([ungated[0], closed[1], ungated[2]]))


def test_gates_of_a_block_without_units_are_ignored(make_model, make_batch, outputs, assert_same, select):
    model, batch = remove_units(make_model(), select("all of these")), make_batch()
    expected = outputs(model, batch)
    with apply_gates(model, *ones(model)):
        assert_same(outputs(model, batch), expected, atol=1e-6)
