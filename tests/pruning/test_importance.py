import re

import pytest
import torch

from hf_efficient import CRITERIA
from hf_efficient.models import family_of
from hf_efficient.pruning.gates import gated
from hf_efficient.pruning.importance import fisher, magnitude
from hf_efficient.pruning.surgery import cut


def fisher_by_hand(model, batch):
    """Scores one example at a time, without gates: a gate's gradient is what is read times its gradient, summed."""
    blocks, layers = family_of(model).blocks(model), family_of(model).layers(model)
    units = {name: torch.zeros(block.units) for name, block in blocks.items()}
    added = dict.fromkeys(layers, 0.0)
    read, passed = {}, {}

    def remember(name):
        def hook(module, args):
            args[0].retain_grad()
            read[name] = args[0]

        return hook

    def remember_layer(name):
        def hook(module, args, output):
            output.retain_grad()
            passed[name] = args[0], output

        return hook

    handles = [block.output.register_forward_pre_hook(remember(name)) for name, block in blocks.items()]
    handles += [layer.register_forward_hook(remember_layer(name)) for name, layer in layers.items()]
    for example in singles(batch):
        length = int(example["attention_mask"].sum())
        model(
            **{name: value[:, :length] if value.dim() == 2 else value for name, value in example.items()}
        ).loss.backward()
        for name, block in blocks.items():
            products = (read[name] * read[name].grad).detach().reshape(-1, block.units, block.unit_size)
            units[name] += products.sum((0, 2)).square()
        for name, (before, after) in passed.items():
            added[name] += float((after.grad * (after - before)).detach().sum() ** 2)
    for handle in handles:
        handle.remove()
    examples = batch["input_ids"].shape[0]
    return (
        {name: value / (2 * examples) for name, value in units.items()},
        {name: value / (2 * examples) for name, value in added.items()},
    )


def singles(batch):
    return [{name: value[i : i + 1] for name, value in batch.items()} for i in range(batch["input_ids"].shape[0])]


def longer(batch, by=5):
    return {
        name: torch.cat([value, value.new_zeros(value.shape[0], by)], dim=1) if value.dim() == 2 else value
        for name, value in batch.items()
    }


def assert_same_scores(found, expected, rtol=1e-4):
    assert found.units.keys() == expected.units.keys()
    for name, scores in expected.units.items():
        torch.testing.assert_close(found.units[name], scores, rtol=rtol, atol=1e-8)
    assert found.layers == pytest.approx(expected.layers, rel=rtol)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_fisher_is_half_the_mean_squared_gradient_of_every_example(make_model, make_batch, attention):
    model, batch = make_model(attn_implementation=attention), make_batch(labelled=True)
    scores = fisher(model, [batch])
    units, layers = fisher_by_hand(model, batch)
    assert scores.units.keys() == units.keys()
    for name, expected in units.items():
        torch.testing.assert_close(scores.units[name], expected, rtol=1e-4, atol=1e-8)
    assert scores.layers == pytest.approx(layers, rel=1e-4)
    assert all(float(score.min()) > 0 for score in scores.units.values())


def test_fisher_does_not_see_padding(make_model, make_batch):
    model, batch = make_model(), make_batch(labelled=True)
    assert_same_scores(fisher(model, [longer(batch)]), fisher(model, [batch]))


@pytest.mark.parametrize(
    "head", ["BertForSequenceClassification", "BertForQuestionAnswering", "BertForMultipleChoice"]
)
def test_fisher_does_not_depend_on_the_batch_size(make_model, make_batch, head):
    model, batch = make_model(head), make_batch(head, labelled=True)
    assert_same_scores(fisher(model, singles(batch)), fisher(model, [batch]))


def test_fisher_of_the_data_twice_is_the_same(make_model, make_batch):
    model, batch = make_model(), make_batch(labelled=True)
    assert_same_scores(fisher(model, [batch, batch]), fisher(model, [batch]))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("block", "unit"), [("encoder.1.attention", 2), ("encoder.2.feed_forward", 17)])
def test_unit_that_nothing_is_read_from_scores_lowest(make_model, make_batch, criterion, block, unit):
    model = make_model()
    view = family_of(model).blocks(model)[block]
    with torch.no_grad():
        view.output.weight[:, view.rows([unit])] = 0
        if criterion == "magnitude":
            for linear in view.input_linears:
                linear.weight[view.rows([unit])] = 0
    scores = CRITERIA[criterion](model, [make_batch(labelled=True)])
    assert float(scores.units[block][unit]) == 0
    assert [(name, int(s.argmin())) for name, s in scores.units.items() if float(s.min()) == 0] == [(block, unit)]


