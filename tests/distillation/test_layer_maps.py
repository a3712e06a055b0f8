import re

import pytest
import torch

from hf_efficient import quantize
from hf_efficient.distillation.layer_maps import last, layer_sources, map_layers, parse_layer_map, skip, uniform
from hf_efficient.distillation.students import evenly_spaced_layers, student_from_config, student_from_layers
from hf_efficient.models import family_of
from hf_efficient.pruning.selection import remove_units


@pytest.mark.parametrize(
    ("layer_map", "student", "teacher", "expected"),
    [
        (uniform, 6, 12, [1, 3, 5, 7, 9, 11]),
        (uniform, 3, 6, [1, 3, 5]),
        (uniform, 4, 12, [2, 5, 8, 11]),
        (uniform, 4, 4, [0, 1, 2, 3]),
        (uniform, 6, 3, [0, 0, 1, 1, 2, 2]),
        (uniform, 1, 12, [11]),
        (uniform, 1, 1, [0]),
        (skip, 6, 12, [1, 3, 5, 7, 9]),
        (skip, 3, 6, [1, 3]),
        (skip, 6, 3, [0, 1]),
        (skip, 1, 12, [11]),
        (skip, 1, 1, [0]),
    ],
)
def test_named_maps_are_those_of_their_papers(layer_map, student, teacher, expected):
    assert layer_map(student, teacher) == list(enumerate(expected))


def test_the_last_layers_of_both_are_paired():
    assert last(6, 12) == [(0, 6), (1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]
    assert last(6, 3) == [(3, 0), (4, 1), (5, 2)]
    assert last(1, 1) == [(0, 0)]


@pytest.mark.parametrize("student", range(1, 13))
def test_uniform_pairs_every_layer_in_order_and_the_last_with_the_last(student):
    theirs = [teacher for _, teacher in uniform(student, 12)]
    assert theirs == sorted(set(theirs))
    assert theirs[-1] == 11
    gaps = [after - before for before, after in zip([-1, *theirs], theirs, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_pairs_are_read_by_stack():
    assert parse_layer_map("0:1, 1:3,2:5") == {"": [(0, 1), (1, 3), (2, 5)]}
    assert parse_layer_map("encoder.0:1,decoder.2:0") == {"encoder": [(0, 1)], "decoder": [(2, 0)]}
    assert parse_layer_map("skip") is parse_layer_map("auto") is None


@pytest.mark.parametrize("text", ["", "every", "0", "0:", ":1", "0:1,", "-1:0", "0:1:2", "0;1"])
def test_what_is_no_map_is_told_what_is_one(text):
    message = (
        f"layer_map={text!r} is unknown: give one of auto, uniform, last, skip, or pairs student:teacher counted from"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_layer_map(text)


def numbers(pairs, stack="encoder"):
    found = [(ours, theirs) for ours, theirs in pairs if ours.startswith(stack)]
    assert all(theirs.startswith(stack) for _, theirs in found)
    return [tuple(int(name.partition(".")[2]) for name in pair) for pair in found]


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "DistilBertForMaskedLM", "ElectraModel", "T5Model"])
def test_auto_pairs_what_is_left_with_the_last_layer_whose_work_it_does(make_model, select, head):
    teacher = make_model(head)
    student = remove_units(teacher, select("a layer gone", head))
    for stack in family_of(teacher).stacks(teacher):
        assert numbers(map_layers(student, teacher, "auto"), stack) == [(0, 1), (1, 2)]
        assert numbers(map_layers(student, teacher, "uniform"), stack) == uniform(2, 3)
        assert numbers(map_layers(teacher, teacher, "auto"), stack) == [(0, 0), (1, 1), (2, 2)]


def test_auto_finds_the_same_layers_in_a_teacher_that_is_pruned_too(make_model, select):
    model = make_model()
    thinned = remove_units(model, select("a layer gone"))
    assert numbers(map_layers(thinned, remove_units(model, select("uneven widths")), "auto")) == [(0, 1), (1, 2)]
    assert numbers(map_layers(thinned, thinned, "auto")) == [(0, 0), (1, 1)]


def test_auto_is_uniform_where_the_teacher_lacks_a_layer_or_is_of_another_family(make_model, select):
    model = make_model()
    whole, thinned = remove_units(model, select("uneven widths")), remove_units(model, select("a layer gone"))
    assert numbers(map_layers(whole, thinned, "auto")) == uniform(3, 2)
    other = make_model("DistilBertForSequenceClassification", n_layers=6)
    assert numbers(map_layers(whole, other, "auto")) == [(0, 1), (1, 3), (2, 5)]


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "T5ForConditionalGeneration"])
def test_a_stock_student_of_some_layers_remembers_which(make_model, head, tmp_path):
    teacher = make_model(head)
    student_from_layers(teacher, "0,2").save_pretrained(tmp_path)
    student = type(teacher).from_pretrained(tmp_path)
    assert all(sources == [0, 2] for sources in layer_sources(student).values())
    for stack in family_of(teacher).stacks(teacher):
        assert numbers(map_layers(student, teacher, "auto"), stack) == [(0, 1), (1, 2)]
    again = student_from_layers(student, [1])
    assert all(sources == [2] for sources in layer_sources(again).values())
    size = "d_ff=16" if head.startswith("T5") else "intermediate_size=16"
    assert not hasattr(student_from_config(student, size).config, "layer_sources")


