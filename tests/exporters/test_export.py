"""Exported models compute as in torch, for every head and every family; what cannot work is refused before."""

import copy
import json
import shutil
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from export_cases import FULL_PRECISION, largest_difference, require
from heads import BERT_HEADS, HEADS
from trainers import collate, rows
from transformers import (
    AutoConfig,
    BertConfig,
    BertForSequenceClassification,
    RemBertConfig,
    RemBertForSequenceClassification,
)
from transformers.exporters import ExportedModel

from hf_efficient import QuantizationConfig, export, quantize
from hf_efficient.exporters.checks import batch_difference, padded_batch
from hf_efficient.exporters.export import ExportResult, warn_if_slow
from hf_efficient.measurement.cost import saved_bytes

OTHER_ENCODERS = [
    head
    for head, (family, _) in HEADS.items()
    if head.endswith("ForSequenceClassification") and family.model_type not in ("bert", "t5", "mt5")
]
# Its question answering is T5Model with the head of BERT's; what generates is in test_runtime_models.py.
T5_HEADS = [
    head
    for head, (family, _) in HEADS.items()
    if family.model_type == "t5" and not head.endswith(("ForConditionalGeneration", "ForQuestionAnswering"))
]


def test_exported_model_computes_as_torch_for_any_batch_and_length(runtime, exported):
    case = exported(format=runtime, pruned=True)
    assert case.result.difference < 1e-4
    assert [path.name for path in case.folder.parent.iterdir()] == [runtime]
    loaded = ExportedModel.from_pretrained(case.folder, **FULL_PRECISION.get(runtime, {}))
    for batch_size, length in ((1, 3), (5, 17), (2, 40)):
        ids = torch.randint(1, 100, (batch_size, length))
        mask = torch.ones_like(ids)
        mask[-1, length // 2 + 1 :] = 0
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": (ids > 50).long()}
        with torch.no_grad():
            assert largest_difference(loaded(**batch), case.model(**batch)) < 1e-4


def test_exported_pruned_model_has_the_config_of_the_stock_class(runtime, exported):
    folder = exported(format=runtime, pruned=True).folder
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "bert"
    assert config.architectures == ["BertForSequenceClassification"]
    assert not list(folder.glob("*.py"))


@pytest.mark.parametrize("head", BERT_HEADS)
def test_every_head_of_bert_is_exported_after_pruning(head, exported):
    assert exported(head, pruned=True).result.difference < 1e-4


@pytest.mark.parametrize("head", [*OTHER_ENCODERS, *T5_HEADS])
def test_every_encoder_and_every_head_of_t5_is_exported(head, exported):
    assert exported(head, pruned=head in OTHER_ENCODERS).result.difference < 1e-4


def test_exported_config_has_the_common_names_of_sizes(exported):
    folder = exported("DistilBertForSequenceClassification", pruned=True).folder
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]) == (32, 1, 4)
    loaded = AutoConfig.from_pretrained(folder)
    assert (loaded.dim, loaded.n_layers, loaded.n_heads) == (32, 1, 4)


@pytest.fixture(scope="module")
def small_model():
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 512}
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**sizes, vocab_size=2000)).eval()


def calibration_batches():
    return [collate(list(rows(8, seed=seed))) for seed in range(3)]


@pytest.fixture(scope="module")
def int8_export(small_model, tmp_path_factory):
    """Exports a small model in int8, each time once: the folder and the result."""

    @cache
    def build(runtime, quantization="int8", calibrated=True):
        require(runtime)
        folder = tmp_path_factory.mktemp("int8") / runtime
        calibration = calibration_batches() if calibrated else None
        return SimpleNamespace(folder=folder, result=export(small_model, folder, runtime, quantization, calibration))

    return build


INT8_EXPORTS = [
    ("onnx", "int8", True),
    ("onnx", "int8", False),
    ("openvino", "int8", True),
    ("openvino", "int8_weight_only", False),
]


@pytest.mark.parametrize(("runtime", "quantization", "calibrated"), INT8_EXPORTS)
def test_int8_exports_are_smaller_and_compute_almost_the_same(
    runtime, quantization, calibrated, small_model, int8_export
):
    case = int8_export(runtime, quantization, calibrated)
    assert 1e-6 < case.result.difference < 0.1
    title = quantization.replace("_", " ")
    assert case.result.describe() == (
        f"exported to {runtime} ({title}); outputs differ from torch by at most {case.result.difference:.2%}"
    )
    assert case.result.speed > 0
    weights = sum(path.stat().st_size for path in case.folder.iterdir() if path.suffix != ".json")
    assert weights < 0.4 * saved_bytes(small_model)


@pytest.mark.parametrize(("runtime", "quantization", "calibrated"), INT8_EXPORTS)
def test_outputs_of_a_text_do_not_depend_on_its_batch(runtime, quantization, calibrated, small_model, int8_export):
    case = int8_export(runtime, quantization, calibrated)
    assert case.result.batch_difference < 1e-4
    loaded = ExportedModel.from_pretrained(case.folder, **FULL_PRECISION.get(runtime, {}))
    assert batch_difference(loaded, padded_batch(small_model)) < 1e-2


