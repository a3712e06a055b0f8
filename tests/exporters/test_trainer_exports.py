"""Tests of a trainer that exports what it trained."""

import pytest
import torch
from export_cases import largest_difference, require
from trainers import build, classifier, collate, rows
from transformers import BertForSequenceClassification, RemBertConfig, RemBertForSequenceClassification
from transformers.exporters import ExportedModel

from hf_efficient import DistillationConfig, EfficientTrainer, ExportConfig, PruningConfig, QuantizationConfig


def one_layer_classifier():
    model = classifier()
    del model.bert.encoder.layer[1:]
    model.config.num_hidden_layers = 1
    return model


def build_exporting(folder, export, **techniques):
    return build(folder, model=one_layer_classifier(), techniques={"export": export, **techniques})


@pytest.mark.slow
def test_export_is_a_row_of_the_report(tmp_path):
    require("onnx")
    trainer = build_exporting(
        tmp_path,
        ExportConfig(["onnx"]),
        distillation=DistillationConfig(),
        pruning=PruningConfig(neurons=0.5, recovery=False),
        quantization=QuantizationConfig(compile=False),
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    assert [row.role for row in trainer.report.models] == ["teacher", "student", "quantized", "onnx"]
    row = trainer.report.row("onnx")
    assert row.name == "onnx int8"
    assert set(row.metrics) == {"accuracy"}
    assert row.parameters is row.flops is None
    assert row.latency_ms.runtime == "onnxruntime int8"
    weights = [path for path in (tmp_path / "onnx").iterdir() if path.suffix != ".json"]
    assert row.bytes_on_disk == sum(path.stat().st_size for path in weights) > 0
    assert row.ratios.speedup is not None
    assert any(stage.startswith("exported to onnx (int8); outputs differ") for stage in trainer.report.stages)
    assert trainer.report.final.role == "quantized"
    assert ExportedModel.from_pretrained(tmp_path, subfolder="onnx").config.model_type == "bert"
    card = (tmp_path / "README.md").read_text()
    assert 'ExportedModel.from_pretrained(name, subfolder="onnx")' in card
    assert trainer.report.configs["export"] == {"export": ["onnx"], "export_quantization": "int8"}


def test_float_export_computes_and_is_measured_as_the_trained_student(tmp_path, monkeypatch):
    require("openvino")
    trainer = build_exporting(tmp_path, ExportConfig(["openvino"], "none"), distillation=DistillationConfig())
    measured, build_report = {}, trainer.build_report
    monkeypatch.setattr(
        trainer, "build_report", lambda models, exported: measured.update(exported) or build_report(models, exported)
    )
    trainer.train()
    batch = collate(list(rows(8, seed=5)))
    batch.pop("labels")
    with torch.no_grad():
        expected = trainer.model.eval()(**batch)
    # In float32, although OpenVINO would compute in bfloat16 by default.
    assert largest_difference(measured["openvino"](**batch), expected) < 1e-5 * expected.logits.abs().max()
    metrics = trainer.report.row("openvino").metrics
    assert metrics == {"accuracy": trainer.report.row("student").metrics["accuracy"]}


def test_training_with_an_export_alone_is_that_of_trainer(tmp_path):
    require("openvino")
    trainer = build_exporting(tmp_path / "exporting", ExportConfig(["openvino"]))  # calibrated on the training data
    plain = build(tmp_path / "plain", model=one_layer_classifier())
    trainer.train()
    plain.train()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name])
    names = [(row.role, row.name) for row in trainer.report.models]
    assert names == [("teacher", "model"), ("openvino", "openvino int8")]
    assert trainer.report.row("openvino").latency_ms.runtime == "openvino int8"


def test_trained_model_is_kept_when_an_export_fails(tmp_path, monkeypatch):
    require("onnx")

    def fail(*_, **__):
        raise RuntimeError("no kernel for that")

    monkeypatch.setattr("hf_efficient.trainer.run.export", fail)
    trainer = build_exporting(tmp_path, ExportConfig(["onnx"]))
    with pytest.raises(RuntimeError, match="no kernel"):
        trainer.train()
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "_student")
    assert torch.equal(saved.classifier.weight, trainer.model.classifier.weight)


def test_calibration_without_training_data_is_refused(make_model):
    require("openvino")
    with pytest.raises(ValueError, match="and there is none: give train_dataset"):
        EfficientTrainer(model=make_model(), export=ExportConfig(["openvino"]))


def test_unknown_architecture_is_refused_before_training(tmp_path):
    require("onnx")
    config = RemBertConfig(
        vocab_size=60, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(TypeError, match="rembert"):
        build(tmp_path, model=RemBertForSequenceClassification(config), techniques={"export": ExportConfig(["onnx"])})
