import re

import pytest
import torch
from transformers import BertForNextSentencePrediction

from hf_efficient import quantize
from hf_efficient.distillation.students import evenly_spaced_layers, student_from_config, student_from_layers
from hf_efficient.pruning.selection import remove_units


def test_layers_are_evenly_spaced():
    assert evenly_spaced_layers(6, 12) == [0, 2, 4, 6, 8, 10]
    assert evenly_spaced_layers(1, 12) == [0]
    assert evenly_spaced_layers(12, 12) == list(range(12))
    with pytest.raises(ValueError, match="a student of 4 layers cannot be taken from 3: give 1 to 3"):
        evenly_spaced_layers(4, 3)


def weights_of_layers(weights, stack, kept):
    """Return the teacher's weights under their names in a student with the layers `kept`."""
    renamed = {}
    for name, value in weights.items():
        layer = re.search(rf"({stack})\.(layer|block)\.(\d+)\.", name)
        if layer is None:
            renamed[name] = value
        elif int(layer[3]) in kept:
            renamed[name.replace(layer[0], f"{layer[1]}.{layer[2]}.{kept.index(int(layer[3]))}.")] = value
    return renamed


@pytest.mark.parametrize(
    ("kept", "expected_layers"),
    [(2, [0, 1]), ("2", [0, 1]), ("1", [0]), ("0,2", [0, 2]), ([0, 2], [0, 2]), ([2], [2]), ("2, 0", [0, 2])],
    ids=str,
)
@pytest.mark.parametrize("head", ["BertForSequenceClassification", "DistilBertForTokenClassification"])
def test_student_of_layers_has_their_weights(make_model, head, kept, expected_layers):
    teacher = make_model(head)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = student_from_layers(teacher, kept)
    expected, weights = weights_of_layers(before, "encoder|transformer", expected_layers), student.state_dict()
    assert type(student) is type(teacher)
    assert weights.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(weights[name], value)]
    assert student.config.num_hidden_layers == len(expected_layers)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_quantized_teacher_is_refused(make_model):
    with pytest.raises(ValueError, match="layers of a quantized model: give the model before quantization"):
        student_from_layers(quantize(make_model()), 1)


def test_stacks_of_a_t5_keep_their_own_numbers_of_layers(make_model, make_batch):
    teacher = make_model("T5ForConditionalGeneration")
    student = student_from_layers(teacher, "encoder=2,decoder=1")
    expected = weights_of_layers(weights_of_layers(teacher.state_dict(), "encoder", [0, 1]), "decoder", [0])
    weights = student.state_dict()
    assert weights.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(weights[name], value)]
    assert student(**make_batch("T5ForConditionalGeneration", labelled=True)).loss.isfinite()
    unchanged_encoder = student_from_layers(teacher, "decoder=1").config
    assert (unchanged_encoder.num_layers, unchanged_encoder.num_decoder_layers) == (3, 1)


def test_student_without_the_first_layer_keeps_the_table_of_position_biases(make_model):
    teacher = make_model("T5ForConditionalGeneration")
    student = student_from_layers(teacher, "1,2")
    for stack in ("encoder", "decoder"):
        tables = [
            getattr(model, stack).block[0].layer[0].SelfAttention.relative_attention_bias.weight
            for model in (student, teacher)
        ]
        assert torch.equal(*tables)


@pytest.mark.parametrize("kept", ["", "some", "0,3", "encoder=", "middle=2", "encoder=2,1", "1.5", [-1, 2]], ids=repr)
def test_invalid_layers_are_refused(make_model, kept):
    with pytest.raises(ValueError, match=r"keeps no layers: give a number such as 3, .* there are 3 in the encoder"):
        student_from_layers(make_model(), kept)


@pytest.mark.parametrize("kept", [0, "4", "encoder=4"])
def test_number_of_layers_out_of_range_is_refused(make_model, kept):
    with pytest.raises(ValueError, match=r"a student of [04] layers cannot be taken from 3: give 1 to 3"):
        student_from_layers(make_model(), kept)


def test_student_from_config_has_the_changes_and_the_task_of_its_teacher(make_model, make_batch):
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


def test_student_from_the_config_of_a_pruned_teacher_has_a_stock_class(make_model, select):
    teacher = make_model()
    student = student_from_config(remove_units(teacher, select("all of these")), "num_hidden_layers=1")
    assert type(student) is type(teacher)
    assert student.base_model.encoder.layer[0].attention.self.query.out_features == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("width=3", "student_config='width=3' does not change a BertConfig: give numeric fields that it has"),
        ("hidden_size", "student_config='hidden_size' does not change a BertConfig"),
        ("hidden_size=wide", "student_config='hidden_size=wide' does not change a BertConfig"),
        ("hidden_act=1", "student_config='hidden_act=1' does not change a BertConfig"),
        ("hidden_size=30", "student_config: hidden_size=30 is not a multiple of num_attention_heads=4"),
        ("num_attention_heads=0", "num_attention_heads=0"),
    ],
)
def test_invalid_config_changes_are_refused(make_model, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        student_from_config(make_model(), changes)


def test_unsupported_task_head_is_refused(make_model):
    model = BertForNextSentencePrediction(make_model().config)
    with pytest.raises(ValueError, match="BertForNextSentencePrediction cannot be pruned: use one of BertModel"):
        student_from_config(model, "num_hidden_layers=1")
