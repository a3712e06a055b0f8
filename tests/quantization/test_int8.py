import json
import re
from dataclasses import asdict

import pytest
import torch
import transformers
from heads import BERT_HEADS
from safetensors.torch import load_file
from torch import nn

from hf_efficient import QuantizationConfig, quantize
from hf_efficient.measurement.cost import saved_bytes
from hf_efficient.pruning.selection import remove_units
from hf_efficient.quantization import int8
from hf_efficient.quantization.config import INT8_SCHEMES as SCHEMES

LAYER_LINEARS = [
    f"bert.encoder.layer.{layer}.{name}"
    for layer in range(3)
    for name in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]
EMBEDDINGS = [f"bert.embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")]


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return request.param


def int8_modules(model):
    return [name.removesuffix(".weight") for name, p in model.named_parameters() if hasattr(p, "tensor_data_names")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scheme": "int4"}, "scheme='int4' is unknown: give one of int8_dynamic, int8_weight_only"),
        ({"skip_modules": "query,(key"}, "skip_modules='(key' is not a regular expression"),
    ],
)
def test_config_refuses_unknown_values(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        QuantizationConfig(**fields)


def test_config_round_trips_through_json():
    config = QuantizationConfig("int8_weight_only", quantize_embeddings=False, skip_modules="query, key")
    assert QuantizationConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert config.skip_patterns == ("query", "key")


def test_every_field_has_help():
    assert all(field.metadata["help"].endswith(".") for field in QuantizationConfig.__dataclass_fields__.values())


@pytest.mark.parametrize(
    ("head", "scheme"), [(head, SCHEMES[number % len(SCHEMES)]) for number, head in enumerate(BERT_HEADS)]
)
def test_saved_model_reloads_with_equal_outputs(make_model, make_batch, outputs, assert_same, scheme, head, tmp_path):
    quantized = quantize(make_model(head), QuantizationConfig(scheme))
    quantized.save_pretrained(tmp_path)
    loaded = getattr(transformers, head).from_pretrained(tmp_path)
    assert int8_modules(loaded) == int8_modules(quantized)
    assert len(int8_modules(loaded)) == 18 + (2 if head == "BertForMaskedLM" else 3)
    assert_same(outputs(loaded, make_batch(head)), outputs(quantized, make_batch(head)), atol=0)


def test_saved_pruned_model_reloads_with_equal_outputs(
    make_model, make_batch, outputs, assert_same, select, uneven_shape, tmp_path
):
    quantized = quantize(remove_units(make_model(), select(uneven_shape)))
    quantized.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert int8_modules(loaded) == int8_modules(quantized)
    assert {name.partition("layer.")[2][:1] for name in int8_modules(loaded) if "layer." in name}
    assert_same(outputs(loaded, make_batch()), outputs(quantized, make_batch()), atol=0)


def test_logits_stay_close_to_those_in_float(make_model, make_batch, scheme):
    model, batch = make_model(), make_batch()
    quantized = quantize(model, QuantizationConfig(scheme))
    difference = (quantized(**batch).logits - model(**batch).logits).detach()
    assert 0 < float(difference.norm() / model(**batch).logits.detach().norm()) < 0.1


def test_int8_dynamic_rounds_activations_and_int8_weight_only_does_not(make_model, make_batch, outputs):
    difference = {}
    for scheme in SCHEMES:
        quantized, rounded = quantize(make_model(), QuantizationConfig(scheme)), make_model()
        with torch.no_grad():
            for name in int8_modules(quantized):
                rounded.get_submodule(name).weight.copy_(quantized.get_submodule(name).weight.dequantize())
        logits = [outputs(model, make_batch())["logits"] for model in (quantized, rounded)]
        difference[scheme] = float((logits[0] - logits[1]).abs().max())
    assert difference["int8_weight_only"] < 1e-4
    assert difference["int8_dynamic"] > 1e-3


def test_layers_and_embeddings_are_quantized_and_the_rest_stays_in_float(make_model, scheme):
    model = make_model()
    quantized = quantize(model, QuantizationConfig(scheme))
    assert sorted(int8_modules(quantized)) == sorted([*LAYER_LINEARS, *EMBEDDINGS])
    for name in ("classifier", "bert.pooler.dense", "bert.embeddings.LayerNorm"):
        assert torch.equal(quantized.get_submodule(name).weight, model.get_submodule(name).weight)


def test_weights_are_rounded_with_a_scale_per_row(make_model, scheme):
    model = make_model()
    quantized = quantize(model, QuantizationConfig(scheme))
    for name in (LAYER_LINEARS[7], EMBEDDINGS[0]):
        weight, stored = model.get_submodule(name).weight.detach(), quantized.get_submodule(name).weight.dequantize()
        largest = weight.abs().amax(1, keepdim=True)
        assert ((stored - weight).abs() <= largest / 127 / 2 * 1.01).all()


def test_embeddings_stay_in_float_without_quantize_embeddings(make_model, scheme):
    model = make_model()
    quantized = quantize(model, QuantizationConfig(scheme, quantize_embeddings=False))
    assert sorted(int8_modules(quantized)) == sorted(LAYER_LINEARS)
    assert torch.equal(quantized.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)


@pytest.mark.parametrize(
    ("patterns", "skipped"),
    [
        ("query", [name for name in LAYER_LINEARS if "query" in name]),
        (
            r"layer\.0\., position",
            [*(n for n in LAYER_LINEARS if "layer.0." in n), "bert.embeddings.position_embeddings"],
        ),
        (r"layer\.[02]\.output", ["bert.encoder.layer.0.output.dense", "bert.encoder.layer.2.output.dense"]),
    ],
)
def test_skipped_modules_stay_in_float(make_model, make_batch, outputs, assert_same, patterns, skipped, tmp_path):
    quantized = quantize(make_model(), QuantizationConfig(skip_modules=patterns))
    assert sorted(int8_modules(quantized)) == sorted({*LAYER_LINEARS, *EMBEDDINGS} - {*skipped})
    quantized.save_pretrained(tmp_path)
    loaded = type(quantized).from_pretrained(tmp_path)
    assert int8_modules(loaded) == int8_modules(quantized)
    assert_same(outputs(loaded, make_batch()), outputs(quantized, make_batch()), atol=0)


def test_quantize_refuses_a_config_that_skips_everything(make_model):
    with pytest.raises(
        ValueError, match=re.escape("nothing to quantize in BertForSequenceClassification with skip_modules='.*'")
    ):
        quantize(make_model(), QuantizationConfig(skip_modules=".*"))


def test_quantize_refuses_a_quantized_model(make_model):
    quantized = quantize(make_model())
    with pytest.raises(ValueError, match="the model is quantized already: start from the float model"):
        quantize(quantized)


def test_int8_refuses_calibration_batches(make_model):
    with pytest.raises(ValueError, match="scheme='int8_dynamic' needs no calibration data: leave `calibration` out"):
        quantize(make_model(), calibration=[])


def test_tied_embeddings_stay_in_float_and_tied(make_model, make_batch, scheme, tmp_path):
    model, batch = make_model("BertForMaskedLM"), make_batch("BertForMaskedLM", labelled=True)
    quantized = quantize(model, QuantizationConfig(scheme))
    assert int8_modules(quantized) == [*EMBEDDINGS[1:], *LAYER_LINEARS]  # without the word embeddings
    quantized.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    table = loaded.bert.embeddings.word_embeddings.weight
    assert loaded.cls.predictions.decoder.weight is table
    assert torch.equal(table, model.bert.embeddings.word_embeddings.weight)
    assert loaded(**batch).loss.item() == pytest.approx(model(**batch).loss.item(), rel=0.1)


def test_quantize_does_not_change_the_model(make_model, scheme):
    model = make_model().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    quantized = quantize(model, QuantizationConfig(scheme))
    assert (model.training, quantized.training) == (True, False)
    assert not hasattr(model.config, "quantization_config")
    assert not int8_modules(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_saved_bytes_are_one_per_weight_and_a_scale_per_row(make_model, scheme, tmp_path):
    model = make_model()
    quantize(model, QuantizationConfig(scheme)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    expected = 0
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") in {*LAYER_LINEARS, *EMBEDDINGS}:
            expected += parameter.numel() + parameter.shape[0] * (4 + 1)  # scale and zero point
        else:
            expected += 4 * parameter.numel()
    assert sum(tensor.nbytes for tensor in tensors.values()) == expected
    assert expected < 0.45 * 4 * model.num_parameters()


def test_larger_model_is_almost_four_times_smaller(make_model):
    model = make_model(hidden_size=128, intermediate_size=512, vocab_size=2000)
    assert 3.3 < saved_bytes(model) / saved_bytes(quantize(model)) < 4


def test_distilbert_is_quantized():
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(dim=32, n_heads=4, n_layers=2, hidden_dim=64, vocab_size=100, max_position_embeddings=40)
    quantized = quantize(DistilBertModel(config).eval())
    linears = [name for name, module in quantized.named_modules() if isinstance(module, nn.Linear)]
    assert sorted(int8_modules(quantized)) == sorted(
        [*linears, "embeddings.word_embeddings", "embeddings.position_embeddings"]
    )


def test_compile_model_warns_and_returns_none_without_a_compiler(make_model, make_batch, monkeypatch):
    def fail(model, dynamic):
        raise RuntimeError("no C++ compiler\nand many lines more")

    warnings = []
    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(int8.logger, "warning", warnings.append)
    assert int8.compile_model(make_model(), make_batch()) is None
    assert warnings == [
        "the int8 model is not measured under torch.compile, which fails on this machine: no C++ compiler"
    ]


def test_compile_model_compiles_by_a_first_run(make_model, make_batch, monkeypatch):
    model, runs = make_model().train(), []
    monkeypatch.setattr(
        torch, "compile", lambda model, dynamic: lambda **inputs: runs.append((dynamic, inputs.keys()))
    )
    assert int8.compile_model(model, make_batch()) is not None
    assert runs == [(True, make_batch().keys())]
    assert not model.training


def test_quantize_without_a_scheme_is_refused(make_model):
    with pytest.raises(ValueError, match="scheme=None quantizes nothing: give one of int8_dynamic, int8_weight_only"):
        quantize(make_model("BertForSequenceClassification"), QuantizationConfig(scheme=None))
