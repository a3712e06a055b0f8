"""Tests of rounding to integers."""

import pytest
import torch

from hf_efficient.quantization.rounding import BLOCK_COLUMNS, quantize_rows, round_with_compensation


def case(rows=48, columns=150, tokens=600, seed=0):
    """Return a weight and correlated inputs (tokens, columns)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, 30, generator=generator) @ torch.randn(30, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator), inputs


def test_quantize_rows_uses_a_scale_per_row():
    values = torch.tensor([[1.0, -0.5, 0.3], [100.0, 0.2, -50.0], [0.0, 0.0, 0.0]])
    integers, scales = quantize_rows(values, 127)
    assert integers.tolist() == [[127, -64, 38], [127, 0, -64], [0, 0, 0]]
    assert scales.flatten().tolist() == pytest.approx([1 / 127, 100 / 127, 1])
    assert (integers * scales - values).abs().max() <= 100 / 127 / 2


@pytest.mark.parametrize("limit", [7, 64, 127])
def test_quantize_rows_uses_all_integers_within_the_limit(limit):
    integers, _ = quantize_rows(torch.linspace(-1, 1, 1001)[None], limit)
    assert integers.unique().tolist() == list(range(-limit, limit + 1))


@pytest.mark.parametrize("limit", [7, 64])
def test_compensated_rounding_reduces_the_error_of_outputs(limit):
    weight, inputs = case()
    nearest, scale = quantize_rows(weight, limit)
    compensated = round_with_compensation(weight, scale, inputs.T @ inputs, limit)
    errors = [float((inputs @ (integers * scale - weight).T).norm()) for integers in (nearest, compensated)]
    assert errors[1] < 0.5 * errors[0]
    assert torch.equal(compensated, compensated.round())
    assert compensated.abs().max() <= limit


def test_columns_of_later_blocks_make_up_for_errors_too():
    weight, inputs = case(columns=BLOCK_COLUMNS + 1)
    inputs[:, -1] = inputs[:, 0]  # the last column alone can make up for the first one
    inputs[:, 1:-1] = torch.randn(len(inputs), BLOCK_COLUMNS - 1, generator=torch.Generator().manual_seed(1))
    _, scale = quantize_rows(weight, 7)
    integers = round_with_compensation(weight, scale, inputs.T @ inputs, 7)
    pair = (integers * scale - weight)[:, [0, -1]].sum(1).abs()
    inside = integers[:, -1].abs() < 7
    assert (pair[inside] <= 0.55 * scale.flatten()[inside]).all()


def test_uncorrelated_inputs_give_the_nearest_integers():
    weight, _ = case()
    nearest, scale = quantize_rows(weight, 64)
    assert torch.equal(round_with_compensation(weight, scale, 3 * torch.eye(150), 64), nearest)


@pytest.mark.parametrize("size", [0.0, float("nan")])
def test_inputs_without_size_give_the_nearest_integers(size):
    weight, _ = case()
    nearest, scale = quantize_rows(weight, 64)
    assert torch.equal(round_with_compensation(weight, scale, torch.full((150, 150), size), 64), nearest)


def test_channels_without_inputs_are_rounded_to_the_nearest():
    weight, inputs = case()
    inputs[:, 40:60] = 0
    nearest, scale = quantize_rows(weight, 64)
    integers = round_with_compensation(weight, scale, inputs.T @ inputs, 64)
    assert torch.equal(integers[:, 40:60], nearest[:, 40:60])


def test_rounding_is_deterministic_and_keeps_the_weight():
    weight, inputs = case()
    before = weight.clone()
    _, scale = quantize_rows(weight, 64)
    first, second = (round_with_compensation(weight, scale, inputs.T @ inputs, 64) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(weight, before)
