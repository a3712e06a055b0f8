import copy
import re

import pytest
import torch
from transformers import set_seed

from hf_efficient.models import family_of
from hf_efficient.pruning.criteria import CRITERIA
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.losses import example_loss
from hf_efficient.pruning.selection import Scores, remove_units
from hf_efficient.pruning.unit_criteria import (
    MOVEMENT_LEARNING_RATE,
    fisher,
    magnitude,
    magnitude_l1,
    movement,
    random,
    snip,
    taylor,
)

BY_GATES = {"fisher": fisher, "taylor": taylor, "snip": snip}
BY_LABELS = [*BY_GATES, "movement"]
BY_DATA = [*BY_LABELS, "activation", "wanda"]
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def gradients_by_hand(model, batch):
    """Returns each example's gate gradients, found without gates: what is read times its gradient, summed.

    One example at a time, without its padding: (examples, units) a block and (examples,) a layer.
    """
    blocks, layers = family_of(model).blocks(model), family_of(model).layers(model)
    units, added = {name: [] for name in blocks}, {name: [] for name in layers}
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
    for example in unpadded(batch):
        model(**example).loss.backward()
        for name, block in blocks.items():
            products = (read[name] * read[name].grad).detach().reshape(-1, block.units, block.unit_size)
            units[name].append(products.sum((0, 2)))
        for name, (before, after) in passed.items():
            added[name].append((after.grad * (after - before)).detach().sum())
    for handle in handles:
        handle.remove()
    return (
        {name: torch.stack(gradients) for name, gradients in units.items()},
        {name: torch.stack(gradients) for name, gradients in added.items()},
    )


OF_GRADIENTS = {
    "fisher": lambda gradients: gradients.square().mean(0) / 2,
    "taylor": lambda gradients: gradients.abs().mean(0),
    "snip": lambda gradients: gradients.mean(0).abs(),
}


def activations_by_hand(model, batch):
    """Returns what the output Linear of every block reads at the tokens of `batch` that are no padding."""
    blocks = family_of(model).blocks(model)
    read = {name: [] for name in blocks}
    handles = [
        block.output.register_forward_pre_hook(lambda module, args, name=name: read[name].append(args[0][0]))
        for name, block in blocks.items()
    ]
    with torch.no_grad():
        for example in unpadded(batch):
            model(**example)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in read.items()}


def singles(batch):
    return [{name: value[i : i + 1] for name, value in batch.items()} for i in range(batch["input_ids"].shape[0])]


def unpadded(batch):
    for example in singles(batch):
        length = int(example["attention_mask"].sum())
        yield {name: value[:, :length] if value.dim() == 2 else value for name, value in example.items()}


def longer(batch, by=5):
    return {
        name: torch.cat([value, value.new_zeros(value.shape[0], by)], dim=1) if value.dim() == 2 else value
        for name, value in batch.items()
    }


def assert_same_scores(found, expected, rtol=1e-4):
    assert found.units.keys() == expected.units.keys()
    for name, scores in expected.units.items():
        atol = rtol * float(scores.abs().max()) if scores.numel() else 0.0
        torch.testing.assert_close(found.units[name], scores, rtol=rtol, atol=atol)
    assert found.layers == pytest.approx(expected.layers, rel=rtol)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("criterion", BY_GATES)
def test_gradients_of_gates_are_those_of_every_example_alone(make_model, make_batch, criterion, attention):
    model, batch = make_model(attn_implementation=attention), make_batch(labelled=True)
    scores, of = BY_GATES[criterion](model, [batch]), OF_GRADIENTS[criterion]
    units, layers = gradients_by_hand(model, batch)
    assert_same_scores(
        scores,
        Scores({n: of(g) for n, g in units.items()}, {n: float(of(g)) for n, g in layers.items()}),
    )
    assert all(float(score.min()) > 0 for score in scores.units.values())


