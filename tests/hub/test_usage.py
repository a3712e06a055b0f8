"""The code on a card loads the form that the report recommends."""

import ast

import pytest
import torch

from hf_efficient import CompressionReport, QuantizationConfig, quantize
from hf_efficient.hub.usage import loading_code, quoted
from hf_efficient.measurement.report_rows import Latency, ModelRow

AUTO = "AutoModelForSequenceClassification"


def report_recommending(role, *others):
    """Return a report on a teacher, a student and these forms, of which the one in the role `role` is the fastest."""
    roles = ["teacher", "student", *others]
    times = [1.0 if name == role else 9.0 for name in roles]
    rows = [
        ModelRow(name, name, latency_ms=Latency(time, time, 1, 1, 1, "torch"))
        for name, time in zip(roles, times, strict=True)
    ]
    report = CompressionReport(models=rows)
    assert report.recommended == role
    return report


@pytest.fixture
def folder(make_model, make_batch, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "out" / "_student")
    quantize(model, QuantizationConfig("int8_dynamic")).save_pretrained(tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("role", "name", "options"),
    [
        ("student", "out/_student", ""),
        ("bfloat16", "out/_student", ", dtype=torch.bfloat16"),
        ("quantized", "out", ", trust_remote_code=True"),
    ],
)
def test_torch_model_is_loaded_from_its_folder(folder, role, name, options):
    *imports, code = loading_code(report_recommending(role, "quantized", "bfloat16"), folder, "out")
    assert code == f'model = {AUTO}.from_pretrained("{name}"{options})'
    assert imports == ["import torch"] * (role == "bfloat16") + [f"from transformers import {AUTO}"]


def test_code_loads_the_model(folder):
    values = {}
    exec("\n".join(loading_code(report_recommending("student", "quantized"), folder)), values)
    assert values["model"].dtype == torch.float32
    assert not getattr(values["model"].config, "int8", None)


def test_student_without_other_models_is_in_the_folder_itself(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    code = loading_code(report_recommending("student", "onnx"), tmp_path, "out")
    assert code == [f"from transformers import {AUTO}", f'model = {AUTO}.from_pretrained("out")']


def test_compiled_model_is_compiled_after_loading(folder):
    code = loading_code(report_recommending("compiled", "quantized", "compiled"), folder, "out")
    assert code[2].startswith(f'model = torch.compile({AUTO}.from_pretrained("out", trust_remote_code=True)')
    assert len(code) == 3


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_exports_are_loaded_by_their_runtime(folder, format):
    code = loading_code(report_recommending(format, "quantized", format), folder, "out")
    assert code[1] == f'model = ExportedModel.from_pretrained("out", subfolder="{format}")'


def test_exports_that_generate_text_are_loaded_by_this_package(make_model, tmp_path):
    make_model("T5ForConditionalGeneration").save_pretrained(tmp_path)
    code = loading_code(report_recommending("onnx", "onnx"), tmp_path, "out")
    assert code == ["from hf_efficient import load_exported", 'model = load_exported("out/onnx")']


def test_model_before_quantization_is_not_in_the_folder(folder):
    rows = [
        ModelRow(role, role, latency_ms=Latency(time, time, 1, 1, 1, "torch"))
        for role, time in (("teacher", 1.0), ("quantized", 2.0))
    ]
    assert CompressionReport(models=rows).recommended == "teacher"
    assert loading_code(CompressionReport(models=rows), folder) == []
    assert loading_code(CompressionReport(), folder) == []


@pytest.mark.parametrize("name", ['a"); import os; os.system("x', "back\\slash", "it's", "line\nbreak"])
def test_name_of_a_folder_is_a_text_in_the_code(name):
    assert ast.literal_eval(quoted(name)) == name
