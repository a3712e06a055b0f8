import copy
import itertools
import re

import pytest
import torch

from hf_efficient.models import FAMILIES
from hf_efficient.models.batches import non_padding_mask
from hf_efficient.pruning.connection_criteria import block_linears, fisher, movement, snip, taylor, wanda
from hf_efficient.pruning.criteria import CONNECTION_CRITERIA
from hf_efficient.pruning.selection import remove_units

TASKS = {
    name: [cls.__name__ for cls in family.pruned_classes if "For" in cls.__name__] for name, family in FAMILIES.items()
}
LABELLED = TASKS["bert"] + [heads[0] for name, heads in TASKS.items() if name != "bert" and heads]
ROW = "bert.encoder.layer.1.intermediate.dense.weight"


def gradients_of_examples(model, batch):
    """Yields, for each example, the gradient of its loss by every weight of the blocks."""
    names, weights = zip(*((name, linear.weight) for name, linear in block_linears(model).items()), strict=True)
    for row in range(batch["input_ids"].shape[0]):
        example = {name: value[row : row + 1] for name, value in batch.items()}
        yield dict(zip(names, torch.autograd.grad(model(**example).loss, weights), strict=True))


def scores_by_hand(model, batch, score):
    weights = {name: linear.weight.detach() for name, linear in block_linears(model).items()}
    gradients = list(gradients_of_examples(model, batch))
    return {name: score(torch.stack([each[name] for each in gradients]), weight) for name, weight in weights.items()}


def assert_same_scores(actual, expected, rtol=1e-4):
    assert actual.keys() == expected.keys()
    for name, scores in expected.items():
        torch.testing.assert_close(actual[name], scores, rtol=rtol, atol=1e-5 * float(scores.abs().max()) * (rtol > 0))


def test_linears_are_those_of_the_blocks(make_model):
    names = block_linears(make_model("BertForMaskedLM"))
    layer = "attention.self.query attention.self.key attention.self.value attention.output.dense intermediate.dense"
    assert set(names) == {
        f"bert.encoder.layer.{index}.{module}.weight"
        for index in range(3)
        for module in (*layer.split(), "output.dense")
    }


def test_linears_of_a_pruned_model_are_those_of_the_kept_blocks(make_model, select):
    names = block_linears(remove_units(make_model(), select("all of these")))
    assert [name.removeprefix("bert.encoder.layer.") for name in names] == [
        f"1.{module}.weight"
        for module in (
            "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
            "intermediate.dense", "output.dense",
        )
    ]  # fmt: skip


@pytest.mark.parametrize(("head", "criterion"), [*zip(LABELLED, itertools.cycle(CONNECTION_CRITERIA), strict=False)])
def test_every_weight_has_a_finite_score(make_model, make_batch, criterion, head):
    model, batch = make_model(head), make_batch(head, labelled=True)
    scores = CONNECTION_CRITERIA[criterion](model, [batch, batch])
    assert {name: score.shape for name, score in scores.items()} == {
        name: linear.weight.shape for name, linear in block_linears(model).items()
    }
    assert all(torch.isfinite(score).all() and score.std() > 0 for score in scores.values())
    assert not [name for name, score in scores.items() if score.requires_grad]


@pytest.mark.parametrize("criterion", [name for name in CONNECTION_CRITERIA if name != "random"])
def test_zero_weights_have_zero_scores(make_model, make_batch, criterion):
    model = make_model()
    with torch.no_grad():
        block_linears(model)[ROW].weight[17] = 0
    scores = CONNECTION_CRITERIA[criterion](model, [make_batch(labelled=True, seed=seed) for seed in range(3)])
    assert not scores[ROW][17].any()
    if criterion != "movement":  # its scores can be negative
        assert [int(row) for row in (scores[ROW].sum(1) == 0).nonzero()] == [17]
        assert min(float(score.min()) for score in scores.values()) == 0


@pytest.mark.parametrize("criterion", ["fisher", "taylor", "snip"])
def test_row_that_is_not_read_has_zero_scores(make_model, make_batch, criterion):
    model = make_model()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[:, 17] = 0
    scores = CONNECTION_CRITERIA[criterion](model, [make_batch(labelled=True)])
    assert [int(row) for row in (scores[ROW].sum(1) == 0).nonzero()] == [17]


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (fisher, lambda gradients, weight: weight**2 * gradients.square().mean(0) / 2),
        (taylor, lambda gradients, weight: (weight * gradients).abs().mean(0)),
        (snip, lambda gradients, weight: (weight * gradients.mean(0)).abs()),
    ],
)
def test_scores_use_the_gradients_of_every_example(make_model, make_batch, criterion, expected):
    model, batch = make_model(), make_batch(labelled=True)
    assert_same_scores(criterion(model, [batch]), scores_by_hand(model, batch, expected))


