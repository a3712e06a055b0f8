"""Outputs of an int8 model on a machine without kernels for integers."""

import pytest
import torch

from hf_efficient import QuantizationConfig, quantize
from hf_efficient.models import int8, int8_kernels
from hf_efficient.variants.float_inputs import max_difference_without_kernels, with_float_inputs


@pytest.fixture
def quantized(make_model, make_batch, monkeypatch):
    monkeypatch.setattr(int8_kernels, "MIN_WEIGHT_ENTRIES", {})
    return quantize(make_model(), QuantizationConfig("int8_static"), [make_batch()])


def test_copy_computes_as_a_machine_without_kernels(quantized, make_batch, monkeypatch):
    copy = with_float_inputs(quantized)
    with torch.inference_mode():
        outputs = copy(**make_batch()).logits
        monkeypatch.setattr(int8, "build_kernel", lambda *_: None)
        quantized.to(torch.float32)  # packed again where it is used
        assert torch.equal(quantized(**make_batch()).logits, outputs)


def test_difference_is_relative_to_the_largest_output(quantized, make_batch):
    with torch.inference_mode():
        outputs, expected = (model(**make_batch()).logits for model in (quantized, with_float_inputs(quantized)))
    difference = max_difference_without_kernels(quantized, [make_batch(labelled=True)])
    assert difference == pytest.approx(float((outputs - expected).abs().max() / expected.abs().max()))
    assert (difference > 0) == (int8_kernels.select_kernel() is not None)


def test_models_without_8_bit_inputs_have_no_difference(make_model, make_batch):
    for model in (make_model(), quantize(make_model(), QuantizationConfig("int8_weight_only"))):
        assert with_float_inputs(model) is None
        assert max_difference_without_kernels(model, [make_batch()]) is None
