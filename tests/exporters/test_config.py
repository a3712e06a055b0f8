"""Tests of the settings of exports."""

import pytest

from hf_efficient import ExportConfig
from hf_efficient.exporters.config import EXPORT_FORMATS, FORMAT_QUANTIZATIONS, check_export_format
from hf_efficient.measurement.runtimes import RUNTIME_PACKAGES


def test_formats_are_the_runtimes_with_packages_of_their_own():
    assert EXPORT_FORMATS == tuple(RUNTIME_PACKAGES) == tuple(FORMAT_QUANTIZATIONS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((["tflite"],), "format='tflite' is unknown: give one of onnx, openvino"),
        ((["onnx"], "int8_weight_only"), "not available for onnx: give one of int8, or none for float32"),
        ((["openvino"], "int4"), "'int4' is not available for openvino: give one of int8, int8_weight_only"),
        (("onnx",), r"export='onnx' must be a list: give \['onnx'\]"),
    ],
)
def test_unknown_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ExportConfig(*settings)


def test_known_settings_are_accepted():
    for quantization in (None, "int8", "int8_weight_only"):
        check_export_format("openvino", quantization)
    config = ExportConfig(["onnx", "onnx"], "none")
    assert config.formats == ("onnx",)
    assert config.quantization is None


def test_int8_uses_calibration_and_that_of_openvino_needs_it():
    int8, weight_only = ExportConfig(["onnx", "openvino"]), ExportConfig(["openvino"], "int8_weight_only")
    assert int8.uses_calibration("openvino")
    assert int8.needs_calibration("openvino")
    assert int8.uses_calibration("onnx")
    assert not int8.needs_calibration("onnx")
    assert not weight_only.uses_calibration("openvino")
    assert not ExportConfig(["onnx"], "none").uses_calibration("onnx")