@pytest.mark.parametrize(
    ("head", "criterion"),
    [
        ("BertForSequenceClassification", fisher),
        ("DebertaV2ForSequenceClassification", fisher),
        ("BertForMultipleChoice", taylor),
        ("BertForMultipleChoice", snip),
        ("BertForMultipleChoice", wanda),
    ],
)
def test_scores_do_not_depend_on_the_batch_size(make_model, make_batch, criterion, head):
    model, batch = make_model(head), make_batch(head, labelled=True)
    singles = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(3)]
    assert_same_scores(criterion(model, singles), criterion(model, [batch]))


@torch.no_grad()
def test_wanda_is_the_weight_times_the_norm_of_its_input(make_model, make_batch):
    model, batch = make_model(), make_batch()
    states = model(**batch, output_hidden_states=True).hidden_states[1][batch["attention_mask"].bool()]
    query = model.bert.encoder.layer[1].attention.self.query.weight
    actual = wanda(model, [batch])["bert.encoder.layer.1.attention.self.query.weight"]
    assert states.shape == (9 + 6 + 3, 32)
    torch.testing.assert_close(actual, query.abs() * states.norm(dim=0))


def test_movement_is_minus_weight_times_gradient_during_training(make_model, make_batch):
    model, batches = make_model(), [make_batch(labelled=True, seed=seed) for seed in (1, 2)]
    student = copy.deepcopy(model)
    weight = block_linears(student)[ROW].weight
    expected = torch.zeros_like(weight)
    for batch in batches:
        student.zero_grad()
        student(**batch).loss.backward()
        norm = torch.cat([p.grad.flatten() for p in student.parameters()]).norm()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.grad *= min(1, 1 / norm)
            expected -= weight.detach() * weight.grad
            for parameter in student.parameters():
                parameter -= 0.01 * parameter.grad
    actual = movement(model, batches)[ROW]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)
    assert float(actual.min()) < 0 < float(actual.max())


def test_random_scores_are_reproducible_and_need_no_data(make_model):
    first, second = (CONNECTION_CRITERIA["random"](make_model(seed=seed), ()) for seed in (0, 1))
    assert_same_scores(first, second, rtol=0)
    assert 0.45 < float(first[ROW].mean()) < 0.55


@pytest.mark.parametrize(
    ("criterion", "training"),
    [*zip(CONNECTION_CRITERIA, itertools.cycle([True, False]), strict=False), ("fisher", False), ("movement", False)],
)
def test_scoring_does_not_change_the_model(make_model, make_batch, criterion, training):
    model = make_model().train(training).requires_grad_(training)
    state = copy.deepcopy(model.state_dict())
    first = CONNECTION_CRITERIA[criterion](model, [make_batch(labelled=True)])
    assert model.training is training
    assert all(parameter.requires_grad is training and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not [module for module in model.modules() if module._forward_hooks]
    assert_same_scores(CONNECTION_CRITERIA[criterion](make_model(), [make_batch(labelled=True)]), first)


@pytest.mark.parametrize("criterion", ["fisher", "movement", "snip", "taylor", "wanda"])
def test_empty_dataloader_is_refused(make_model, criterion):
    with pytest.raises(ValueError, match="the dataloader is empty: at least one batch is required"):
        CONNECTION_CRITERIA[criterion](make_model(), [])


def test_batches_without_labels_are_refused(make_model, make_batch):
    with pytest.raises(ValueError, match=re.escape("the batches have no labels, only input_ids")):
        taylor(make_model(), [make_batch()])


def test_padding_of_a_decoder_is_found_by_its_own_mask_or_labels():
    labels = torch.tensor([[5, 6, -100], [7, -100, -100]])
    batch = {"attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]), "labels": labels}
    decoder_states, encoder_states = torch.zeros(2, 3, 8), torch.zeros(2, 4, 8)
    assert non_padding_mask(batch, decoder_states, True).tolist() == [[True, True, False], [True, False, False]]
    assert non_padding_mask(batch, encoder_states, True).tolist() == batch["attention_mask"].bool().tolist()
    mask = {"decoder_attention_mask": torch.tensor([[1, 0, 0], [1, 1, 1]])}
    assert non_padding_mask(batch | mask, decoder_states, True).tolist() == [[True, False, False], [True] * 3]
    assert non_padding_mask({"labels": labels}, decoder_states, False).all()
