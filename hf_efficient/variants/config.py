"""Names of the variants that a model can be measured in; see `builders` for how each is built."""

from __future__ import annotations

from typing import Any

from hf_efficient.registry import Registry

# Each value is called with (model, inputs, calibration, directory); it returns a `ModelVariant`, or None where the
# variant cannot be built on this machine.
VARIANTS: Registry[Any] = Registry(
    {
        "float32": "hf_efficient.variants.builders:float32",
        "bfloat16": "hf_efficient.variants.builders:bfloat16",
        "float16": "hf_efficient.variants.builders:float16",
        "int8": "hf_efficient.variants.builders:int8",
        "int8_compiled": "hf_efficient.variants.builders:int8_compiled",
        "int8_dynamic": "hf_efficient.variants.builders:int8_dynamic",
        "int8_weight_only": "hf_efficient.variants.builders:int8_weight_only",
        "onnx": "hf_efficient.variants.builders:onnx",
        "onnx_int8": "hf_efficient.variants.builders:onnx_int8",
        "openvino": "hf_efficient.variants.builders:openvino",
        "openvino_int8": "hf_efficient.variants.builders:openvino_int8",
        "openvino_int8_weight_only": "hf_efficient.variants.builders:openvino_int8_weight_only",
    }
)
