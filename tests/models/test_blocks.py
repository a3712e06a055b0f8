import torch
from torch import nn

from hf_efficient.models import family_of
from hf_efficient.models.blocks import BiasOnly, EmptyBlock, narrow_linear


def test_bias_only_returns_its_bias_at_every_position():
    bias_only = BiasOnly(3)
    bias_only.load_state_dict({"bias": torch.tensor([1.0, 2.0, 3.0])})
    output = bias_only(torch.full((2, 4, 7), 9.0))
    assert output.shape == (2, 4, 3)
    assert torch.equal(output[1, 3], torch.tensor([1.0, 2.0, 3.0]))


def test_bias_only_without_bias_returns_zeros_and_has_no_weights():
    bias_only = BiasOnly(3, bias=False)
    assert list(bias_only.parameters()) == []
    output = bias_only(torch.ones(2, 5, 7, dtype=torch.float16))
    assert torch.equal(output, torch.zeros(2, 5, 3, dtype=torch.float16))


def test_empty_block_returns_hidden_states_unchanged():
    hidden_states = torch.randn(2, 3)
    assert EmptyBlock(returns_attention=False)(hidden_states) is hidden_states
    assert EmptyBlock(returns_attention=True)(hidden_states, "mask", position=1) == (hidden_states, None)


def test_narrowed_outputs_keep_their_rows_and_bias():
    linear = nn.Linear(3, 4)
    narrowed = narrow_linear(linear, torch.tensor([3, 1]), dim=0)
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(narrowed(inputs), linear(inputs)[:, [3, 1]])
    assert (narrowed.in_features, narrowed.out_features) == (3, 2)


def test_narrowed_inputs_keep_the_complete_bias():
    linear = nn.Linear(4, 3)
    narrowed = narrow_linear(linear, torch.tensor([0, 2]), dim=1)
    inputs = torch.randn(5, 4)
    expected = linear(inputs * torch.tensor([1.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(narrowed(inputs[:, [0, 2]]), expected)
    assert (narrowed.in_features, narrowed.out_features) == (2, 3)


def test_narrowed_linear_keeps_dtype_mode_frozen_weights_and_missing_bias():
    linear = nn.Linear(4, 4, bias=False, dtype=torch.float64).requires_grad_(False).eval()
    narrowed = narrow_linear(linear, torch.tensor([2]), dim=0)
    assert narrowed.bias is None
    assert narrowed.weight.dtype == torch.float64
    assert not narrowed.weight.requires_grad
    assert not narrowed.training


def test_rows_of_a_head_are_its_dimensions(make_model):
    model = make_model()
    block = family_of(model).blocks(model)["encoder.1.attention"]
    assert (block.units, block.unit_size) == (4, 8)
    assert block.rows([2, 0]).tolist() == [*range(16, 24), *range(8)]


def test_block_is_narrowed_repeatedly_until_it_is_empty(make_model):
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


def test_keeping_all_units_changes_nothing(make_model):
    model = make_model()
    block = family_of(model).blocks(model)["encoder.0.feed_forward"]
    before = block.output
    block.narrow(range(64))
    assert block.output is before
