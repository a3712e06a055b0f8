import zlib

import pytest
import torch
from torch import nn

from hf_efficient import quantize
from hf_efficient.measurement import cost
from hf_efficient.measurement.cost import (
    compressed_bytes,
    count_flops,
    count_nonzero_parameters,
    count_parameters,
    folder_bytes,
    saved_bytes,
)
from hf_efficient.pruning.selection import remove_units
from hf_efficient.pruning.sparsity import sparsify


def tiny_bert_flops(batch, tokens, heads, neurons):
    """Return the multiplications and additions of a tiny classifier with these heads and neurons in each layer."""
    rows, total = batch * tokens, 0
    for kept_heads, kept_neurons in zip(heads, neurons, strict=True):
        total += 2 * rows * 32 * (8 * kept_heads) * 4  # query, key, value, output
        total += 2 * rows * tokens * (8 * kept_heads) * 2  # scores, and the weighted sum of values
        total += 2 * rows * 32 * kept_neurons * 2
    return total + 2 * batch * 32 * 32 + 2 * batch * 32 * 3  # pooler and classifier


def test_shared_parameters_count_once(make_model):
    layer = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 64
    embeddings = (100 + 40 + 2) * 32 + 64
    assert count_parameters(make_model()) == 3 * layer + embeddings + (32 * 32 + 32) + (32 * 3 + 3)
    # A masked language model shares its embeddings with its output layer; it adds a transform and a bias per token.
    assert count_parameters(make_model("BertForMaskedLM")) == 3 * layer + embeddings + (32 * 32 + 32) + 64 + 100


def test_int8_models_have_the_parameters_of_the_float_model(make_model):
    model = make_model()
    assert count_parameters(quantize(model)) == count_parameters(model)


def test_nonzero_parameters_exclude_zeros(make_model):
    model = make_model()
    assert count_nonzero_parameters(model) == count_parameters(model)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[:, :10] = 0
    assert count_nonzero_parameters(model) == count_parameters(model) - 320
    quantized = count_nonzero_parameters(quantize(model))
    # Quantization rounds small weights to zero.
    assert 0.95 * count_parameters(model) < quantized < count_parameters(model) - 320


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_flops_are_those_of_all_matrix_products(make_model, make_batch, attention):
    model, batch = make_model(attn_implementation=attention), make_batch()
    assert count_flops(model, batch) == tiny_bert_flops(3, 9, [4] * 3, [64] * 3)
    assert model.config._attn_implementation == attention


def test_pruned_models_have_fewer_flops(make_model, make_batch, select):
    student = remove_units(make_model(), select("all of these"))
    assert count_flops(student, make_batch()) == tiny_bert_flops(3, 9, [0, 1], [0, 2])


def test_counting_flops_keeps_the_training_mode(make_model, make_batch):
    for training in (True, False):
        model = make_model().train(training)
        count_flops(model, make_batch())
        assert model.training is training


def test_flops_are_counted_on_the_meta_device(make_model, make_batch):
    meta = {name: value.to("meta") for name, value in make_batch().items()}
    flops = count_flops(make_model().to("meta"), {"input_ids": meta["input_ids"]})
    assert flops == tiny_bert_flops(3, 9, [4] * 3, [64] * 3)


def test_flops_of_frozen_models_and_plain_modules(make_model, make_batch):
    frozen = make_model().requires_grad_(False)
    assert count_flops(frozen, make_batch()) == tiny_bert_flops(3, 9, [4] * 3, [64] * 3)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, x):
            return self.linear(x)

    assert count_flops(Plain(), {"x": torch.ones(3, 4)}) == 2 * 3 * 4 * 5


def test_flops_of_int8_models_are_none(make_model, make_batch):
    assert count_flops(quantize(make_model()), make_batch()) is None


def test_saved_bytes_are_those_of_the_weights_in_their_dtype(make_model):
    model = make_model()
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        saved, weights = saved_bytes(model.to(dtype)), size * count_parameters(model)
        assert weights < saved < weights + 8000  # the header of safetensors names every tensor


@pytest.mark.parametrize("chunk", [1 << 20, 1000])
def test_compressed_bytes_are_those_of_the_compressed_file(make_model, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(cost, "CHUNK_BYTES", chunk)
    model = sparsify(make_model(), fraction=0.5)
    model.save_pretrained(tmp_path)
    file = (tmp_path / "model.safetensors").read_bytes()
    codec = zlib.compressobj(level=6)
    assert compressed_bytes(model) == len(codec.compress(file) + codec.flush())
    assert compressed_bytes(model) == compressed_bytes(sparsify(make_model(), fraction=0.5))


def test_compressed_bytes_are_the_same_at_every_save(make_model):
    quantized = quantize(make_model())
    assert len({compressed_bytes(quantized) for _ in range(5)}) == 1


def test_compressed_size_falls_with_the_fraction(make_model):
    sizes = [compressed_bytes(sparsify(make_model(), fraction=fraction)) for fraction in (0.0, 0.3, 0.6, 0.9)]
    saved = saved_bytes(make_model())
    assert saved_bytes(sparsify(make_model(), fraction=0.9)) == saved
    assert saved > sizes[0] > sizes[1] > sizes[2] > sizes[3]
    # 24576 of 33059 weights are connections: a tenth of them, their positions and the other weights remain.
    assert 0.3 < sizes[3] / sizes[0] < 0.45


def test_loaded_int8_model_has_the_bytes_of_its_file(make_model, tmp_path):
    quantized = quantize(make_model())
    quantized.save_pretrained(tmp_path)
    file_bytes = (tmp_path / "model.safetensors").stat().st_size
    assert saved_bytes(quantized) == file_bytes
    assert saved_bytes(type(quantized).from_pretrained(tmp_path)) == file_bytes


def test_only_weight_files_at_the_top_of_a_folder_count(tmp_path):
    sizes = {
        "model-00001-of-00002.safetensors": 10,
        "model-00002-of-00002.safetensors": 20,
        "model.onnx": 400,
        "model.onnx_data": 500,
        "openvino_model.bin": 3000,
        "config.json": 7,
        "training_args.bin": 7,
        "checkpoint-1/model.safetensors": 7,
    }
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert folder_bytes(tmp_path) == 3930
