"""The code that makes a variant has at most three lines and runs."""

import ast

import pytest
import torch

from hf_efficient.models import is_quantized
from hf_efficient.variants.config import VARIANTS
from hf_efficient.variants.usage import variant_code


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_code(variant):
    code = variant_code(variant, "me/films", "AutoModel", is_calibrated=True)
    assert 2 <= len(code) <= 3
    compile("\n".join(code), "<code>", "exec")
    assert 'AutoModel.from_pretrained("me/films"' in "\n".join(code)


@pytest.mark.parametrize(
    ("variant", "is_calibrated"),
    [("float32", False), ("bfloat16", True), ("int8", False), ("int8", True), ("int8_weight_only", False)],
)
def test_code_makes_the_variant(make_model, make_batch, tmp_path, variant, is_calibrated):
    make_model().save_pretrained(tmp_path)
    values = {"batches": [make_batch()]}
    exec("\n".join(variant_code(variant, str(tmp_path), "AutoModelForSequenceClassification", is_calibrated)), values)
    model = values["model"]
    assert is_quantized(model) == variant.startswith("int8")
    assert model.dtype == (torch.bfloat16 if variant == "bfloat16" else torch.float32)
    if variant == "int8":
        assert model.config.int8["activations"] == ("static" if is_calibrated else "dynamic")


def test_exports_name_format_and_quantization():
    code = variant_code("openvino_int8", "me/films", "AutoModel", is_calibrated=True)
    assert code[1].endswith('"exported", format="openvino", quantization="int8", calibration=batches)')
    for is_calibrated in (False, True):
        code = variant_code("onnx", "me/films", "AutoModel", is_calibrated)
        assert code[1].endswith('"exported", format="onnx")')
        code = variant_code("onnx_int8", "me/films", "AutoModel", is_calibrated)
        assert ("calibration=batches" in code[1]) == is_calibrated


@pytest.mark.parametrize("variant", VARIANTS)
def test_name_with_quotes_stays_a_name(variant):
    name = 'films"); import os; ("'
    tree = ast.parse("\n".join(variant_code(variant, name, "AutoModel", is_calibrated=False)))
    assert name in [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
