"""ALBERT repeats layers: a removal concerns all repetitions. Several groups are tested as other families are."""

import pytest
import torch
from transformers import AlbertForSequenceClassification, AutoModelForSequenceClassification

from hf_efficient import PruningConfig, prune
from hf_efficient.errors import UserError
from hf_efficient.models import family_of
from hf_efficient.models.pruned_albert import PrunedAlbertForSequenceClassification
from hf_efficient.pruning.gates import apply_gates
from hf_efficient.pruning.selection import Selection, remove_units

HEAD = "AlbertForSequenceClassification"
ONE_LAYER = {"num_hidden_groups": 1, "num_hidden_layers": 4}  # as the models that people use


@pytest.mark.parametrize("heads", [(1, 2), ()])
def test_shared_layer_is_pruned_in_all_repetitions(make_model, make_batch, outputs, assert_same, heads, tmp_path):
    model, batch = make_model(HEAD, **ONE_LAYER).double(), make_batch(HEAD)
    units = {"encoder.0.attention": heads, "encoder.0.feed_forward": tuple(range(0, 64, 3))}
    gates = {name: torch.zeros(block.units) for name, block in family_of(model).blocks(model).items()}
    for name, kept in units.items():
        gates[name][list(kept)] = 1
    with apply_gates(model, gates):
        expected = outputs(model, batch)
    student = remove_units(model, Selection(("encoder.0",), units))
    assert_same(outputs(student, batch), expected, atol=1e-9)
    assert type(student) is PrunedAlbertForSequenceClassification
    assert (student.config.num_hidden_groups, student.config.num_hidden_layers) == (1, 4)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_same(outputs(loaded, batch), outputs(student, batch), atol=0)


def test_outputs_of_a_shared_layer_are_reconstructed_for_all_repetitions(make_model, make_batch, outputs):
    model = make_model(HEAD, **ONE_LAYER)
    batches, held_out = [make_batch(HEAD, seed=seed) for seed in range(1, 20)], make_batch(HEAD)
    errors = []
    for recovery in (False, True):
        pruning = PruningConfig(neurons=0.25, criterion="magnitude", recovery=recovery)
        student = prune(model, pruning, batches)
        difference = outputs(student.base_model, held_out)["last_hidden_state"]
        difference = difference - outputs(model.base_model, held_out)["last_hidden_state"]
        errors.append(float(difference[held_out["attention_mask"].bool()].norm()))
    assert 0 < errors[1] < errors[0]


def test_layers_are_not_removed_from_one_that_is_repeated(make_model):
    with pytest.raises(UserError, match="repeats one layer 4 times, and no layer can be removed: give heads"):
        prune(make_model(HEAD, **ONE_LAYER), PruningConfig(layers=0.5))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_hidden_groups": 2, "num_hidden_layers": 3}, "num_hidden_layers=3 is not a multiple of"),
        ({"num_hidden_groups": 1, "num_hidden_layers": 2, "inner_group_num": 2}, "only ALBERT models with one layer"),
    ],
)
def test_other_kinds_of_sharing_are_refused(make_model, sizes, message):
    config = make_model(HEAD, **sizes).config
    with pytest.raises(ValueError, match=message):
        prune(AlbertForSequenceClassification(config), PruningConfig(heads=0.5, criterion="magnitude"))
