"""Int8 graphs for ONNX Runtime: 7-bit weights, outlier channels in float, tied tables, small heads in float."""

# ruff: noqa: E402 (what is imported needs the packages)
import numpy as np
import pytest

pytest.importorskip("onnx_ir", reason="the extra hf_efficient[onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra hf_efficient[onnx] is not installed")

import onnx_ir
import torch
from onnx_ir import DataType
from transformers.exporters import ExportFormat

from hf_efficient.exporters.onnx_graph import GraphBuilder, constant_of
from hf_efficient.exporters.onnx_int8 import (
    OUTLIER_CHANNELS,
    WEIGHT_LEVELS,
    OnnxInt8Quantizer,
    outlier_channels,
    quantize_rows,
)

CHANNELS = 32


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def graph_of(build):
    """A model with the input x (texts, tokens, channels), or ids (texts, tokens), and the output that `build` adds."""
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(DataType.FLOAT), shape=onnx_ir.Shape(["b", "t", CHANNELS]))
    graph = onnx_ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="test")
    output = build(GraphBuilder(graph), x)
    output.name, output.shape = "y", onnx_ir.Shape(["b", "t", "n"])
    graph.outputs.append(output)
    return onnx_ir.Model(graph, ir_version=10)


def run(model, **feed):
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString())
    return session.run(None, feed)[0]


def quantize(model, *calibration):
    samples = [{"x": torch.from_numpy(each)} for each in calibration]
    return OnnxInt8Quantizer(samples or None).quantize(model.clone(), {}, ExportFormat.ONNX)


def operations(model):
    return [node.op_type for node in model.graph]


def product_with_bias(builder, x):
    product = builder.op("MatMul", x, builder.constant("weight", random(CHANNELS, 48)))
    return builder.op("Relu", builder.op("Add", product, builder.constant("bias", random(48, seed=1))))


def relative_error(outputs, expected):
    return np.abs(outputs - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("calibrated", [True, False], ids=["fixed range", "scale a token"])
def test_products_are_close_and_do_not_depend_on_the_batch(calibrated):
    model, x = graph_of(product_with_bias), random(4, 6, CHANNELS, seed=2)
    quantized = quantize(model, *([x] if calibrated else []))
    assert operations(quantized).count("MatMulIntegerToFloat") == 1
    assert "MatMul" not in operations(quantized)
    outputs = run(quantized, x=x)
    assert 1e-4 < relative_error(outputs, run(model, x=x)) < 0.03
    louder = np.concatenate([x, 50 * x])
    assert (run(quantized, x=louder)[:4] == outputs).all()


def test_bias_is_added_by_the_integer_product():
    quantized = quantize(graph_of(product_with_bias), random(4, 6, CHANNELS))
    assert operations(quantized) == ["QuantizeLinear", "MatMulIntegerToFloat", "Relu"]


def test_weights_have_seven_bits():
    quantized = quantize(graph_of(product_with_bias))
    product = next(node for node in quantized.graph if node.op_type == "MatMulIntegerToFloat")
    weight = constant_of(product.inputs[1])
    assert weight.dtype == np.int8
    assert weight.max() == WEIGHT_LEVELS == 63
    assert weight.min() >= -63
    assert 255 * 63 * 2 < 2**15


def test_outlier_channels_are_computed_in_float():
    x = random(4, 6, CHANNELS)
    x[..., [3, 7]] *= 100
    model = graph_of(product_with_bias)
    quantized = quantize(model, x)
    assert operations(quantized).count("Gather") == 1
    assert relative_error(run(quantized, x=x), run(model, x=x)) < 5e-4
    # Values of those channels may leave the calibrated range.
    beyond = x.copy()
    beyond[..., 3] *= 10
    assert relative_error(run(quantized, x=beyond), run(model, x=beyond)) < 5e-4


@pytest.mark.parametrize(
    ("largest", "expected"),
    [([9, 1, 8, 1, 1, 7, 6, 3], [0, 2, 5, 6]), ([9, 1, 8, 1, 5, 7, 6, 3], []), ([9, 1], [])],
    ids=["narrower by three", "narrower by less than two", "few channels"],
)
def test_channels_are_outliers_where_the_range_of_the_others_is_narrow(largest, expected):
    largest = np.array(largest, np.float32)
    assert len(expected) in (0, OUTLIER_CHANNELS)
    assert outlier_channels(-largest, largest / 2).tolist() == expected


def test_tied_table_is_stored_once():
    table = random(400, CHANNELS)  # smaller ones are transposed when the graph is optimized

    def build(builder, x):
        shared = builder.constant("table", table)
        ids = builder.op("ArgMax", x, dtype=DataType.INT64, axis=-1, keepdims=0)
        states = builder.op("Add", builder.op("Gather", shared, ids, axis=0), x)
        return builder.op("MatMul", states, builder.op("Transpose", shared, perm=[1, 0]))

    model, x = graph_of(build), random(4, 6, CHANNELS, seed=3)
    for calibration in ([x], []):
        quantized = quantize(model, *calibration)
        tables = [value for value in quantized.graph.initializers.values() if value.const_value.size == table.size]
        assert [value.const_value.dtype for value in tables] == [DataType.INT8]
        assert relative_error(run(quantized, x=x), run(model, x=x)) < 0.03


def test_small_heads_stay_in_float():
    def build(builder, x):
        states = builder.op("MatMul", x, builder.constant("first", random(CHANNELS, CHANNELS)))
        logits = builder.op("MatMul", builder.op("Relu", states), builder.constant("head", random(CHANNELS, 3)))
        return builder.op("Add", logits, builder.constant("bias", random(3)))

    assert operations(quantize(graph_of(build))).count("MatMul") == 1


def test_additions_before_layer_norms_are_not_fused_with_them():
    def build(builder, x):
        product = builder.op("MatMul", x, builder.constant("weight", random(CHANNELS, CHANNELS)))
        added = builder.op("Add", builder.op("Add", product, builder.constant("bias", random(CHANNELS))), x)
        return builder.op("LayerNormalization", added, builder.constant("scale", random(CHANNELS)), axis=-1)

    quantized = quantize(graph_of(build))
    assert operations(quantized).count("Sum") == 2
    assert "Add" not in operations(quantized)


def test_rows_of_zeros_have_the_scale_one():
    codes, scale = quantize_rows(np.array([[0.0, 0.0], [-2.0, 0.6]], np.float32), 63)
    assert codes.tolist() == [[0, 0], [-63, 19]]
    assert scale.tolist() == pytest.approx([1, 2 / 63])
