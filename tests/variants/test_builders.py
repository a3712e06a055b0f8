"""Each variant of a model computes in the data type and the runtime of its name."""

import pytest
import torch
from torch import nn

from hf_efficient import QuantizationConfig, quantize
from hf_efficient.data.config import DataConfig
from hf_efficient.exporters.config import EXPORT_FORMATS, FORMAT_QUANTIZATIONS, uses_calibration
from hf_efficient.models import is_quantized
from hf_efficient.variants import builders
from hf_efficient.variants.builders import ModelVariant, check_not_quantized, check_variants
from hf_efficient.variants.config import VARIANTS

EXPORTED = {
    f"{format}_{quantization}" if quantization else format: (format, quantization)
    for format in EXPORT_FORMATS
    for quantization in (None, *FORMAT_QUANTIZATIONS[format])
}


class CompiledModule(nn.Module):
    """A module without a truth value, as torch.compile returns."""

    def __bool__(self):
        raise TypeError("a compiled module has no truth value")


@pytest.fixture
def no_runtime_check(monkeypatch):
    monkeypatch.setattr(builders, "check_runtime", lambda name: None)


def test_every_quantization_of_every_format_is_a_variant():
    float_types, int8 = {"float32", "bfloat16", "float16"}, {"int8", "int8_dynamic", "int8_weight_only"}
    assert set(VARIANTS) == {*float_types, *int8, "int8_compiled", *EXPORTED}
    assert all(callable(VARIANTS[name]) for name in VARIANTS)


def test_runner_is_the_forward_if_there_is_one():
    model, forward = CompiledModule(), CompiledModule()
    assert ModelVariant(model).runner is model
    assert ModelVariant(model, forward).runner is forward


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_float_variant_is_a_copy_in_its_dtype(name, make_model, make_batch, tmp_path):
    model = make_model()
    variant = VARIANTS[name](model, make_batch(), None, tmp_path)
    assert variant.model.dtype == getattr(torch, name)
    assert variant.forward is None
    assert model.dtype == torch.float32
    assert variant.model.classifier.weight is not model.classifier.weight


@pytest.mark.parametrize(
    ("name", "is_calibrated", "scheme"),
    [
        ("int8", True, "int8_static"),
        ("int8", False, "int8_dynamic"),
        ("int8_dynamic", True, "int8_dynamic"),
        ("int8_dynamic", False, "int8_dynamic"),
        ("int8_weight_only", False, "int8_weight_only"),
    ],
)
def test_int8_variant_is_quantized(name, is_calibrated, scheme, make_model, make_batch, tmp_path):
    model, calibration = make_model(), [make_batch()] if is_calibrated else None
    variant = VARIANTS[name](model, make_batch(), calibration, tmp_path)
    expected = quantize(model, QuantizationConfig(scheme), calibration)(**make_batch()).logits
    assert torch.equal(variant.runner(**make_batch()).logits, expected)
    assert is_quantized(variant.model)
    assert not is_quantized(model)


def test_compiled_variant_runs_the_compiled_model(make_model, make_batch, tmp_path, monkeypatch):
    compiled = CompiledModule()
    monkeypatch.setattr(builders, "compile_variant", lambda model, inputs: compiled)
    variant = VARIANTS["int8_compiled"](make_model(), make_batch(), None, tmp_path)
    assert is_quantized(variant.model)
    assert variant.runner is compiled


def test_compiled_variant_is_none_where_nothing_can_be_compiled(make_model, make_batch, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "compile_variant", lambda model, inputs: None)
    assert VARIANTS["int8_compiled"](make_model(), make_batch(), None, tmp_path) is None


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_variant_is_loaded_from_its_own_folder(name, make_model, make_batch, tmp_path, monkeypatch):
    calls, (format, quantization) = [], EXPORTED[name]
    monkeypatch.setattr(builders, "export", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(
        builders,
        "load_exported",
        lambda directory, quantization, full_precision: (directory, quantization, full_precision),
    )
    model, calibration = make_model(), [make_batch()]
    variant = VARIANTS[name](model, make_batch(), calibration, tmp_path)
    batches = calibration if uses_calibration(format, quantization) else None
    assert calls == [(model, tmp_path / format, format, quantization, batches)]
    assert variant.model == (tmp_path / format, quantization, quantization is None)


# ---- user errors ----


def test_quantized_model_has_no_variants(make_model):
    check_not_quantized(make_model(), "out")
    with pytest.raises(ValueError, match="out is quantized already: leave out --variants, or give its float model"):
        check_not_quantized(quantize(make_model()), "out")


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="variant 'int3' is unknown: give one of float32, bfloat16"):
        check_variants(["float32", "int3"], DataConfig())


def test_missing_runtime_is_refused(monkeypatch):
    monkeypatch.setattr("hf_efficient.measurement.runtimes.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'hf_efficient\[onnx\]'"):
        check_variants(["onnx_int8"], DataConfig())


@pytest.mark.parametrize(
    ("fields", "is_enough"),
    [
        ({}, False),
        ({"validation_file": "dev.csv"}, False),
        ({"train_file": "train.csv"}, False),
        ({"train_file": "train.csv", "validation_file": "dev.csv"}, True),
        ({"train_file": "train.csv", "test_file": "test.csv"}, True),
        ({"dataset_name": "someone/reviews"}, True),
    ],
)
def test_calibration_data_is_other_than_evaluation_data(fields, is_enough, no_runtime_check):
    data = DataConfig(**fields)
    check_variants(["openvino", "openvino_int8_weight_only", "onnx_int8"], data)
    if is_enough:
        check_variants(["openvino_int8"], data)
    else:
        with pytest.raises(
            ValueError, match="variant openvino_int8 needs calibration data that no metric is measured"
        ):
            check_variants(["openvino_int8"], data)