def test_fisher_of_units_that_go_together_is_that_of_their_sum(make_model, make_batch):
    model, batch = make_model(), make_batch(labelled=True)
    scores = fisher(model, [batch])
    assert scores.pairwise.keys() == scores.units.keys()
    risen = 0
    for name, gradients in gradients_by_hand(model, batch)[0].items():
        lowest = scores.units[name].argsort(stable=True)
        sums = [float(gradients[:, lowest[:count]].sum(1).square().mean() / 2) for count in range(len(lowest) + 1)]
        expected = torch.tensor([max(sums[: count + 1]) for count in range(len(sums))])
        rises = torch.tensor(scores.removal_errors(name, list(range(len(lowest), -1, -1)))).float()
        torch.testing.assert_close(rises, expected, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(rises[1], scores.units[name].min(), rtol=1e-4, atol=1e-9)
        alone = scores.units[name].sort().values.cumsum(0)
        risen += int((rises[1:] > 1.5 * alone).sum())
    assert risen > 5  # units that do the same cost more together than each alone


def test_only_fisher_knows_of_units_that_go_together(make_model, make_batch):
    model, batch = make_model(), make_batch(labelled=True)
    assert [name for name, criterion in CRITERIA.items() if criterion(model, [batch], example_loss).pairwise] == [
        "fisher"
    ]


@pytest.mark.parametrize("criterion", ["activation", "wanda"])
def test_activations_are_those_of_all_tokens_without_padding(make_model, make_batch, criterion):
    model, batch = make_model(), make_batch()
    blocks, expected = family_of(model).blocks(model), {}
    for name, read in activations_by_hand(model, batch).items():
        assert len(read) == 18
        if criterion == "activation":
            numbers = read.abs().mean(0)
        else:
            norms = read.square().sum(0).sqrt() / 18**0.5
            numbers = (blocks[name].output.weight.detach().abs() * norms).sum(0)
        expected[name] = numbers.view(blocks[name].units, -1).sum(1)
    found = CRITERIA[criterion](
        model, [*singles(batch)[:1], longer({n: v[1:] for n, v in batch.items()})], example_loss
    )
    layers = {f"encoder.{i}": sum(float(s.sum()) for n, s in expected.items() if f".{i}." in n) for i in range(3)}
    assert_same_scores(found, Scores(expected, layers))


@pytest.mark.parametrize("criterion", BY_DATA)
def test_padding_is_not_seen(make_model, make_batch, criterion):
    model, batch, score = make_model(**CALM), make_batch(labelled=True), CRITERIA[criterion]
    assert_same_scores(score(model, [longer(batch)], example_loss), score(model, [batch], example_loss))


@pytest.mark.parametrize("criterion", BY_DATA)
def test_padding_of_targets_is_not_seen(make_model, make_batch, criterion):
    head = "T5ForConditionalGeneration"
    model, score = make_model(head, dropout_rate=0.0), CRITERIA[criterion]
    batch = make_batch(head, labelled=True)
    labels = torch.cat([batch["labels"], torch.full((3, 4), -100)], dim=1)
    padded = {**longer({name: value for name, value in batch.items() if name != "labels"}), "labels": labels}
    assert_same_scores(score(model, [padded], example_loss), score(model, [batch], example_loss), rtol=1e-3)


@pytest.mark.parametrize(
    "head", ["BertForSequenceClassification", "BertForQuestionAnswering", "BertForMultipleChoice"]
)
@pytest.mark.parametrize("criterion", [name for name in BY_DATA if name != "movement"])  # which takes a step a batch
def test_size_of_batches_does_not_matter(make_model, make_batch, head, criterion):
    model, batch, score = make_model(head), make_batch(head, labelled=True), CRITERIA[criterion]
    assert_same_scores(score(model, singles(batch), example_loss), score(model, [batch], example_loss))


@pytest.mark.parametrize("criterion", [name for name in BY_DATA if name != "movement"])
def test_data_twice_is_the_same(make_model, make_batch, criterion):
    model, batch, score = make_model(), make_batch(labelled=True), CRITERIA[criterion]
    assert_same_scores(score(model, [batch, batch], example_loss), score(model, [batch], example_loss))


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
    model, batch = remove_units(make_model(), select("all of these")), make_batch(labelled=True)
    for criterion in CRITERIA.values():
        scores = criterion(model, [batch], example_loss)
        assert [len(score) for score in scores.units.values()] == [0, 0, 1, 2]
        assert list(scores.layers) == ["encoder.0", "encoder.1"]
    gates = torch.ones(3, 2, requires_grad=True)
    with apply_gates(model, {"encoder.1.feed_forward": gates}):
        gradient = torch.autograd.grad(3 * model(**batch).loss, gates)[0]
    found = fisher(model, [batch]).units["encoder.1.feed_forward"]
    torch.testing.assert_close(found, gradient.square().mean(0) / 2, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scoring_leaves_no_trace(make_model, make_batch, criterion):
    model, batch, score = make_model(**CALM), make_batch(labelled=True), CRITERIA[criterion]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first = score(model, [batch], example_loss)
    assert not model.training
    model.train()
    assert_same_scores(score(model, [batch], example_loss), first, rtol=1e-6)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_frozen_model_scores_the_same(make_model, make_batch, criterion):
    batch, score = make_batch(labelled=True), CRITERIA[criterion]
    frozen = score(make_model(**CALM).requires_grad_(False), [batch], example_loss)
    assert_same_scores(frozen, score(make_model(**CALM), [batch], example_loss))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_half_precision_is_scored_in_single(make_model, make_batch, criterion):
    model, batch, score = make_model(**CALM), make_batch(labelled=True), CRITERIA[criterion]
    scores = score(copy.deepcopy(model).bfloat16(), [batch], example_loss)
    assert {score.dtype for score in scores.units.values()} == {torch.float32}
    found = torch.cat(list(scores.units.values()))
    expected = torch.cat(list(score(model, [batch], example_loss).units.values()))
    assert float(torch.corrcoef(torch.stack([found, expected]))[0, 1]) > 0.98


def test_another_loss_can_be_given(make_model, make_batch):
    model, batch = make_model(), make_batch(labelled=True)
    single = fisher(model, [batch])
    double = fisher(model, [batch], loss=lambda model, batch: 2 * 3 * model(**batch).loss)
    for name, scores in single.units.items():
        torch.testing.assert_close(double.units[name], 4 * scores)


@pytest.mark.parametrize("criterion", BY_DATA)
def test_empty_dataloader_is_refused(make_model, criterion):
    with pytest.raises(ValueError, match="the dataloader is empty: at least one batch is required"):
        CRITERIA[criterion](make_model(), [], example_loss)


@pytest.mark.parametrize("criterion", BY_LABELS)
def test_batches_without_labels_are_refused(make_model, make_batch, criterion):
    message = "the batches have no labels, only input_ids, attention_mask, token_type_ids: give labelled data, or the"
    with pytest.raises(ValueError, match=re.escape(message)):
        CRITERIA[criterion](make_model(), [make_batch()], example_loss)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in BY_LABELS])