def test_dependence_on_the_batch_is_measured_and_described():
    class CenteredTokens(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            tokens = input_ids.float() * attention_mask
            return {"logits": tokens - 0.5 * tokens.mean()}

    batch = {
        "input_ids": torch.tensor([[4, 4, 4, 4], [8, 8, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }
    # Alone, the first text is 4 - 2 = 2 and the second 8 - 4 = 4; together, 4 - 2 = 2 and 8 - 2 = 6, the largest.
    assert batch_difference(CenteredTokens(), batch) == pytest.approx(2 / 6)
    described = ExportResult("onnx", "int8", "out", 0.01, 2 / 6).describe()
    assert described.endswith("and between a text alone and in a batch by up to 33.33%")


@pytest.mark.parametrize(("speed", "warned"), [(0.5, True), (1.5, False), (None, False)])
def test_export_that_is_slower_than_float_gets_a_warning(speed, warned, monkeypatch):
    warnings = []
    monkeypatch.setattr("hf_efficient.exporters.export.logger.warning", warnings.append)
    warn_if_slow(ExportResult("onnx", "int8", "out", 0.01, 0.0, speed))
    sentence = (
        "the onnx export (int8) is smaller, but slower on this machine: it takes 2.00 times as long as the float "
        "model in torch"
    )
    assert warnings == [sentence] * warned


def test_wrong_export_is_refused_and_the_earlier_one_is_kept(exported, one_layer_model, tmp_path, monkeypatch):
    folder = shutil.copytree(exported().folder, tmp_path / "onnx")
    before = (folder / "export.json").read_bytes()
    monkeypatch.setattr("hf_efficient.exporters.export.max_relative_difference", lambda *_: 0.5)
    with pytest.raises(RuntimeError, match=r"differs from torch by 50.00% .* is not kept"):
        export(one_layer_model("BertForSequenceClassification", seed=2), folder, "onnx")
    assert (folder / "export.json").read_bytes() == before


def test_export_replaces_an_earlier_one_and_does_not_change_the_model(exported, one_layer_model, tmp_path):
    folder = shutil.copytree(exported().folder, tmp_path / "onnx")
    (folder / "stale.json").write_text("{}")
    model = one_layer_model("BertForSequenceClassification", seed=3).bfloat16().train()
    assert export(model, folder, "onnx").difference < 1e-4
    assert model.training
    assert model.dtype == torch.bfloat16
    assert not (folder / "stale.json").exists()
    batch = {"input_ids": torch.arange(1, 9)[None]}
    with torch.no_grad():
        expected = copy.deepcopy(model).float().eval()(**batch).logits
    batch |= {"attention_mask": torch.ones(1, 8).long(), "token_type_ids": torch.zeros(1, 8).long()}
    torch.testing.assert_close(ExportedModel.from_pretrained(folder)(**batch).logits, expected, atol=1e-4, rtol=1e-4)


# ---- user errors ----


def test_static_int8_needs_calibration_batches(make_model, tmp_path):
    require("openvino")
    with pytest.raises(ValueError, match="give `calibration`, batches of your data"):
        export(make_model(), tmp_path / "openvino", "openvino", "int8")
    with pytest.raises(ValueError, match="the calibration data is empty"):
        export(make_model(), tmp_path / "openvino", "openvino", "int8", [])
    assert not (tmp_path / "openvino").exists()


def test_quantized_model_is_refused(make_model, tmp_path):
    require("onnx")
    quantized = quantize(make_model(), QuantizationConfig("int8_weight_only"))
    with pytest.raises(ValueError, match="the model is quantized already: export the float model"):
        export(quantized, tmp_path / "onnx", "onnx")


def test_missing_runtime_is_named(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_efficient.measurement.runtimes.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'hf_efficient\[onnx\]'"):
        export(make_model(), tmp_path / "onnx", "onnx")
    assert not (tmp_path / "onnx").exists()


def test_missing_quantizer_is_named(make_model, tmp_path, monkeypatch):
    require("openvino")
    monkeypatch.setattr("hf_efficient.exporters.export.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"needs nncf, which is not installed: pip install 'hf_efficient\[openvino\]'"
    ):
        export(make_model(), tmp_path / "openvino", "openvino", "int8_weight_only")


def test_folders_with_other_files_are_not_replaced(make_model, tmp_path):
    require("onnx")
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    for folder in (tmp_path / "model", tmp_path):
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(ValueError, match="holds other files than an export: give a folder of its own"):
            export(model, folder, "onnx")
        assert sorted(path.name for path in folder.iterdir()) == before


def test_unknown_architecture_is_refused(tmp_path):
    require("onnx")
    config = RemBertConfig(
        vocab_size=60, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(TypeError, match="rembert"):
        export(RemBertForSequenceClassification(config), tmp_path / "onnx", "onnx")
