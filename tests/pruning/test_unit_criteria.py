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
NEEDING_LABELS = [*BY_GATES, "movement"]
NEEDING_DATA = [*NEEDING_LABELS, "activation", "wanda"]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def gradients_by_hand(model, batch):
    """Returns the gate gradients of each example, computed without gates: sums of activations times their gradients.

    One example at a time, without its padding: (examples, units) per block and (examples,) per layer.
    """
    blocks, layers = family_of(model).blocks(model), family_of(model).layers(model)
    unit_gradients, layer_gradients = {name: [] for name in blocks}, {name: [] for name in layers}
    activations, states = {}, {}

    def record_activations(name):
        def hook(module, args):
            args[0].retain_grad()
            activations[name] = args[0]

        return hook

    def record_states(name):
        def hook(module, args, output):
            output.retain_grad()
            states[name] = args[0], output

        return hook

    handles = [block.output.register_forward_pre_hook(record_activations(name)) for name, block in blocks.items()]
    handles += [layer.register_forward_hook(record_states(name)) for name, layer in layers.items()]
    for example in unpadded(batch):
        model(**example).loss.backward()
        for name, block in blocks.items():
            products = (activations[name] * activations[name].grad).detach()
            unit_gradients[name].append(products.reshape(-1, block.units, block.unit_size).sum((0, 2)))
        for name, (before, after) in states.items():
            layer_gradients[name].append((after.grad * (after - before)).detach().sum())
    for handle in handles:
        handle.remove()
    return (
        {name: torch.stack(gradients) for name, gradients in unit_gradients.items()},
        {name: torch.stack(gradients) for name, gradients in layer_gradients.items()},
    )


SCORE_OF_GRADIENTS = {
    "fisher": lambda gradients: gradients.square().mean(0) / 2,
    "taylor": lambda gradients: gradients.abs().mean(0),
    "snip": lambda gradients: gradients.mean(0).abs(),
}


def activations_by_hand(model, batch):
    """Returns the inputs of the output Linear of every block, for the tokens of `batch` that are no padding."""
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


def pad(batch, by=5):
    return {
        name: torch.cat([value, value.new_zeros(value.shape[0], by)], dim=1) if value.dim() == 2 else value
        for name, value in batch.items()
    }


def assert_same_scores(actual, expected, rtol=1e-4):
    assert actual.units.keys() == expected.units.keys()
    for name, scores in expected.units.items():
        atol = rtol * float(scores.abs().max()) if scores.numel() else 0.0
        torch.testing.assert_close(actual.units[name], scores, rtol=rtol, atol=atol)
    assert actual.layers == pytest.approx(expected.layers, rel=rtol)


@pytest.mark.parametrize(("criterion", "attention"), [("fisher", "sdpa"), ("taylor", "sdpa"), ("snip", "eager")])
def test_scores_use_the_gate_gradients_of_every_example(make_model, make_batch, criterion, attention):
    model, batch = make_model(attn_implementation=attention), make_batch(labelled=True)
    scores, score_of = BY_GATES[criterion](model, [batch]), SCORE_OF_GRADIENTS[criterion]
    units, layers = gradients_by_hand(model, batch)
    assert_same_scores(
        scores,
        Scores({n: score_of(g) for n, g in units.items()}, {n: float(score_of(g)) for n, g in layers.items()}),
    )
    assert all(float(score.min()) > 0 for score in scores.units.values())


