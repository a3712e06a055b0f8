"""Int8 exports of a real classifier agree with float on real texts, each alone and in a batch."""

import os
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from export_cases import require
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_efficient import export, load_exported

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
def texts():
    return sorted([*texts_of("validation"), *texts_of("train", 30_000, 32_200)], key=len)


@pytest.fixture(scope="module")
def expected(model, texts, encode):
    return logits(model, texts, encode)


def logits(model, texts, encode, batch=BATCH):
    with torch.no_grad():
        return torch.cat([model(**encode(texts[i : i + batch])).logits for i in range(0, len(texts), batch)])


@pytest.mark.parametrize(
    ("runtime", "calibrated"), [("onnx", True), ("onnx", False), ("openvino", True)], ids=["onnx", "token", "openvino"]
)
def test_int8_export_agrees_with_float(runtime, calibrated, model, texts, expected, encode, tmp_path):
    require(runtime)
    calibration = [encode(texts_of("train", start, start + BATCH)) for start in range(0, 300, BATCH)]
    export(model, tmp_path / runtime, runtime, "int8", calibration if calibrated else None)
    loaded = load_exported(tmp_path / runtime, full_precision=True)
    outputs = logits(loaded, texts, encode)
    assert (outputs.argmax(-1) == expected.argmax(-1)).float().mean() >= 0.993
    assert (outputs - expected).diff(dim=-1).square().mean().sqrt() <= 0.16
    mixed = texts[:: len(texts) // 200][:200]
    mixed = [mixed[(37 * number) % 200] for number in range(200)]
    difference = (logits(loaded, mixed, encode) - logits(loaded, mixed, encode, batch=1)).abs().amax(-1)
    assert difference.quantile(0.7) < 1e-3
