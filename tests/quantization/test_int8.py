import json
import re
from dataclasses import asdict

import pytest
import torch
import transformers
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


def eight_bit(model):
    return [name.removesuffix(".weight") for name, p in model.named_parameters() if hasattr(p, "tensor_data_names")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scheme": "int4"}, "scheme='int4' is unknown: give one of int8_dynamic, int8_weight_only"),
        ({"skip_modules": "query,(key"}, "skip_modules='(key' is not a regular expression"),
    ],
)
def test_bad_config_is_told_what_to_do(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        QuantizationConfig(**fields)


def test_config_survives_json():
    config = QuantizationConfig("int8_weight_only", quantize_embeddings=False, skip_modules="query, key")
    assert QuantizationConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert config.skip_patterns == ("query", "key")


def test_every_field_has_a_help():
    assert all(field.metadata["help"].endswith(".") for field in QuantizationConfig.__dataclass_fields__.values())


def test_reloads_to_the_same_bits(make_model, make_batch, outputs, assert_same, scheme, head, tmp_path):
    quantized = quantize(make_model(head), QuantizationConfig(scheme))
    quantized.save_pretrained(tmp_path)
    loaded = getattr(transformers, head).from_pretrained(tmp_path)
    assert eight_bit(loaded) == eight_bit(quantized)
    assert len(eight_bit(loaded)) == 18 + (2 if head == "BertForMaskedLM" else 3)
    assert_same(outputs(loaded, make_batch(head)), outputs(quantized, make_batch(head)), atol=0)


def test_pruned_reloads_to_the_same_bits(
    make_model, make_batch, outputs, assert_same, select, scheme, uneven_shape, tmp_path
):
    quantized = quantize(remove_units(make_model(), select(uneven_shape)), QuantizationConfig(scheme))
    quantized.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert eight_bit(loaded) == eight_bit(quantized)
    assert {name.partition("layer.")[2][:1] for name in eight_bit(loaded) if "layer." in name}
    assert_same(outputs(loaded, make_batch()), outputs(quantized, make_batch()), atol=0)


def test_answers_stay_close(make_model, make_batch, scheme):
    model, batch = make_model(), make_batch()
    quantized = quantize(model, QuantizationConfig(scheme))
    difference = (quantized(**batch).logits - model(**batch).logits).detach()
    assert 0 < float(difference.norm() / model(**batch).logits.detach().norm()) < 0.1


def test_weight_only_is_the_rounded_weights_and_dynamic_rounds_activations_too(make_model, make_batch, outputs):
    difference = {}
    for scheme in SCHEMES:
        quantized, rounded = quantize(make_model(), QuantizationConfig(scheme)), make_model()
        with torch.no_grad():
            for name in eight_bit(quantized):
                rounded.get_submodule(name).weight.copy_(quantized.get_submodule(name).weight.dequantize())
        answers = [outputs(model, make_batch())["logits"] for model in (quantized, rounded)]
        difference[scheme] = float((answers[0] - answers[1]).abs().max())
    assert difference["int8_weight_only"] < 1e-4
    assert difference["int8_dynamic"] > 1e-3


def test_layers_and_embeddings_are_quantized_and_the_rest_is_not(make_model, scheme):
    model = make_model()
    quantized = quantize(model, QuantizationConfig(scheme))
    assert sorted(eight_bit(quantized)) == sorted([*LAYER_LINEARS, *EMBEDDINGS])
    for name in ("classifier", "bert.pooler.dense", "bert.embeddings.LayerNorm"):
        assert torch.equal(quantized.get_submodule(name).weight, model.get_submodule(name).weight)


def test_stored_integers_are_the_weights_rounded_by_their_row(make_model, scheme):
    model = make_model()
    quantized = quantize(model, QuantizationConfig(scheme))
    for name in (LAYER_LINEARS[7], EMBEDDINGS[0]):
        weight, stored = model.get_submodule(name).weight.detach(), quantized.get_submodule(name).weight.dequantize()
        largest = weight.abs().amax(1, keepdim=True)
        assert ((stored - weight).abs() <= largest / 127 / 2 * 1.01).all()


def test_embeddings_stay_in_float_when_told(make_model, scheme):
    model = make_model()
    quantized = quantize(model, QuantizationConfig(scheme, quantize_embeddings=False))
    assert sorted(eight_bit(quantized)) == sorted(LAYER_LINEARS)
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
    assert sorted(eight_bit(quantized)) == sorted({*LAYER_LINEARS, *EMBEDDINGS} - {*skipped})
    quantized.save_pretrained(tmp_path)
    loaded = type(quantized).from_pretrained(tmp_path)
    assert eight_bit(loaded) == eight_bit(quantized)
    assert_same(outputs(loaded, make_batch()), outputs(quantized, make_batch()), atol=0)


def test_skipping_everything_is_refused(make_model):
    with pytest.raises(
        ValueError, match=re.escape("nothing to quantize in BertForSequenceClassification with skip_modules='.*'")
    ):
        quantize(make_model(), QuantizationConfig(skip_modules=".*"))


def test_quantizing_twice_is_refused(make_model):
    quantized = quantize(make_model())
    with pytest.raises(ValueError, match="the model is quantized already: start from its float form"):
        quantize(quantized)


def test_calibration_data_is_refused(make_model):
    with pytest.raises(ValueError, match="scheme='int8_dynamic' needs no calibration data: leave `calibration` out"):
        quantize(make_model(), calibration=[])


def test_tied_embeddings_stay_in_float_and_tied(make_model, make_batch, scheme, tmp_path):
    model, batch = make_model("BertForMaskedLM"), make_batch("BertForMaskedLM", labelled=True)
    quantized = quantize(model, QuantizationConfig(scheme))
    assert eight_bit(quantized) == [*EMBEDDINGS[1:], *LAYER_LINEARS]  # but for the table of words
    quantized.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    table = loaded.bert.embeddings.word_embeddings.weight
    assert loaded.cls.predictions.decoder.weight is table
    assert torch.equal(table, model.bert.embeddings.word_embeddings.weight)
    assert loaded(**batch).loss.item() == pytest.approx(model(**batch).loss.item(), rel=0.1)


def test_quantizing_leaves_the_model_as_it_is(make_model, scheme):
    model = make_model().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    quantized = quantize(model, QuantizationConfig(scheme))
    assert (model.training, quantized.training) == (True, False)
    assert not hasattr(model.config, "quantization_config")
    assert not eight_bit(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_bytes_shrink_to_one_a_weight_and_a_scale_a_row(make_model, scheme, tmp_path):
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


def test_larger_model_takes_close_to_a_quarter_of_the_disk(make_model):
    model = make_model(hidden_size=128, intermediate_size=512, vocab_size=2000)
    assert 3.3 < saved_bytes(model) / saved_bytes(quantize(model)) < 4


def test_models_of_other_families_can_be_quantized(tmp_path):
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(dim=32, n_heads=4, n_layers=2, hidden_dim=64, vocab_size=100, max_position_embeddings=40)
    quantized = quantize(DistilBertModel(config).eval())
    linears = [name for name, module in quantized.named_modules() if isinstance(module, nn.Linear)]
    assert sorted(eight_bit(quantized)) == sorted(
        [*linears, "embeddings.word_embeddings", "embeddings.position_embeddings"]
    )


def test_model_that_cannot_be_compiled_is_left_alone_and_the_reason_is_told(make_model, make_batch, monkeypatch):
    def fail(model, dynamic):
        raise RuntimeError("no C++ compiler\nand many lines more")

    told = []
    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(int8.logger, "warning", told.append)
    assert int8.compiled(make_model(), make_batch()) is None
    assert told == ["the 8-bit model is not measured under torch.compile, which does not work here: no C++ compiler"]


def test_model_is_compiled_by_a_first_run(make_model, make_batch, monkeypatch):
    model, runs = make_model().train(), []
    monkeypatch.setattr(
        torch, "compile", lambda model, dynamic: lambda **inputs: runs.append((dynamic, inputs.keys()))
    )
    assert int8.compiled(model, make_batch()) is not None
    assert runs == [(True, make_batch().keys())]
    assert not model.training


def test_no_scheme_is_refused(make_model):
    with pytest.raises(ValueError, match="scheme=None asks for nothing: give one of int8_dynamic, int8_weight_only"):
        quantize(make_model("BertForSequenceClassification"), QuantizationConfig(scheme=None))