def test_layer_that_adds_nothing_scores_lowest(make_model, make_batch):
    model = make_model()
    layer = model.bert.encoder.layer[1]
    handle = layer.register_forward_hook(lambda module, args, output: args[0] + 0 * output)
    scores = fisher(model, [make_batch(labelled=True)])
    handle.remove()
    assert scores.layers["encoder.1"] == 0
    assert min(scores.layers["encoder.0"], scores.layers["encoder.2"]) > 0


def test_every_head_can_be_scored(make_model, make_batch, head):
    def answer(model, batch):
        return model(**batch).last_hidden_state.square().sum()

    model, batch = make_model(head), make_batch(head, labelled=head != "BertModel")
    scores = fisher(model, [batch], answer) if head == "BertModel" else fisher(model, [batch])
    assert {name: len(score) for name, score in scores.units.items()} == {
        f"encoder.{layer}.{block}": units
        for layer in range(3)
        for block, units in (("attention", 4), ("feed_forward", 64))
    }
    assert min(scores.layers.values()) > 0


def test_pruned_model_can_be_scored_again(make_model, make_batch, select):
    model, batch = cut(make_model(), select("all of these")), make_batch(labelled=True)
    for criterion in CRITERIA.values():
        scores = criterion(model, [batch])
        assert [len(score) for score in scores.units.values()] == [0, 0, 1, 2]
        assert list(scores.layers) == ["encoder.0", "encoder.1"]
    gates = torch.ones(3, 2, requires_grad=True)
    with gated(model, {"encoder.1.feed_forward": gates}):
        gradient = torch.autograd.grad(3 * model(**batch).loss, gates)[0]
    found = fisher(model, [batch]).units["encoder.1.feed_forward"]
    torch.testing.assert_close(found, gradient.square().mean(0) / 2, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("training", [True, False])
def test_fisher_leaves_no_trace(make_model, make_batch, training):
    model = make_model().train(training)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first = fisher(model, [make_batch(labelled=True)])
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert_same_scores(fisher(model, [make_batch(labelled=True)]), first, rtol=1e-6)


def test_frozen_model_scores_the_same(make_model, make_batch):
    batch = make_batch(labelled=True)
    assert_same_scores(fisher(make_model().requires_grad_(False), [batch]), fisher(make_model(), [batch]))


def test_another_loss_can_be_given(make_model, make_batch):
    model, batch = make_model(), make_batch(labelled=True)
    single = fisher(model, [batch])
    double = fisher(model, [batch], loss=lambda model, batch: 2 * 3 * model(**batch).loss)
    for name, scores in single.units.items():
        torch.testing.assert_close(double.units[name], 4 * scores)


def test_empty_dataloader_is_refused(make_model):
    with pytest.raises(ValueError, match="the dataloader is empty: scoring needs at least one batch"):
        fisher(make_model(), [])


def test_batches_without_labels_are_refused(make_model, make_batch):
    message = "the batches have no labels, only input_ids, attention_mask, token_type_ids: pruning by gradients needs"
    with pytest.raises(ValueError, match=re.escape(message)):
        fisher(make_model(), [make_batch()])


@torch.no_grad()
def test_magnitude_is_the_squared_norm_of_what_a_unit_owns(make_model):
    model = make_model()
    scores = magnitude(model)
    layer = model.bert.encoder.layer[2]
    rows = slice(8, 16)
    attention = layer.attention.self
    expected = sum(
        float(linear.weight[rows].norm() ** 2) for linear in (attention.query, attention.key, attention.value)
    )
    expected += float(layer.attention.output.dense.weight[:, rows].norm() ** 2)
    assert float(scores.units["encoder.2.attention"][1]) == pytest.approx(expected, rel=1e-5)
    neuron = float(layer.intermediate.dense.weight[5].norm() ** 2 + layer.output.dense.weight[:, 5].norm() ** 2)
    assert float(scores.units["encoder.2.feed_forward"][5]) == pytest.approx(neuron, rel=1e-5)
    whole = sum(float(scores.units[f"encoder.2.{block}"].sum()) for block in ("attention", "feed_forward"))
    assert scores.layers["encoder.2"] == pytest.approx(whole, rel=1e-6)