def test_pairwise_fisher_is_that_of_the_sum_of_the_gates(make_model, make_batch):
    model, batch = make_model(), make_batch(labelled=True)
    scores = fisher(model, [batch])
    assert scores.pairwise.keys() == scores.units.keys()
    larger = 0
    for name, gradients in gradients_by_hand(model, batch)[0].items():
        lowest = scores.units[name].argsort(stable=True)
        sums = [float(gradients[:, lowest[:count]].sum(1).square().mean() / 2) for count in range(len(lowest) + 1)]
        expected = torch.tensor([max(sums[: count + 1]) for count in range(len(sums))])
        errors = torch.tensor(scores.removal_errors(name, list(range(len(lowest), -1, -1)))).float()
        torch.testing.assert_close(errors, expected, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(errors[1], scores.units[name].min(), rtol=1e-4, atol=1e-9)
        alone = scores.units[name].sort().values.cumsum(0)
        larger += int((errors[1:] > 1.5 * alone).sum())
    assert larger > 5  # redundant units cost more together than alone


def test_only_fisher_has_pairwise_scores(make_model, make_batch):
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
    actual = CRITERIA[criterion](model, [*singles(batch)[:1], pad({n: v[1:] for n, v in batch.items()})], example_loss)
    layers = {f"encoder.{i}": sum(float(s.sum()) for n, s in expected.items() if f".{i}." in n) for i in range(3)}
    assert_same_scores(actual, Scores(expected, layers))


@pytest.mark.parametrize("criterion", NEEDING_DATA)
def test_padding_makes_no_difference(make_model, make_batch, criterion):
    model, batch, score = make_model(**NO_DROPOUT), make_batch(labelled=True), CRITERIA[criterion]
    assert_same_scores(score(model, [pad(batch)], example_loss), score(model, [batch], example_loss))


@pytest.mark.parametrize("criterion", NEEDING_DATA)
def test_padding_of_labels_makes_no_difference(make_model, make_batch, criterion):
    head = "T5ForConditionalGeneration"
    model, score = make_model(head, dropout_rate=0.0), CRITERIA[criterion]
    batch = make_batch(head, labelled=True)
    labels = torch.cat([batch["labels"], torch.full((3, 4), -100)], dim=1)
    padded = {**pad({name: value for name, value in batch.items() if name != "labels"}), "labels": labels}
    assert_same_scores(score(model, [padded], example_loss), score(model, [batch], example_loss), rtol=1e-3)


# Not movement, which takes a step for each batch.
@pytest.mark.parametrize(
    ("head", "criterion"),
    [
        ("BertForSequenceClassification", "fisher"),
        ("BertForQuestionAnswering", "fisher"),
        ("BertForMultipleChoice", "fisher"),
        ("BertForMultipleChoice", "taylor"),
        ("BertForQuestionAnswering", "snip"),
        ("BertForSequenceClassification", "activation"),
        ("BertForMultipleChoice", "wanda"),
    ],
)
def test_batch_size_makes_no_difference(make_model, make_batch, head, criterion):
    model, batch, score = make_model(head), make_batch(head, labelled=True), CRITERIA[criterion]
    assert_same_scores(score(model, singles(batch), example_loss), score(model, [batch], example_loss))


@pytest.mark.parametrize("criterion", [name for name in NEEDING_DATA if name != "movement"])
def test_repeated_data_makes_no_difference(make_model, make_batch, criterion):
    model, batch, score = make_model(), make_batch(labelled=True), CRITERIA[criterion]
    assert_same_scores(score(model, [batch, batch], example_loss), score(model, [batch], example_loss))


def test_layer_that_adds_nothing_has_score_zero(make_model, make_batch):
    model = make_model()
    layer = model.bert.encoder.layer[1]
    handle = layer.register_forward_hook(lambda module, args, output: args[0] + 0 * output)
    scores = fisher(model, [make_batch(labelled=True)])
    handle.remove()
    assert scores.layers["encoder.1"] == 0
    assert min(scores.layers["encoder.0"], scores.layers["encoder.2"]) > 0


def test_every_head_can_be_scored(make_model, make_batch, head):
    def hidden_state_loss(model, batch):
        return model(**batch).last_hidden_state.square().sum()

    model, batch = make_model(head), make_batch(head, labelled=head != "BertModel")
    scores = fisher(model, [batch], hidden_state_loss) if head == "BertModel" else fisher(model, [batch])
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
    actual = fisher(model, [batch]).units["encoder.1.feed_forward"]
    torch.testing.assert_close(actual, gradient.square().mean(0) / 2, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scoring_does_not_change_the_model(make_model, make_batch, criterion):
    model, batch, score = make_model(**NO_DROPOUT), make_batch(labelled=True), CRITERIA[criterion]
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
def test_frozen_model_has_the_same_scores(make_model, make_batch, criterion):
    batch, score = make_batch(labelled=True), CRITERIA[criterion]
    frozen = score(make_model(**NO_DROPOUT).requires_grad_(False), [batch], example_loss)
    assert_same_scores(frozen, score(make_model(**NO_DROPOUT), [batch], example_loss))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_half_precision_model_has_scores_in_single_precision(make_model, make_batch, criterion):
    model, batch, score = make_model(**NO_DROPOUT), make_batch(labelled=True), CRITERIA[criterion]
    scores = score(copy.deepcopy(model).bfloat16(), [batch], example_loss)
    assert {score.dtype for score in scores.units.values()} == {torch.float32}
    actual = torch.cat(list(scores.units.values()))
    expected = torch.cat(list(score(model, [batch], example_loss).units.values()))
    assert float(torch.corrcoef(torch.stack([actual, expected]))[0, 1]) > 0.98


def test_given_loss_is_used(make_model, make_batch):
    model, batch = make_model(), make_batch(labelled=True)
    single = fisher(model, [batch])
    double = fisher(model, [batch], loss=lambda model, batch: 2 * 3 * model(**batch).loss)
    for name, scores in single.units.items():
        torch.testing.assert_close(double.units[name], 4 * scores)


@pytest.mark.parametrize("criterion", NEEDING_DATA)
def test_empty_dataloader_is_refused(make_model, criterion):
    with pytest.raises(ValueError, match="the dataloader is empty: at least one batch is required"):
        CRITERIA[criterion](make_model(), [], example_loss)


@pytest.mark.parametrize("criterion", NEEDING_LABELS)
def test_batches_without_labels_are_refused(make_model, make_batch, criterion):
    message = "the batches have no labels, only input_ids, attention_mask, token_type_ids: give labelled data, or the"
    with pytest.raises(ValueError, match=re.escape(message)):
        CRITERIA[criterion](make_model(), [make_batch()], example_loss)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in NEEDING_LABELS])
