"""What every criterion must do in every family: finite scores of the documented shape, and the useless unit lowest."""

import pytest
import torch
from heads import HEADS
from transformers import set_seed

from hf_efficient import CRITERIA, PruningConfig, prune
from hf_efficient.functions import select_units
from hf_efficient.models import family_of
from hf_efficient.models.blocks import AttentionBlock
from hf_efficient.pruning.losses import example_loss
from hf_efficient.pruning.selection import Scores, remove_units

SCORED_HEADS = [head for head in HEADS if head.endswith(("ForSequenceClassification", "ForConditionalGeneration"))]
ENCODER, ENCODER_DECODER = "BertForSequenceClassification", "T5ForConditionalGeneration"
OTHER_HEADS = [head for head in SCORED_HEADS if head not in (ENCODER, ENCODER_DECODER)]
# A unit is useless to a magnitude if the weights that compute it and those that read it are zero, to activations if
# those that compute it are. A random score does not depend on the weights.
MAGNITUDES, ACTIVATIONS = ("magnitude", "magnitude_l1"), ("activation",)
DETERMINISTIC = [name for name in CRITERIA if name != "random"]


def pairs_with_heads(criteria):
    """Return pairs with every criterion for an encoder and for an encoder-decoder, and every other head."""
    pairs = [(criterion, head) for criterion in criteria for head in (ENCODER, ENCODER_DECODER)]
    return pairs + [(criteria[index % len(criteria)], head) for index, head in enumerate(OTHER_HEADS)]


@pytest.mark.parametrize(("criterion", "head"), pairs_with_heads(list(CRITERIA)))
def test_scores_are_finite_and_have_the_documented_shape(make_model, make_batch, criterion, head):
    model = make_model(head)
    scores = CRITERIA[criterion](model, [make_batch(head, labelled=True)], example_loss)
    blocks, layers = family_of(model).blocks(model), family_of(model).layers(model)
    assert list(scores.units) == list(blocks)
    assert list(scores.layers) == list(layers)
    for name, block in blocks.items():
        units = scores.units[name]
        assert (units.shape, units.dtype, units.requires_grad) == ((block.units,), torch.float32, False)
        assert units.isfinite().all()
        assert len(units.unique()) > 2
        assert criterion == "movement" or units.min() >= 0
    assert all(isinstance(score, float) for score in scores.layers.values())
    assert torch.tensor(list(scores.layers.values())).isfinite().all()
    assert len(set(scores.layers.values())) == len(layers)
    for name, pairwise in scores.pairwise.items():
        count = blocks[name].units
        assert pairwise.shape == (count, count)
        errors = torch.tensor(scores.removal_errors(name, list(range(count, -1, -1))))
        assert errors[0] == 0
        assert errors.isfinite().all()
        assert errors.diff().min() >= 0


@pytest.mark.parametrize(("criterion", "head"), pairs_with_heads(DETERMINISTIC))
@torch.no_grad()
def test_useless_unit_has_the_lowest_score(make_model, make_batch, criterion, head):
    model = make_model(head)
    useless = {}
    for name, block in family_of(model).blocks(model).items():
        useless[name] = 2 if isinstance(block, AttentionBlock) else 17
        rows = block.rows([useless[name]])
        if criterion not in ACTIVATIONS:
            block.output.weight[:, block.columns([useless[name]])] = 0
        if criterion in MAGNITUDES + ACTIVATIONS:
            for linear in block.input_linears:
                linear.weight[rows] = 0
                if linear.bias is not None:
                    linear.bias[rows] = 0
    scores = CRITERIA[criterion](model, [make_batch(head, labelled=True)], example_loss)
    for name, unit in useless.items():
        units = scores.units[name]
        assert units[unit] == 0
        assert int((units != 0).sum()) >= len(units) // 2  # a ReLU leaves some neurons without any effect
        # With movement, a weight that moves towards zero scores below one that does not move.
        assert criterion == "movement" or units.min() == 0


@pytest.mark.parametrize("head", [ENCODER, ENCODER_DECODER])
def test_random_scores_depend_on_the_seed_only(make_model, head):
    model, scores = make_model(head), []
    for seed in (1, 1, 2):
        set_seed(seed)
        scores.append(torch.cat(list(CRITERIA["random"](model, [], example_loss).units.values())))
    assert torch.equal(scores[0], scores[1])
    assert int((scores[0] == scores[2]).sum()) < len(scores[0]) // 100


@pytest.mark.parametrize("head", [ENCODER, ENCODER_DECODER, "DistilBertForSequenceClassification"])
def test_user_can_add_a_criterion(make_model, make_batch, monkeypatch, head):
    losses = []

    def last_units_first(model, batches, loss):
        losses.extend(float(loss(model, batch).detach()) for batch in batches)
        units = {name: torch.arange(float(block.units)) for name, block in family_of(model).blocks(model).items()}
        return Scores(units, {name: float(name.rpartition(".")[2]) for name in family_of(model).layers(model)})

    monkeypatch.setitem(CRITERIA, "last_units_first", last_units_first)
    model, batch = make_model(head), make_batch(head, labelled=True)
    config = PruningConfig(
        criterion="last_units_first", heads=0.5, neurons=0.5, layers=0.3, multiple_of=1, recovery=False
    )
    selection = select_units(model, config, [batch])
    assert losses == [pytest.approx(float(example_loss(model, batch).detach()), rel=1e-5)]
    assert {name.rpartition(".")[2] for name in selection.layers} == {"1", "2"}
    for name, kept in selection.units.items():
        units = family_of(model).blocks(model)[name].units
        assert kept == (() if ".0." in name else tuple(range(units // 2, units)))
    student = prune(model, config, [batch])
    assert len(losses) == 2
    assert list(student.state_dict()) == list((expected := remove_units(model, selection)).state_dict())
    assert all(map(torch.equal, student.state_dict().values(), expected.state_dict().values()))
