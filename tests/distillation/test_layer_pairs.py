import re

import pytest

from hf_efficient.distillation.layer_maps import uniform
from hf_efficient.distillation.layer_pairs import layer_sources, map_layers
from hf_efficient.distillation.students import student_from_config, student_from_layers
from hf_efficient.models import family_of
from hf_efficient.pruning.selection import remove_units


def pairs_of_indices(pairs, stack="encoder"):
    """Return the pairs of layer indices in one stack."""
    selected = [pair for pair in pairs if pair[0].startswith(stack)]
    assert all(teacher_layer.startswith(stack) for _, teacher_layer in selected)
    return [tuple(int(name.partition(".")[2]) for name in pair) for pair in selected]


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "DistilBertForMaskedLM", "ElectraModel", "T5Model"])
def test_auto_pairs_a_layer_with_the_last_one_before_the_next_kept(make_model, select, head):
    teacher = make_model(head)
    student = remove_units(teacher, select("a layer gone", head))
    for stack in family_of(teacher).stacks(teacher):
        assert pairs_of_indices(map_layers(student, teacher, "auto"), stack) == [(0, 1), (1, 2)]
        assert pairs_of_indices(map_layers(student, teacher, "uniform"), stack) == uniform(2, 3)
        assert pairs_of_indices(map_layers(teacher, teacher, "auto"), stack) == [(0, 0), (1, 1), (2, 2)]


def test_auto_finds_the_layers_of_a_pruned_teacher(make_model, select):
    model = make_model()
    two_layers = remove_units(model, select("a layer gone"))
    teacher = remove_units(model, select("uneven widths"))
    assert pairs_of_indices(map_layers(two_layers, teacher, "auto")) == [(0, 1), (1, 2)]
    assert pairs_of_indices(map_layers(two_layers, two_layers, "auto")) == [(0, 0), (1, 1)]


def test_auto_is_uniform_if_the_teacher_lacks_a_layer_or_has_another_family(make_model, select):
    model = make_model()
    three_layers, two_layers = (
        remove_units(model, select("uneven widths")),
        remove_units(model, select("a layer gone")),
    )
    assert pairs_of_indices(map_layers(three_layers, two_layers, "auto")) == uniform(3, 2)
    other_family = make_model("DistilBertForSequenceClassification", n_layers=6)
    assert pairs_of_indices(map_layers(three_layers, other_family, "auto")) == [(0, 1), (1, 3), (2, 5)]


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "T5ForConditionalGeneration"])
def test_stock_student_of_some_layers_keeps_their_sources(make_model, head, tmp_path):
    teacher = make_model(head)
    student_from_layers(teacher, "0,2").save_pretrained(tmp_path)
    student = type(teacher).from_pretrained(tmp_path)
    assert all(sources == [0, 2] for sources in layer_sources(student).values())
    for stack in family_of(teacher).stacks(teacher):
        assert pairs_of_indices(map_layers(student, teacher, "auto"), stack) == [(0, 1), (1, 2)]
    smaller = student_from_layers(student, [1])
    assert all(sources == [2] for sources in layer_sources(smaller).values())
    changes = "d_ff=16" if head.startswith("T5") else "intermediate_size=16"
    assert not hasattr(student_from_config(student, changes).config, "layer_sources")


def test_explicit_pairs_follow_their_layers_when_others_are_removed(make_model):
    teacher = make_model()
    original_sources = layer_sources(teacher)
    student = student_from_layers(teacher, "0,2")
    pairs = map_layers(student, teacher, "0:0,1:1,2:2", original_sources)
    assert pairs_of_indices(pairs) == [(0, 0), (1, 2)]
    with pytest.raises(ValueError, match=re.escape("layer_map='1:1' names layers of the encoder that are all pruned")):
        map_layers(student, teacher, "1:1", original_sources)


def test_explicit_pairs_apply_to_all_stacks_or_to_the_named_one(make_model):
    model = make_model("T5ForConditionalGeneration")
    assert map_layers(model, model, "0:2") == [("encoder.0", "encoder.2"), ("decoder.0", "decoder.2")]
    pairs = map_layers(model, model, "encoder.1:0,decoder.2:1,decoder.0:0")
    assert pairs == [("encoder.1", "encoder.0"), ("decoder.2", "decoder.1"), ("decoder.0", "decoder.0")]


@pytest.mark.parametrize(
    ("layer_map", "message"),
    [
        (
            "0:1,3:2",
            "pairs layers 3:2 of the encoder, the student has 3 layers and the teacher 3, counted from 0",
        ),
        ("2:3", "pairs layers 2:3 of the encoder, the student has 3 layers and the teacher 3, counted from 0"),
        ("decoder.0:1", "layer_map='decoder.0:1' names a stack that does not exist: there are encoder"),
    ],
)
def test_layers_that_do_not_exist_are_refused(make_model, layer_map, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        map_layers(make_model(), make_model(), layer_map)


def test_models_with_different_stacks_are_refused(make_model):
    message = "the student has the stacks encoder and the teacher encoder, decoder: their layers cannot be compared"
    with pytest.raises(ValueError, match=message):
        map_layers(make_model("T5EncoderModel"), make_model("T5Model"), "auto")
