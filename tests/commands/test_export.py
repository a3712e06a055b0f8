"""`hf-efficient export`: from the command line to the exports that load."""

import pytest
import torch
from reviews import flags
from transformers import AutoModelForSequenceClassification
from transformers.exporters import ExportedModel

from hf_efficient import CompressionReport
from hf_efficient.cli import main

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}


def require(*formats):
    for format in formats:
        for package in PACKAGES[format]:
            pytest.importorskip(package, reason=f"the extra hf_efficient[{format}] is not installed")


def flags_without_data(job_dir):
    return ["--model_name_or_path", str(job_dir / "model"), "--output_dir", str(job_dir / "out")]


@pytest.mark.slow
def test_export_does_not_change_the_model(job_dir):
    require("onnx", "openvino")
    assert main(["export", *flags(job_dir), "--export", "onnx", "openvino"]) == 0
    report = CompressionReport.load(job_dir / "out")
    assert [(row.role, row.name) for row in report.models] == [
        ("teacher", "model"),
        ("onnx", "onnx int8"),
        ("openvino", "openvino int8"),
    ]
    assert all(row.metrics["accuracy"] > 0.9 for row in report.models)
    assert all(row.ratios.metric_retained for row in report.models)
    before = AutoModelForSequenceClassification.from_pretrained(job_dir / "model").state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(job_dir / "out").state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for format in ("onnx", "openvino"):
        assert ExportedModel.from_pretrained(job_dir / "out", subfolder=format).config.num_labels == 2
    assert "with exports for other runtimes" in (job_dir / "out" / "README.md").read_text()


def test_export_in_float_needs_no_data(job_dir):
    require("onnx")
    command = ["export", *flags_without_data(job_dir), "--export", "onnx", "--export_quantization", "none"]
    assert main(command) == 0
    assert CompressionReport.load(job_dir / "out").row("onnx").name == "onnx float32"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--export is required: give one or more of onnx, openvino"),
        (["--export", "onnx", "--scheme", "int8_dynamic"], "export does not change the model"),
        (["--export", "tensorrt"], "format='tensorrt' is unknown: give one of onnx, openvino"),
    ],
    ids=str,
)
def test_export_refuses_what_it_cannot_do(job_dir, capsys, arguments, sentence):
    assert main(["export", *flags_without_data(job_dir), *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not (job_dir / "out").exists()


def test_int8_export_to_openvino_needs_calibration_data(job_dir, capsys):
    require("openvino")
    assert main(["export", *flags_without_data(job_dir), "--export", "openvino"]) == 2
    assert "training data" in capsys.readouterr().err
