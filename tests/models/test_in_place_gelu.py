"""Tests of GELU without new memory."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_efficient import quantize
from hf_efficient.models.in_place_gelu import InPlaceGelu


def test_activations_replace_the_input():
    states = torch.randn(5, 7)
    expected = F.gelu(states)
    activations = InPlaceGelu()(states)
    assert activations.data_ptr() == states.data_ptr()
    assert torch.equal(activations, expected)


def test_gradients_are_those_of_gelu():
    states = torch.randn(5, 7, requires_grad=True)
    outputs = states * 2
    kept = outputs.detach().clone()
    InPlaceGelu()(outputs).sum().backward()
    assert torch.equal(outputs, kept)
    other = kept.clone().requires_grad_()
    F.gelu(other).sum().backward()
    assert torch.allclose(states.grad, 2 * other.grad)


@pytest.mark.parametrize("head", ["BertForSequenceClassification", "DistilBertForSequenceClassification"])
def test_int8_models_with_gelu_use_it(make_model, make_batch, head):
    quantized = quantize(make_model(head))
    replaced = {name: module for name, module in quantized.named_modules() if isinstance(module, InPlaceGelu)}
    assert replaced
    batch = make_batch(head)
    with torch.inference_mode():
        logits = quantized(**batch).logits
        for name in replaced:
            quantized.set_submodule(name, nn.GELU())
        assert torch.equal(quantized(**batch).logits, logits)