def test_labels_are_not_required(make_model, make_batch, criterion):
    score, model = CRITERIA[criterion], make_model()
    labelled = score(model, [make_batch(labelled=True)], example_loss)
    assert_same_scores(score(model, [make_batch()], example_loss), labelled, rtol=0)


@torch.no_grad()
def test_magnitude_is_the_squared_norm_of_the_weights_of_a_unit(make_model):
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
    total = sum(float(scores.units[f"encoder.2.{block}"].sum()) for block in ("attention", "feed_forward"))
    assert scores.layers["encoder.2"] == pytest.approx(total, rel=1e-6)


@torch.no_grad()
def test_magnitude_l1_is_the_sum_of_the_weights_of_a_unit(make_model):
    model = make_model("T5Model")  # its feed-forward blocks are not gated, and its attention has no biases
    scores = magnitude_l1(model)
    attention, _, feed_forward = model.decoder.block[1].layer
    rows, attention = slice(16, 24), attention.SelfAttention
    expected = sum(float(linear.weight[rows].abs().sum()) for linear in (attention.q, attention.k, attention.v))
    expected += float(attention.o.weight[:, rows].abs().sum())
    assert float(scores.units["decoder.1.attention"][2]) == pytest.approx(expected, rel=1e-5)
    dense = feed_forward.DenseReluDense
    neuron = float(dense.wi.weight[5].abs().sum() + dense.wo.weight[:, 5].abs().sum())
    assert float(scores.units["decoder.1.feed_forward"][5]) == pytest.approx(neuron, rel=1e-5)
    total = sum(float(scores.units[f"decoder.1.{b}"].sum()) for b in ("attention", "cross_attention", "feed_forward"))
    assert scores.layers["decoder.1"] == pytest.approx(total, rel=1e-6)


def test_magnitude_of_gated_neurons_includes_both_inputs(make_model):
    model = make_model("MT5Model")
    dense = model.encoder.block[0].layer[1].DenseReluDense
    neuron = sum(float(weight.detach()[5].norm() ** 2) for weight in (dense.wi_0.weight, dense.wi_1.weight))
    neuron += float(dense.wo.weight.detach()[:, 5].norm() ** 2)
    assert float(magnitude(model).units["encoder.0.feed_forward"][5]) == pytest.approx(neuron, rel=1e-5)


def test_random_scores_follow_the_global_seed(make_model):
    model = make_model()
    set_seed(7)
    first = random(model)
    torch.rand(5)
    assert_same_scores(random(model), first, rtol=0)
    set_seed(8)
    other = random(model)
    assert all(not torch.equal(other.units[name], scores) for name, scores in first.units.items())


def test_random_scores_are_proportional_to_the_number_of_weights(make_model):
    set_seed(0)
    scores = random(make_model(num_attention_heads=16, intermediate_size=512)).units
    heads = torch.cat([scores[f"encoder.{i}.attention"] for i in range(3)]) / (4 * 32 * 2)
    neurons = torch.cat([scores[f"encoder.{i}.feed_forward"] for i in range(3)]) / (2 * 32)
    for ratios in (heads, neurons):
        assert 0 <= ratios.min() < 0.1
        assert 0.9 < ratios.max() <= 1
        assert float(ratios.mean()) == pytest.approx(0.5, abs=0.1)


# ---- movement ----


def test_units_that_move_away_from_zero_score_higher(make_model, make_batch):
    """The loss depends on two heads and two neurons only: training makes one of each grow and the other shrink."""
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
        actual, block = scores.units[name_of[kind]], family_of(model).blocks(model)[name_of[kind]]
        squares = block.output.weight.detach().square().sum(0).view(block.units, -1).sum(1)
        assert float(actual[grows]) == pytest.approx(2 * float(squares[grows]), rel=1e-5)
        assert float(actual[shrinks]) == pytest.approx(-2 * float(squares[shrinks]), rel=1e-5)
        assert (int(actual.argmax()), int(actual.argmin())) == (grows, shrinks)
        assert int((actual == 0).sum()) == block.units - 2


def test_movement_is_summed_over_training_steps(make_model, make_batch):
    model = make_model(**NO_DROPOUT)
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
    actual = movement(model, batches)
    for name, scores in expected.items():
        torch.testing.assert_close(actual.units[name], scores, rtol=1e-3, atol=1e-5)
    first = movement(model, batches[:1])
    gradients, _ = gradients_by_hand(model, batches[0])
    for name, scores in first.units.items():
        torch.testing.assert_close(scores, -gradients[name].mean(0), rtol=1e-3, atol=1e-5)


def test_movement_trains_with_dropout(make_model, make_batch):
    model, batch = make_model(hidden_dropout_prob=0.5), make_batch(labelled=True)
    torch.manual_seed(0)
    first = movement(model, [batch])
    torch.manual_seed(1)
    assert not torch.equal(movement(model, [batch]).units["encoder.0.attention"], first.units["encoder.0.attention"])
