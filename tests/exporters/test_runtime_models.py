"""Exported models are evaluated and generate text like torch modules."""

import json
import math
import shutil

import pytest
import torch
from export_cases import largest_difference, require, sentences
from transformers import AutoConfig, T5Config, T5ForConditionalGeneration

from hf_efficient import export, load_exported
from hf_efficient.errors import UserError
from hf_efficient.exporters.runtime_models import DECODE
from hf_efficient.measurement.cost import saved_bytes
from hf_efficient.models.inputs import select_inputs


def test_runtime_model_is_evaluated_like_a_module(runtime, exported, make_batch):
    case = exported(format=runtime, pruned=True)
    module, batch = load_exported(case.folder), make_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert "loss" not in module(**inputs)
    outputs = module(**inputs, labels=torch.zeros(len(batch["input_ids"]), dtype=torch.long))
    assert math.isnan(outputs.loss)
    with torch.no_grad():
        assert largest_difference({"logits": outputs.logits}, {"logits": case.model(**inputs).logits}) < 0.05
    pairs = select_inputs(module, batch)  # as a trainer selects them
    assert largest_difference({"logits": module(**pairs).logits}, {"logits": module(**batch).logits}) == 0
    assert largest_difference({"logits": module(**pairs).logits}, {"logits": outputs.logits}) > 0
    assert module.bytes_on_disk > 4 * 10_000
    assert module.runtime == {"onnx": "onnxruntime float32", "openvino": "openvino float32"}[runtime]


@pytest.mark.slow  # exports the three graphs of a generating model
@pytest.mark.parametrize(
    ("head", "runtime"),
    [
        ("T5ForConditionalGeneration", "onnx"),
        ("MT5ForConditionalGeneration", "openvino"),
        ("BartForConditionalGeneration", "openvino"),
        ("MarianMTModel", "onnx"),
    ],
)
def test_exported_pruned_model_generates_the_same_text(runtime, head, exported):
    case = exported(head, runtime, pruned=True)
    assert case.result.difference < 1e-4
    model, runtime_model = case.model, load_exported(case.folder, full_precision=True)
    texts = sentences()
    for settings in ({}, {"num_beams": 3}, {"use_cache": False}):
        arguments = {"max_new_tokens": 12, "min_new_tokens": 12, **settings}
        assert runtime_model.generate(**texts, **arguments).tolist() == model.generate(**texts, **arguments).tolist()
    labels = torch.randint(2, 100, (3, 5))
    with torch.no_grad():
        expected = model(**texts, labels=labels).logits
    outputs = runtime_model(**texts, labels=labels)
    assert (outputs.logits - expected).abs().max() < 1e-3 * expected.abs().max()
    assert math.isnan(outputs.loss)
    assert AutoConfig.from_pretrained(case.folder).model_type == model.config.model_type.removeprefix("pruned_")
    with pytest.raises(ValueError, match="give input_ids"):
        runtime_model(decoder_input_ids=labels)
    if runtime == "onnx":
        options = runtime_model.runners[DECODE].session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.slow  # exports the three graphs of a generating model
def test_int8_export_of_a_generating_model_is_smaller(tmp_path):
    require("openvino")
    torch.manual_seed(0)
    sizes = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 1, "vocab_size": 1000}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    batches = [{**sentences(), "labels": torch.randint(2, 100, (3, 5))} for _ in range(2)]
    export(model, tmp_path / "int8", "openvino", "int8", batches)
    runtime_model = load_exported(tmp_path / "int8", "int8")
    assert runtime_model.runtime == "openvino int8"
    assert runtime_model.generate(**sentences(), max_new_tokens=4).shape == (3, 5)
    # The word embeddings are in all three graphs in float, as in a float export.
    assert runtime_model.bytes_on_disk < 0.9 * saved_bytes(model)


def test_load_exported_refuses_a_folder_without_an_export(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="holds no export: give a folder that `export` wrote"):
            load_exported(folder)


def test_load_exported_names_a_missing_runtime(tmp_path, monkeypatch):
    (tmp_path / "export.json").write_text(json.dumps({"export_format": "onnx", "components": {}}))
    monkeypatch.setattr("hf_efficient.measurement.runtimes.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'hf_efficient\[onnx\]'"):
        load_exported(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("export.json", "["),
        ("export.json", "[]"),
        ("export.json", "{}"),
        ("export.json", json.dumps({"export_format": "onnx"})),
        ("export.json", json.dumps({"export_format": "onnx", "components": {}})),
        ("export.json", json.dumps({"export_format": "onnx", "components": {"model": {"file": "../model.onnx"}}})),
        ("export.json", json.dumps({"export_format": "onnx", "components": {"model": {"file": 3, "metadata": 3}}})),
        ("config.json", "["),
        ("model.onnx", ""),
        ("model.onnx", "<html>"),
    ],
)
def test_load_exported_refuses_damaged_files(exported, tmp_path, file, content):
    folder = shutil.copytree(exported(format="onnx").folder, tmp_path / "onnx")
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=r"export (it|the model) again"):
        load_exported(folder)
