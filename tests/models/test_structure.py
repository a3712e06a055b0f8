import json

import pytest
import torch
from torch import nn

from hf_efficient.models import LayerStructure, Structure, family_of
from hf_efficient.models.blocks import BiasOnly, EmptyBlock, narrow_linear

STRUCTURE = Structure(
    {
        "encoder": (
            LayerStructure(0, {"attention": (1, 3)}, {"feed_forward": 40}),
            LayerStructure(2, {"attention": ()}, {"feed_forward": 0}),
        )
    }
)


def test_structure_survives_json():
    assert Structure.from_dict(json.loads(json.dumps(STRUCTURE.to_dict()))) == STRUCTURE


def test_json_form_is_the_one_that_saved_configs_hold():
    assert STRUCTURE.to_dict() == {
        "encoder": [
            {"source": 0, "heads": {"attention": [1, 3]}, "neurons": {"feed_forward": 40}},
            {"source": 2, "heads": {"attention": []}, "neurons": {"feed_forward": 0}},
        ]
    }


def test_bias_answers_its_bias_for_every_position():
    bias = BiasOnly(3)
    bias.load_state_dict({"bias": torch.tensor([1.0, 2.0, 3.0])})
    answer = bias(torch.full((2, 4, 7), 9.0))
    assert answer.shape == (2, 4, 3)
    assert torch.equal(answer[1, 3], torch.tensor([1.0, 2.0, 3.0]))


def test_no_units_hands_hidden_states_through():
    hidden = torch.randn(2, 3)
    assert EmptyBlock(returns_attention=False)(hidden) is hidden
    assert EmptyBlock(returns_attention=True)(hidden, "mask", position=1) == (hidden, None)


def test_narrowing_outputs_keeps_the_rows_and_their_bias():
    linear = nn.Linear(3, 4)
    narrowed = narrow_linear(linear, torch.tensor([3, 1]), dim=0)
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(narrowed(inputs), linear(inputs)[:, [3, 1]])
    assert (narrowed.in_features, narrowed.out_features) == (3, 2)


def test_narrowing_inputs_keeps_the_whole_bias():
    linear = nn.Linear(4, 3)
    narrowed = narrow_linear(linear, torch.tensor([0, 2]), dim=1)
    inputs = torch.randn(5, 4)
    expected = linear(inputs * torch.tensor([1.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(narrowed(inputs[:, [0, 2]]), expected)
    assert (narrowed.in_features, narrowed.out_features) == (2, 3)


def test_narrowing_keeps_dtype_mode_frozenness_and_absence_of_a_bias():
    linear = nn.Linear(4, 4, bias=False, dtype=torch.float64).requires_grad_(False).eval()
    narrowed = narrow_linear(linear, torch.tensor([2]), dim=0)
    assert narrowed.bias is None
    assert narrowed.weight.dtype == torch.float64
    assert not narrowed.weight.requires_grad
    assert not narrowed.training


def test_rows_of_a_head_are_those_of_its_dimensions(make_model):
    model = make_model()
    block = family_of(model).blocks(model)["encoder.1.attention"]
    assert (block.units, block.unit_size) == (4, 8)
    assert block.rows([2, 0]).tolist() == [*range(16, 24), *range(8)]


def test_blocks_are_narrowed_step_by_step_until_nothing_is_left(make_model):
    model = make_model()
    block = family_of(model).blocks(model)["encoder.0.attention"]
    bias = block.output.bias.detach().clone()
    widths = []
    for keep in ([0, 1, 3], [1], []):
        block.narrow(keep)
        widths.append((block.units, [linear.out_features for linear in block.input_linears]))
    assert widths == [(3, [24, 24, 24]), (1, [8, 8, 8]), (0, [])]
    assert torch.equal(block.output.bias, bias)
    block.narrow([])
    assert block.units == 0


def test_narrowing_to_every_unit_touches_nothing(make_model):
    model = make_model()
    block = family_of(model).blocks(model)["encoder.0.feed_forward"]
    before = block.output
    block.narrow(range(64))
    assert block.output is before


def test_unknown_architecture_is_told_how_to_add_a_family():
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10, n_positions=8))
    with pytest.raises(
        TypeError, match=r"model_type 'gpt2' cannot be pruned: supported are bert.* subclass hf_efficient.models.Family"
    ):
        family_of(model)


def test_unknown_task_head_is_told_which_ones_there_are(make_model):
    from transformers import BertForNextSentencePrediction

    family = family_of(make_model())
    with pytest.raises(TypeError, match=r"BertForNextSentencePrediction cannot be pruned: use one of BertModel, "):
        family.class_for(BertForNextSentencePrediction, make_model().config)


def test_linear_without_bias_leaves_zeros_and_no_weights():
    rest = BiasOnly(3, bias=False)
    assert list(rest.parameters()) == []
    assert torch.equal(rest(torch.ones(2, 5, 7, dtype=torch.float16)), torch.zeros(2, 5, 3, dtype=torch.float16))
