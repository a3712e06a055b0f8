import re

import pytest
import torch
import transformers
from heads import REPRESENTATIVE_HEADS
from torch import nn
from trainers import build

from hf_efficient import PruningConfig, QuantizationConfig, prune, quantize
from hf_efficient.functions import describe_quantization
from hf_efficient.measurement.cost import count_nonzero_parameters, count_parameters, saved_bytes
from hf_efficient.models import is_quantized
from hf_efficient.models.codebook import Codebook, CodebookEmbedding, CodebookLinear, codebook_for, pack, unpack
from hf_efficient.models.int8 import Int8Linear
from hf_efficient.pruning.selection import remove_units
from hf_efficient.quantization.codebook import compare_with_uniform, fit_codebook, quantize_uniformly

CODEBOOK = QuantizationConfig("codebook", codebook_rows=8)


def codebooks_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Codebook)}


# ---- packing ----


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [1, 7, 8, 1000])
def test_packed_indices_unpack_to_the_same_and_take_the_given_bits(bits, count):
    indices = torch.randint(0, 1 << bits, (count,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    packed = pack(indices, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-count * bits // 8)
    assert torch.equal(unpack(packed, bits, count), indices)


def test_pack_stores_low_bits_first():
    assert pack(torch.tensor([1, 2, 3]), 4).tolist() == [0x21, 0x03]
    assert pack(torch.tensor([5, 7, 1]), 3).tolist() == [0b01111101, 0]


# ---- fitting ----


def test_fit_codebook_is_exact_for_few_distinct_values():
    weight = torch.tensor([[1.0, -2.0, 1.0, 0.5], [7.0, 7.0, -3.0, 0.0]])
    indices, table = fit_codebook(weight, 2, 1)
    assert table.shape == (2, 4)
    assert torch.equal(torch.stack([row[index.long()] for row, index in zip(table, indices, strict=True)]), weight)
    assert torch.equal(table, table.sort().values)


def test_fit_codebook_returns_the_means_of_the_clusters():
    weight = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    indices, table = fit_codebook(weight, 3, 8)
    for index in range(8):
        assert table[0, index] == pytest.approx(float(weight[indices == index].mean()), abs=1e-2)
    error = (table[0][indices.long()] - weight).square().mean()
    assert 0.02 < error < 0.04  # the least for a normal distribution is 0.0345, for few samples less


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_codebook_error_is_smaller_than_uniform_error_of_the_same_size(bits):
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    indices, table = fit_codebook(weight, bits, 32)
    rounded = torch.stack([table[row // 32][indices[row].long()] for row in range(64)])
    assert (rounded - weight).square().sum() < (quantize_uniformly(weight, bits, 32) - weight).square().sum()


def test_uniform_scales_are_as_large_as_codebook_tables():
    weight = torch.randn(64, 96)
    rounded = quantize_uniformly(weight, 4, 32)
    parts = rounded.reshape(-1, 32 * 96 // 16)  # a scale of 32 bits each, as the tables of 16 values for 32 rows
    assert all(len(part.abs().unique()) <= 8 for part in parts)


def test_importance_reduces_the_error_of_important_entries():
    weight = torch.linspace(-1, 1, 4000).view(4, 1000)
    importance = torch.where(weight > 0.5, 100.0, 1.0)
    plain, weighted = (fit_codebook(weight, 3, 4, costs) for costs in (None, importance))
    errors = [(table[0][indices.long()] - weight)[weight > 0.5].square().sum() for indices, table in (plain, weighted)]
    assert errors[1] < 0.5 * errors[0]
    assert torch.equal(fit_codebook(weight, 3, 4, torch.zeros_like(weight))[1], plain[1])


def test_fit_codebook_is_deterministic():
    weight = torch.randn(40, 100)
    assert all(
        torch.equal(a, b) for a, b in zip(fit_codebook(weight, 4, 16), fit_codebook(weight, 4, 16), strict=True)
    )


# ---- models ----


@pytest.mark.parametrize("head", REPRESENTATIVE_HEADS)
def test_outputs_are_those_of_the_decoded_weights_and_survive_reloading(
    make_model, make_batch, outputs, assert_same, head, tmp_path
):
    model, batch = make_model(head), make_batch(head)
    small = quantize(model, CODEBOOK)
    codebooks = codebooks_of(small)
    assert codebooks
    small.save_pretrained(tmp_path)
    loaded = getattr(transformers, type(small)._auto_class).from_pretrained(tmp_path)
    assert type(loaded) is type(small)
    assert codebooks_of(loaded).keys() == codebooks.keys()
    small_outputs = outputs(small, batch)
    assert_same(outputs(loaded, batch), small_outputs, atol=0)
    for name, codebook in codebooks.items():
        model.get_parameter(f"{name}.weight").data.copy_(codebook.weight)
    assert_same(small_outputs, outputs(model, batch), atol=1e-6)


def test_pruned_model_with_codebooks_reloads_with_equal_outputs(
    make_model, make_batch, outputs, assert_same, select, uneven_shape, tmp_path
):
    small = quantize(remove_units(make_model(), select(uneven_shape)), CODEBOOK)
    small.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_same(outputs(loaded, make_batch()), outputs(small, make_batch()), atol=0)


@pytest.mark.parametrize("scheme", ["int8_dynamic", "int8_weight_only"])
def test_codebook_embeddings_with_int8_layers_reload_with_equal_outputs(
    make_model, make_batch, outputs, assert_same, scheme, tmp_path
):
    small = quantize(make_model(), QuantizationConfig(scheme, embedding_bits=4, codebook_rows=8))
    assert all(isinstance(book, CodebookEmbedding) for book in codebooks_of(small).values())
    assert len(codebooks_of(small)) == 2
    assert sum(isinstance(module, Int8Linear) for module in small.modules()) == 12
    small.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_same(outputs(loaded, make_batch()), outputs(small, make_batch()), atol=0)


def test_weights_are_decoded_once_or_at_every_use(make_model, make_batch, monkeypatch):
    decoded, unpack = [], Codebook._unpack_weight
    monkeypatch.setattr(Codebook, "_unpack_weight", lambda self: decoded.append(1) or unpack(self))
    for keep_packed, expected in ((False, 20), (True, 40)):
        small = quantize(make_model(), QuantizationConfig("codebook", codebook_rows=8, keep_packed=keep_packed))
        decoded.clear()
        first, second = (small(**make_batch()).logits for _ in range(2))
        assert torch.equal(first, second)
        assert len(decoded) == expected


def test_weights_decoded_in_inference_mode_allow_gradients(make_model, make_batch):
    small, batch = quantize(make_model(), QuantizationConfig("codebook")), make_batch()
    with torch.inference_mode():
        expected = small(**batch).logits
    logits = small(**batch).logits
    logits.sum().backward()
    assert torch.equal(logits, expected)
    assert small.classifier.weight.grad.abs().sum() > 0


def test_decoded_weights_are_dropped_when_weights_are_loaded(make_model, make_batch):
    small = quantize(make_model(), CODEBOOK)
    before = small(**make_batch()).logits
    other = quantize(make_model(seed=5), CODEBOOK)
    small.load_state_dict(other.state_dict())
    assert torch.equal(small(**make_batch()).logits, other(**make_batch()).logits)
    assert not torch.equal(small(**make_batch()).logits, before)
    assert small.to(torch.bfloat16)(**make_batch()).logits.dtype == torch.bfloat16


def test_saved_size_follows_the_bits(make_model):
    model = make_model(hidden_size=128, intermediate_size=512, vocab_size=1000)
    sizes = [
        saved_bytes(quantize(model, QuantizationConfig("codebook", bits=bits, codebook_rows=0))) for bits in (2, 4)
    ]
    assert sizes[0] < 0.1 * saved_bytes(model)
    assert sizes[0] < sizes[1] < 0.18 * saved_bytes(model)


def test_parameter_counts_are_those_of_the_float_model(make_model):
    model = make_model()
    small = quantize(model, CODEBOOK)
    assert count_parameters(small) == count_parameters(model)
    assert count_nonzero_parameters(small) == pytest.approx(count_nonzero_parameters(model), rel=0.1)


def test_skipped_modules_stay_in_float(make_model):
    small = quantize(make_model(), QuantizationConfig("codebook", skip_modules="query", quantize_embeddings=False))
    assert len(codebooks_of(small)) == 15
    assert isinstance(small.bert.encoder.layer[0].attention.self.query, nn.Linear)
    assert isinstance(small.bert.embeddings.word_embeddings, nn.Embedding)


def test_calibration_changes_codebooks_of_weights_with_gradients(make_model, make_batch):
    model = make_model()
    plain, weighted = (
        quantize(model, QuantizationConfig("codebook", bits=2), data) for data in (None, [make_batch()])
    )
    tables = [small.bert.encoder.layer[0].output.dense.table for small in (plain, weighted)]
    assert not torch.equal(*tables)
    assert torch.equal(*(small.bert.embeddings.word_embeddings.table for small in (plain, weighted)))


def test_describe_quantization_gives_bits_and_errors_of_codebooks(make_model):
    model = make_model()
    small = quantize(model, CODEBOOK)
    comparison = compare_with_uniform(model, small)
    assert 4 < comparison["bits_per_weight"] < 9
    assert 0 < comparison["error"] < comparison["uniform_error"] < 1
    assert re.search(
        r"the codebooks take \d\.\d\d bits per weight with a relative squared error of",
        describe_quantization(model, small, CODEBOOK),
    )
    assert compare_with_uniform(model, model) is None


def test_trainer_saves_a_model_with_codebooks(tmp_path):
    trainer = build(tmp_path, techniques={"quantization": CODEBOOK, "pruning": PruningConfig(heads=0.5)})
    trainer.train()
    assert is_quantized(trainer.model)
    assert [row.name for row in trainer.report.models][-1] == "4-bit codebook"
    assert trainer.report.row("quantized").ratios.size > 2
    trainer.save_model()
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    batch = {"input_ids": torch.arange(1, 9)[None]}
    torch.testing.assert_close(loaded(**batch).logits, trainer.model(**batch).logits, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="the model is quantized and cannot be trained"):
        build(tmp_path / "again", model=trainer.model).train()


# ---- user errors ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 1}, "bits=1 is out of range: give 2 to 8"),
        ({"embedding_bits": 9}, "embedding_bits=9 is out of range: give 2 to 8"),
        ({"codebook_rows": -1}, "codebook_rows=-1 must not be negative"),
        (
            {"scheme": "codebook", "aware": True},
            "aware=True trains for int8, and scheme is 'codebook': give scheme=int8",
        ),
    ],
)
def test_config_refuses_values_out_of_range(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        QuantizationConfig(**fields)


def test_quantized_model_is_not_quantized_or_pruned_again(make_model):
    small = quantize(make_model(), CODEBOOK)
    with pytest.raises(ValueError, match="the model is quantized already: start from the float model"):
        quantize(small, CODEBOOK)
    with pytest.raises(ValueError, match="a quantized model cannot be pruned"):
        prune(small, PruningConfig(heads=0.5, criterion="magnitude"))


def test_quantize_refuses_a_config_that_skips_everything(make_model):
    config = QuantizationConfig("codebook", quantize_embeddings=False, skip_modules="layer")
    with pytest.raises(ValueError, match="nothing to quantize in BertForSequenceClassification"):
        quantize(make_model(), config)


def test_codebook_for_refuses_other_modules():
    with pytest.raises(TypeError, match="a LayerNorm has no codebook: only Linear and Embedding"):
        codebook_for(nn.LayerNorm(4), bits=4, group=2)
    assert isinstance(codebook_for(nn.Linear(4, 4), bits=4, group=2), CodebookLinear)
