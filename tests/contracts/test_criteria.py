"""What every criterion owes on every family: finite scores of the documented shape, and the useless unit last."""

import pytest
import torch
from transformers import set_seed

from hf_efficient import CRITERIA, FAMILIES, PruningConfig, prune
from hf_efficient.functions import select_units
from hf_efficient.models import family_of
from hf_efficient.models.blocks import AttentionBlock
from hf_efficient.pruning.losses import example_loss
from hf_efficient.pruning.selection import Scores, remove_units

HEADS = [
    cls.__name__
    for family in FAMILIES.values()
    for cls in family.pruned_classes
    if cls.__name__.endswith(("ForSequenceClassification", "ForConditionalGeneration"))
]
# What has to be zero for a unit to count for nothing: magnitudes see what computes a unit as well as what reads it,
# activations only what computes it. A random score sees nothing at all: it is not asked.
BY_WEIGHTS, BY_WHAT_IS_COMPUTED = ("magnitude", "magnitude_l1"), ("activation",)
SEEING = [name for name in CRITERIA if name != "random"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_are_finite_and_of_the_documented_shape(make_model, make_batch, criterion, head):
    model = make_model(head)
    scores = CRITERIA[criterion](model, [make_batch(head, labelled=True)], example_loss)
    blocks, layers = family_of(model).blocks(model), family_of(model).layers(model)
    assert list(scores.units) == list(blocks)
    assert list(scores.layers) == list(layers)
    for name, block in blocks.items():
        found = scores.units[name]
        assert (found.shape, found.dtype, found.requires_grad) == ((block.units,), torch.float32, False)
        assert found.isfinite().all()
        assert len(found.unique()) > 2
        assert criterion == "movement" or found.min() >= 0
    assert all(isinstance(score, float) for score in scores.layers.values())
    assert torch.tensor(list(scores.layers.values())).isfinite().all()
    assert len(set(scores.layers.values())) == len(layers)
    for name, pairs in scores.pairwise.items():
        units = blocks[name].units
        assert pairs.shape == (units, units)
        rises = torch.tensor(scores.removal_errors(name, list(range(units, -1, -1))))
        assert rises[0] == 0
        assert rises.isfinite().all()
        assert rises.diff().min() >= 0


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("criterion", SEEING)
@torch.no_grad()
def test_unit_that_counts_for_nothing_scores_lowest(make_model, make_batch, criterion, head):
    model = make_model(head)
    useless = {}
    for name, block in family_of(model).blocks(model).items():
        useless[name] = 2 if isinstance(block, AttentionBlock) else 17
        rows = block.rows([useless[name]])
        if criterion not in BY_WHAT_IS_COMPUTED:
            block.output.weight[:, rows] = 0
        if criterion in BY_WEIGHTS + BY_WHAT_IS_COMPUTED:
            for linear in block.input_linears:
                linear.weight[rows] = 0
                if linear.bias is not None:
                    linear.bias[rows] = 0
    scores = CRITERIA[criterion](model, [make_batch(head, labelled=True)], example_loss)
    for name, unit in useless.items():
        found = scores.units[name]
        assert found[unit] == 0
        assert int((found != 0).sum()) >= len(found) // 2  # a rectifier leaves some neurons without any effect
        # What stands still scores between what moves to zero and what moves away from it.
        assert criterion == "movement" or found.min() == 0


@pytest.mark.parametrize("head", HEADS)
def test_random_scores_follow_the_seed(make_model, head):
    model, drawn = make_model(head), []
    for seed in (1, 1, 2):
        set_seed(seed)
        drawn.append(torch.cat(list(CRITERIA["random"](model, [], example_loss).units.values())))
    assert torch.equal(drawn[0], drawn[1])
    assert int((drawn[0] == drawn[2]).sum()) < len(drawn[0]) // 100


@pytest.mark.parametrize("head", HEADS)
def test_a_function_of_the_users_own_is_one_entry(make_model, make_batch, monkeypatch, head):
    asked = []

    def last_first(model, batches, loss):
        asked.extend(float(loss(model, batch).detach()) for batch in batches)
        units = {name: torch.arange(float(block.units)) for name, block in family_of(model).blocks(model).items()}
        return Scores(units, {name: float(name.rpartition(".")[2]) for name in family_of(model).layers(model)})

    monkeypatch.setitem(CRITERIA, "last_first", last_first)
    model, batch = make_model(head), make_batch(head, labelled=True)
    config = PruningConfig(criterion="last_first", heads=0.5, neurons=0.5, layers=0.3, multiple_of=1, recovery=False)
    selection = select_units(model, config, [batch])
    assert asked == [pytest.approx(float(example_loss(model, batch).detach()), rel=1e-5)]
    assert {name.rpartition(".")[2] for name in selection.layers} == {"1", "2"}
    for name, kept in selection.units.items():
        units = family_of(model).blocks(model)[name].units
        assert kept == (() if ".0." in name else tuple(range(units // 2, units)))
    student = prune(model, config, [batch])
    assert len(asked) == 2
    assert list(student.state_dict()) == list((expected := remove_units(model, selection)).state_dict())
    assert all(map(torch.equal, student.state_dict().values(), expected.state_dict().values()))
