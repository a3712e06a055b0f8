"""Tests of int8 by torchao, for models that load without code of this package."""

import logging

import pytest
import torch
import transformers
from heads import BERT_HEADS
from safetensors.torch import load_file

from hf_efficient import QuantizationConfig, quantize
from hf_efficient.errors import UserError
from hf_efficient.functions import describe_quantization
from hf_efficient.models import is_quantized
from hf_efficient.pruning.selection import remove_units
from hf_efficient.quantization import validation
from hf_efficient.quantization.config import TORCHAO_SCHEMES as SCHEMES
from hf_efficient.quantization.torchao_import import suppress_torchao_warnings

needs_torchao = pytest.mark.skipif(validation.find_spec("torchao") is None, reason="torchao is not installed")
EMBEDDINGS = {f"bert.embeddings.{kind}_embeddings" for kind in ("word", "position")}


def int8_modules(model):
    return {name.removesuffix(".weight") for name, p in model.named_parameters() if hasattr(p, "tensor_data_names")}


def linears(model):
    return {
        name for name, module in model.named_modules() if ".layer." in name and isinstance(module, torch.nn.Linear)
    }


@needs_torchao
@pytest.mark.parametrize(
    ("head", "scheme"), [(head, SCHEMES[number % len(SCHEMES)]) for number, head in enumerate(BERT_HEADS)]
)
def test_stock_model_reloads_as_stock_class_with_equal_outputs(
    make_model, make_batch, outputs, assert_same, head, scheme, tmp_path
):
    model = make_model(head)
    quantized = quantize(model, QuantizationConfig(scheme, torchao=True))
    assert type(quantized) is type(model)
    assert is_quantized(quantized)
    embeddings = EMBEDDINGS if head != "BertModel" else {name.removeprefix("bert.") for name in EMBEDDINGS}
    assert int8_modules(quantized) == linears(model) | {
        name for name in embeddings if head != "BertForMaskedLM" or "word" not in name
    }
    quantized.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    loaded = getattr(transformers, head).from_pretrained(tmp_path)
    assert int8_modules(loaded) == int8_modules(quantized)
    assert_same(outputs(loaded, make_batch(head)), outputs(quantized, make_batch(head)), atol=0)


@needs_torchao
def test_pruned_model_reloads_with_equal_outputs(make_model, make_batch, outputs, assert_same, select, tmp_path):
    student = remove_units(make_model(), select("all of these"))
    quantized = quantize(student, QuantizationConfig("int8_dynamic", torchao=True))
    quantized.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert int8_modules(loaded) == int8_modules(quantized)
    assert_same(outputs(loaded, make_batch()), outputs(quantized, make_batch()), atol=0)


@needs_torchao
@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_stay_close_and_the_model_is_not_changed(make_model, make_batch, outputs, scheme):
    model, batch = make_model(), make_batch()
    expected = outputs(model, batch)["logits"]
    quantized = quantize(model, QuantizationConfig(scheme, torchao=True))
    difference = outputs(quantized, batch)["logits"] - expected
    assert 0 < float(difference.norm() / expected.norm()) < 0.1
    assert not int8_modules(model)
    assert not hasattr(model.config, "quantization_config")
    assert torch.equal(outputs(model, batch)["logits"], expected)


@needs_torchao
def test_skipped_modules_stay_in_float(make_model):
    quantized = quantize(make_model(), QuantizationConfig("int8_dynamic", torchao=True, skip_modules="query"))
    assert len(int8_modules(quantized)) == 15 + 2
    assert not any("query" in name for name in int8_modules(quantized))


@needs_torchao
def test_saved_weights_take_one_byte(make_model, tmp_path):
    model = make_model()
    quantize(model, QuantizationConfig("int8_weight_only", torchao=True)).save_pretrained(tmp_path)
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "model.safetensors").values())
    assert stored < 0.45 * 4 * model.num_parameters()


@needs_torchao
def test_settings_of_inductor_are_not_changed(make_model):
    from torch._inductor import config

    before = config.get_config_copy()
    quantize(make_model(), QuantizationConfig("int8_dynamic", torchao=True))
    assert config.get_config_copy() == before


@needs_torchao
def test_calibration_batches_are_refused(make_model):
    with pytest.raises(UserError, match="torchao=True needs no calibration data: leave `calibration` out"):
        quantize(make_model(), QuantizationConfig("int8_dynamic", torchao=True), [])


def test_torchao_that_is_not_installed_is_refused(make_model, monkeypatch):
    monkeypatch.setattr(validation, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"torchao=True needs torchao, which is not installed: pip install 'hf_effic"):
        quantize(make_model(), QuantizationConfig("int8_dynamic", torchao=True))


def test_warnings_of_torchao_are_suppressed_only_within_the_context(caplog):
    logger = logging.getLogger("torchao")
    before = logger.level
    with suppress_torchao_warnings():
        logger.warning("kernels for another machine")
        logger.error("a real problem")
    assert logger.level == before
    assert [record.message for record in caplog.records] == ["a real problem"]


def test_warnings_of_torchao_are_shown_again_after_an_error():
    levels = {name: logging.getLogger(name).level for name in ("", "torchao")}
    with pytest.raises(RuntimeError, match="in between"), suppress_torchao_warnings():
        raise RuntimeError("in between")
    assert {name: logging.getLogger(name).level for name in levels} == levels


@needs_torchao
def test_readers_of_gated_neurons_that_are_far_larger_stay_in_float(make_model):
    model, config = make_model("MT5ForConditionalGeneration"), QuantizationConfig("int8_dynamic", torchao=True)
    model.encoder.block[1].layer[-1].DenseReluDense.wi_1.weight.data[5] *= 100
    quantized = quantize(model, config)
    name = "encoder.block.1.layer.1.DenseReluDense.wo"
    feed_forward = {each for each in int8_modules(quantized) if each.startswith(name.removesuffix("wo"))}
    assert feed_forward == {name.replace("wo", "wi_0"), name.replace("wo", "wi_1")}
    assert describe_quantization(model, quantized, config).endswith(f"far larger than the others: {name}")