def test_labels_are_not_asked_for(make_model, make_batch, criterion):
    score, model = CRITERIA[criterion], make_model()
    labelled = score(model, [make_batch(labelled=True)], example_loss)
    assert_same_scores(score(model, [make_batch()], example_loss), labelled, rtol=0)


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


@torch.no_grad()
def test_magnitude_l1_is_the_sum_of_what_a_unit_owns(make_model):
    model = make_model("T5Model")  # whose feed-forward blocks have no gate, and whose attention has no biases
    scores = magnitude_l1(model)
    attention, _, feed_forward = model.decoder.block[1].layer
    rows, attention = slice(16, 24), attention.SelfAttention
    expected = sum(float(linear.weight[rows].abs().sum()) for linear in (attention.q, attention.k, attention.v))
    expected += float(attention.o.weight[:, rows].abs().sum())
    assert float(scores.units["decoder.1.attention"][2]) == pytest.approx(expected, rel=1e-5)
    dense = feed_forward.DenseReluDense
    neuron = float(dense.wi.weight[5].abs().sum() + dense.wo.weight[:, 5].abs().sum())
    assert float(scores.units["decoder.1.feed_forward"][5]) == pytest.approx(neuron, rel=1e-5)
    whole = sum(float(scores.units[f"decoder.1.{b}"].sum()) for b in ("attention", "cross_attention", "feed_forward"))
    assert scores.layers["decoder.1"] == pytest.approx(whole, rel=1e-6)


