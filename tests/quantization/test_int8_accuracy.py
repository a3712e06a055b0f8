"""An int8 classifier agrees with float on real texts, each alone and in a batch, in less memory."""

import os
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_efficient import QuantizationConfig, quantize
from hf_efficient.models.int8 import Int8Linear
from hf_efficient.models.int8_kernels import select_kernel

ASSETS = Path(os.environ.get("HF_EFFICIENT_ASSETS", "assets"))
MODEL = ASSETS / "models" / "minilm-sst2"
BATCH = 20
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir(), reason="HF_EFFICIENT_ASSETS names no folder with models"),
]


def texts_of(split, start=0, stop=None):
    file = str(ASSETS / "data" / "sst2" / f"{split}.parquet")
    return load_dataset("parquet", data_files={split: file}, split=split)["sentence"][start:stop]


@pytest.fixture(scope="module")
def encode():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return lambda texts: dict(tokenizer(list(texts), padding=True, return_tensors="pt"))


@pytest.fixture(scope="module")
def model():
    return AutoModelForSequenceClassification.from_pretrained(MODEL).eval()


@pytest.fixture(scope="module")
def static(model, encode):
    calibration = [encode(texts_of("train", start, start + BATCH)) for start in range(0, 300, BATCH)]
    return quantize(model, QuantizationConfig(), calibration)


def logits(model, texts, encode, batch=BATCH):
    with torch.no_grad():
        return torch.cat([model(**encode(texts[i : i + batch])).logits for i in range(0, len(texts), batch)])


def test_int8_agrees_with_float(model, static, encode):
    texts = sorted([*texts_of("validation"), *texts_of("train", 30_000, 31_000)], key=len)
    outputs, expected = (logits(each, texts, encode) for each in (static, model))
    assert (outputs.argmax(-1) == expected.argmax(-1)).float().mean() >= 0.993
    assert (outputs - expected).diff(dim=-1).square().mean().sqrt() <= 0.15


@pytest.mark.parametrize("scheme", ["int8_static", "int8_dynamic"])
def test_a_text_has_the_same_logits_alone_and_in_a_batch(model, static, encode, scheme):
    quantized = static if scheme == "int8_static" else quantize(model, QuantizationConfig(scheme))
    texts = texts_of("validation", 0, 200)
    difference = (logits(quantized, texts, encode) - logits(quantized, texts, encode, batch=1)).abs().amax(-1)
    assert difference.quantile(0.7) < 1e-3


@pytest.mark.skipif(select_kernel() is None, reason="no product of integers is faster than float here")
def test_tensors_in_memory_take_less_than_half_of_those_in_float(model, static, encode):
    logits(static, texts_of("validation", 0, BATCH), encode)
    linears = [module for module in static.modules() if isinstance(module, Int8Linear)]
    assert all(linear.weight is None for linear in linears)  # packed: a byte for each weight, outside of the module
    packed = sum(linear.in_features * linear.out_features for linear in linears)
    plain = sum(tensor.nbytes for tensor in (*static.parameters(), *static.buffers()))
    assert packed + plain <= 0.45 * sum(tensor.nbytes for tensor in model.parameters())