def test_explicit_pairs_follow_their_layers_when_others_go(make_model):
    teacher = make_model()
    before = layer_sources(teacher)
    student = student_from_layers(teacher, "0,2")
    assert numbers(map_layers(student, teacher, "0:0,1:1,2:2", before)) == [(0, 0), (1, 2)]
    with pytest.raises(ValueError, match=re.escape("layer_map='1:1' names layers of the encoder that are all pruned")):
        map_layers(student, teacher, "1:1", before)


def test_explicit_pairs_hold_in_every_stack_or_in_theirs(make_model):
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
        ("decoder.0:1", "layer_map='decoder.0:1' names a stack that there is not: there are encoder"),
    ],
)
def test_layers_that_are_not_there_are_named(make_model, layer_map, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        map_layers(make_model(), make_model(), layer_map)


def test_other_stacks_do_not_compare(make_model):
    message = "the student has the stacks encoder and the teacher encoder, decoder: what is inside them does not"
    with pytest.raises(ValueError, match=message):
        map_layers(make_model("T5EncoderModel"), make_model("T5Model"), "auto")


# ---- students ----


def test_kept_layers_lie_at_even_distances():
    assert evenly_spaced_layers(6, 12) == [0, 2, 4, 6, 8, 10]
    assert evenly_spaced_layers(1, 12) == [0]
    assert evenly_spaced_layers(12, 12) == list(range(12))
    with pytest.raises(ValueError, match="a student of 4 layers cannot be taken from 3: give 1 to 3"):
        evenly_spaced_layers(4, 3)


def renamed(weights, stack, chosen):
    """Returns the teacher's weights under the names that a student of the layers `chosen` has for them."""
    found = {}
    for name, value in weights.items():
        layer = re.search(rf"({stack})\.(layer|block)\.(\d+)\.", name)
        if layer is None:
            found[name] = value
        elif int(layer[3]) in chosen:
            found[name.replace(layer[0], f"{layer[1]}.{layer[2]}.{chosen.index(int(layer[3]))}.")] = value
    return found


@pytest.mark.parametrize(
    ("kept", "chosen"),
    [(2, [0, 1]), ("2", [0, 1]), ("1", [0]), ("0,2", [0, 2]), ([0, 2], [0, 2]), ([1, 2], [1, 2]), ("2, 0", [0, 2])],
    ids=str,
)
@pytest.mark.parametrize("head", ["BertForSequenceClassification", "DistilBertForTokenClassification"])
def test_a_student_of_layers_has_the_weights_of_its_teacher(make_model, head, kept, chosen):
    teacher = make_model(head)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = student_from_layers(teacher, kept)
    expected, found = renamed(before, "encoder|transformer", chosen), student.state_dict()
    assert type(student) is type(teacher)
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert student.config.num_hidden_layers == len(chosen)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_student_of_layers_needs_a_teacher_in_float(make_model):
    with pytest.raises(ValueError, match="layers of a quantized model: take its float form"):
        student_from_layers(quantize(make_model()), 1)


def test_a_student_of_one_named_layer_has_that_layer(make_model):
    teacher = make_model()
    found = student_from_layers(teacher, [2]).bert.encoder.layer
    assert len(found) == 1
    assert torch.equal(found[0].output.dense.weight, teacher.bert.encoder.layer[2].output.dense.weight)


def test_both_stacks_of_a_t5_are_thinned_on_their_own(make_model, make_batch):
    teacher = make_model("T5ForConditionalGeneration")
    student = student_from_layers(teacher, "encoder=2,decoder=1")
    expected = renamed(renamed(teacher.state_dict(), "encoder", [0, 1]), "decoder", [0])
    found = student.state_dict()
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert student(**make_batch("T5ForConditionalGeneration", labelled=True)).loss.isfinite()
    untouched = student_from_layers(teacher, "decoder=1").config
    assert (untouched.num_layers, untouched.num_decoder_layers) == (3, 1)


def test_a_student_without_the_first_layer_keeps_the_table_of_positions(make_model, make_batch):
    teacher = make_model("T5ForConditionalGeneration")
    student = student_from_layers(teacher, "1,2")
    for stack in ("encoder", "decoder"):
        tables = [
            getattr(model, stack).block[0].layer[0].SelfAttention.relative_attention_bias.weight
            for model in (student, teacher)
        ]
        assert torch.equal(*tables)


@pytest.mark.parametrize("kept", ["", "some", "0,3", "encoder=", "middle=2", "encoder=2,1", "1.5", [-1, 2]], ids=repr)
def test_what_keeps_no_layers_is_told_what_does(make_model, kept):
    with pytest.raises(ValueError, match=r"keeps no layers: give a number such as 3, .* there are 3 in the encoder"):
        student_from_layers(make_model(), kept)


@pytest.mark.parametrize("kept", [0, "4", "encoder=4"])
def test_more_layers_than_there_are_are_refused(make_model, kept):
    with pytest.raises(ValueError, match=r"a student of [04] layers cannot be taken from 3: give 1 to 3"):
        student_from_layers(make_model(), kept)


def test_a_student_of_a_config_is_new_but_for_its_task(make_model, make_batch):
    teacher = make_model(id2label={0: "bad", 1: "good", 2: "so so"}, label2id={"bad": 0, "good": 1, "so so": 2})
    before = teacher.config.to_dict()
    student = student_from_config(teacher, "hidden_size=16, num_attention_heads=2,hidden_dropout_prob=0.25")
    config = student.config
    assert type(student) is type(teacher)
    assert (config.hidden_size, config.num_attention_heads, config.hidden_dropout_prob) == (16, 2, 0.25)
    assert isinstance(config.hidden_size, int)
    assert (config.num_hidden_layers, config.vocab_size, config.id2label) == (3, 100, teacher.config.id2label)
    assert student(**make_batch()).logits.shape == (3, 3)
    assert teacher.config.to_dict() == before


def test_a_student_of_a_pruned_teacher_has_a_stock_class(make_model, select):
    teacher = make_model()
    student = student_from_config(remove_units(teacher, select("all of these")), "num_hidden_layers=1")
    assert type(student) is type(teacher)
    assert student.base_model.encoder.layer[0].attention.self.query.out_features == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("width=3", "student_config='width=3' changes nothing of a BertConfig: give numeric fields that it has"),
        ("hidden_size", "student_config='hidden_size' changes nothing of a BertConfig"),
        ("hidden_size=wide", "student_config='hidden_size=wide' changes nothing of a BertConfig"),
        ("hidden_act=1", "student_config='hidden_act=1' changes nothing of a BertConfig"),
        ("hidden_size=30", "student_config: hidden_size=30 is no multiple of num_attention_heads=4"),
        ("num_attention_heads=0", "num_attention_heads=0"),
    ],
)
def test_a_config_that_does_not_fit_is_told_why(make_model, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        student_from_config(make_model(), changes)