def test_gated_neurons_own_both_of_their_inputs(make_model):
    model = make_model("MT5Model")
    dense = model.encoder.block[0].layer[1].DenseReluDense
    neuron = sum(float(weight.detach()[5].norm() ** 2) for weight in (dense.wi_0.weight, dense.wi_1.weight))
    neuron += float(dense.wo.weight.detach()[:, 5].norm() ** 2)
    assert float(magnitude(model).units["encoder.0.feed_forward"][5]) == pytest.approx(neuron, rel=1e-5)


def test_random_scores_follow_the_seed_of_all(make_model):
    model = make_model()
    set_seed(7)
    first = random(model)
    torch.rand(5)
    assert_same_scores(random(model), first, rtol=0)
    set_seed(8)
    other = random(model)
    assert all(not torch.equal(other.units[name], scores) for name, scores in first.units.items())


def test_random_scores_are_even_shares_of_the_weights_owned(make_model):
    set_seed(0)
    scores = random(make_model(num_attention_heads=16, intermediate_size=512)).units
    heads = torch.cat([scores[f"encoder.{i}.attention"] for i in range(3)]) / (4 * 32 * 2)
    neurons = torch.cat([scores[f"encoder.{i}.feed_forward"] for i in range(3)]) / (2 * 32)
    for drawn in (heads, neurons):
        assert 0 <= drawn.min() < 0.1
        assert 0.9 < drawn.max() <= 1
        assert float(drawn.mean()) == pytest.approx(0.5, abs=0.1)


# ---- movement ----


def test_what_moves_away_from_zero_scores_higher(make_model, make_batch):
    """A loss that pulls on two heads and two neurons only: training lets one of each grow and the other shrink."""
    name_of = {"heads": "encoder.0.attention", "neurons": "encoder.1.feed_forward"}
    units = {"heads": (1, 3), "neurons": (10, 20)}

    def loss(model, batch):
        blocks, total = family_of(model).blocks(model), 0
        for kind, (grows, shrinks) in units.items():
            block = blocks[name_of[kind]]
            columns = block.output.weight.T
            total = total - columns[block.rows([grows])].square().sum() + columns[block.rows([shrinks])].square().sum()
        return total * 3

    model = make_model()
    scores = movement(model, [make_batch(labelled=True)], loss)
    for kind, (grows, shrinks) in units.items():
        found, block = scores.units[name_of[kind]], family_of(model).blocks(model)[name_of[kind]]
        squares = block.output.weight.detach().square().sum(0).view(block.units, -1).sum(1)
        assert float(found[grows]) == pytest.approx(2 * float(squares[grows]), rel=1e-5)
        assert float(found[shrinks]) == pytest.approx(-2 * float(squares[shrinks]), rel=1e-5)
        assert (int(found.argmax()), int(found.argmin())) == (grows, shrinks)
        assert int((found == 0).sum()) == block.units - 2


def test_movement_sums_up_what_training_moves(make_model, make_batch):
    model = make_model(**CALM)
    batches = [make_batch(labelled=True, seed=seed) for seed in range(3)]
    student, expected = copy.deepcopy(model), {}
    for batch in batches:
        student.zero_grad()
        student(**batch).loss.backward()
        for name, block in family_of(student).blocks(student).items():
            products = (block.output.weight * block.output.weight.grad).detach().sum(0).view(block.units, -1).sum(1)
            expected[name] = expected.get(name, 0) - products
        norm = torch.stack([p.grad.norm() for p in student.parameters() if p.grad is not None]).norm()
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.grad is not None:
                    parameter -= MOVEMENT_LEARNING_RATE * parameter.grad / max(1.0, float(norm))
    found = movement(model, batches)
    for name, scores in expected.items():
        torch.testing.assert_close(found.units[name], scores, rtol=1e-3, atol=1e-5)
    first = movement(model, batches[:1])
    gradients, _ = gradients_by_hand(model, batches[0])
    for name, scores in first.units.items():
        torch.testing.assert_close(scores, -gradients[name].mean(0), rtol=1e-3, atol=1e-5)


def test_movement_trains_with_the_dropout_of_training(make_model, make_batch):
    model, batch = make_model(hidden_dropout_prob=0.5), make_batch(labelled=True)
    torch.manual_seed(0)
    first = movement(model, [batch])
    torch.manual_seed(1)
    assert not torch.equal(movement(model, [batch]).units["encoder.0.attention"], first.units["encoder.0.attention"])
