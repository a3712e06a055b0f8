"""Int8 graphs for ONNX Runtime in which the outputs of a text do not depend on the other texts of its batch.

Products with weights are computed by `MatMulIntegerToFloat`, from unsigned int8 activations and signed int8 weights.
Weights use 7 of the 8 bits, since processors without VNNI add two products in 16 bits: 255 x 63 x 2 fits.

| activations | when |
| --- | --- |
| one fixed range, outlier channels in float | with calibration data |
| one scale a token | without |

ONNX Runtime's own dynamic quantization has one range for the whole batch instead.

Source of the outlier channels: Dettmers et al. 2022, LLM.int8().
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import torch
from onnx_ir import DataType, Graph, Model, Node, Value
from transformers.exporters import ExportFormat, ExportQuantizer
from transformers.exporters.quantizers import CalibrationSet
from transformers.exporters.utils import onnx_feed

from hf_efficient.exporters.onnx_graph import (
    GraphBuilder,
    constant_of,
    fuse_attention,
    output_name,
    remove_unused_initializers,
    replace_output,
    unfuse_slow_kernels,
)

WEIGHT_LEVELS = 63
TABLE_LEVELS = 127
MIN_TABLE_ROWS = 64
OUTLIER_CHANNELS = 4
# Outlier channels are computed in float where the range of the others is that many times narrower.
MIN_NARROWING = 2.0
# What may stand between the product of a task head and an output of the graph.
HEAD_OPS = ("Add", "Split", "Squeeze", "Slice")

Ranges = Mapping[str, tuple[np.ndarray, np.ndarray]]


class OnnxFloatRewriter(ExportQuantizer):
    """Leaves a converted graph in float, in the form that ONNX Runtime runs fastest on a CPU."""

    supported_formats = (ExportFormat.ONNX,)
    required_packages = ("onnx", "onnx_ir")

    def quantize(self, model: Model, sample_inputs: dict[str, Any], export_format: ExportFormat) -> Model:
        """Return `model`, changed in place."""
        fuse_attention(model)
        unfuse_slow_kernels(model.graph)
        return model


class OnnxInt8Quantizer(ExportQuantizer):
    """Quantizes the products with weights and the embedding tables of a converted graph.

    Products of two activations, the biases, and heads with fewer outputs than inputs stay in float.
    """

    supported_formats = (ExportFormat.ONNX,)
    required_packages = ("onnx", "onnx_ir", "onnxruntime")

    def quantize(self, model: Model, sample_inputs: dict[str, Any], export_format: ExportFormat) -> Model:
        """Return `model`, quantized in place."""
        fuse_attention(model)
        products = find_products(model.graph)
        ranges: Ranges = {}
        if self.calibration_dataset:
            names = [str(value.name) for value in model.graph.inputs]
            feeds = CalibrationSet(self.calibration_dataset, sample_inputs, lambda sample: onnx_feed(names, sample))
            ranges = channel_ranges(model, products, feeds)
        _GraphQuantizer(model.graph, ranges).quantize(products)
        return model


@dataclass(frozen=True)
class Product:
    """A product of activations and constant weights.

    | attribute | meaning |
    | --- | --- |
    | weight | (inputs, outputs) |
    | table | the constant (outputs, inputs) that the weights are the transpose of, None if they are a constant |
    """

    node: Node
    weight: np.ndarray
    table: Value | None = None

    @property
    def input(self) -> Value:
        """The activations (..., inputs)."""
        value = self.node.inputs[0]
        assert value is not None
        return value


def find_products(graph: Graph) -> list[Product]:
    """Return the products to quantize, in the order of the graph."""
    products = []
    for node in graph:
        if node.op_type != "MatMul" or constant_of(node.inputs[0]) is not None:
            continue
        source = node.inputs[1]
        producer = source.producer() if source is not None else None
        table = producer.inputs[0] if producer is not None and producer.op_type == "Transpose" else None
        weight = constant_of(source) if table is None else _transposed(table)
        if weight is not None and weight.ndim == 2 and not _is_small_head(node, weight):
            products.append(Product(node, weight, table))
    return products


def channel_ranges(model: Model, products: Sequence[Product], feeds: Iterable[Mapping[str, np.ndarray]]) -> Ranges:
    """Return the smallest and the largest value of each channel (inputs,) of the products' inputs, by their names."""
    probe = model.clone()
    values = {value.name: value for node in probe.graph for value in node.outputs}
    values |= {value.name: value for value in probe.graph.inputs}
    width = {str(product.input.name): len(product.weight) for product in products}
    builder = GraphBuilder(probe.graph)
    for name, channels in width.items():
        rows = builder.op("Reshape", values[name], builder.constant(f"{name}.rows", np.array([-1, channels])))
        for extreme in ("Min", "Max"):
            output = builder.op(f"Reduce{extreme}", rows, builder.constant("first_axis", np.array([0])), keepdims=0)
            output.name = f"{name}.{extreme}"
            probe.graph.outputs.append(output)
    names = [f"{name}.{extreme}" for name in width for extreme in ("Min", "Max")]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx_ir.save(probe, path, external_data="model.onnx.data")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        extremes = [session.run(names, dict(feed)) for feed in feeds]
    found = dict(zip(names, zip(*extremes, strict=True), strict=True))
    return {name: (np.min(found[f"{name}.Min"], 0), np.max(found[f"{name}.Max"], 0)) for name in width}


def outlier_channels(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the indices of the channels with the largest values, none where leaving them out narrows little."""
    magnitude = np.maximum(-low, high)
    order = np.argsort(-magnitude)
    if len(order) <= OUTLIER_CHANNELS or magnitude[order[0]] < MIN_NARROWING * magnitude[order[OUTLIER_CHANNELS]]:
        return order[:0]
    return np.sort(order[:OUTLIER_CHANNELS])


def quantize_rows(weight: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows as integers in [-levels, levels] and their scales (rows,)."""
    scale = np.abs(weight).max(axis=1, initial=0).astype(np.float32) / levels
    scale[scale == 0] = 1
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


@dataclass(frozen=True)
class _Activations:
    """Quantized activations: `codes` are (values / token_scale) / scale + zero_point, `outliers` are in float."""

    codes: Value
    scale: Value
    zero_point: Value
    token_scale: Value | None = None
    channels: np.ndarray | None = None
    outliers: Value | None = None


class _GraphQuantizer:
    """Replaces products and embedding tables of one graph; inputs without a range get one scale a token."""

    def __init__(self, graph: Graph, ranges: Ranges) -> None:
        self.graph, self.ranges = graph, ranges
        self.builder = GraphBuilder(graph)
        self._activations: dict[tuple[str, bool], _Activations] = {}

    def quantize(self, products: Sequence[Product]) -> None:
        """Quantize the products, and the embedding tables."""
        tied = {product.table for product in products if product.table is not None}
        for product in products:
            self._replace_product(product)
        for node in list(self.graph):
            value = node.inputs[0] if node.op_type == "Gather" else None
            table = constant_of(value)
            if value is None or table is None or table.ndim != 2:
                continue
            if len(table) >= MIN_TABLE_ROWS or value in tied:
                self._replace_lookup(node, value)
        unfuse_slow_kernels(self.graph)
        remove_unused_initializers(self.graph)

    def _replace_product(self, product: Product) -> None:
        self.builder.position = node = product.node
        activations = self._quantized_input(product)
        weight, weight_scale = self._quantized_weight(product, activations.channels)
        bias = _bias(node) if activations.token_scale is None else None
        replaced = node
        inputs: list[Value | None] = [
            activations.codes,
            weight,
            activations.scale,
            weight_scale,
            activations.zero_point,
        ]
        if bias is not None:
            replaced, bias_value = bias
            inputs += [None, bias_value]
        output = self.builder.op("MatMulIntegerToFloat", *inputs, domain="com.microsoft")
        if activations.token_scale is not None:
            output = self.builder.op("Mul", output, activations.token_scale)
        if activations.channels is not None:
            rows = self.builder.constant(f"{output_name(node)}.outlier_rows", product.weight[activations.channels])
            output = self.builder.op("Add", output, self.builder.op("MatMul", activations.outliers, rows))
        replace_output(replaced, output)
        if replaced is not node:
            self.graph.remove(node, safe=True)

    def _quantized_input(self, product: Product) -> _Activations:
        name, is_tied = str(product.input.name), product.table is not None
        if (name, is_tied) not in self._activations:
            quantize = self._with_fixed_range if name in self.ranges else self._with_token_scales
            self._activations[name, is_tied] = quantize(product)
        return self._activations[name, is_tied]

    def _with_fixed_range(self, product: Product) -> _Activations:
        values, name = product.input, f"{product.input.name}.{'tied' if product.table is not None else 'fixed'}"
        low, high = self.ranges[str(values.name)]
        # The rows of a table that is shared with a lookup cannot be left out of the integer product.
        channels = outlier_channels(low, high) if product.table is None else np.array([], int)
        ordinary = np.setdiff1d(np.arange(len(low)), channels)
        bottom, top = min(low[ordinary].min(), 0.0), max(high[ordinary].max(), 0.0)
        step = np.float32(max(top - bottom, np.finfo(np.float32).tiny * 255) / 255)
        scale = self.builder.constant(f"{name}.scale", np.array(step))
        zero_point = self.builder.constant(f"{name}.zero_point", np.array(np.rint(-bottom / step), np.uint8))
        codes = self.builder.op("QuantizeLinear", values, scale, zero_point, dtype=DataType.UINT8)
        if not len(channels):
            return _Activations(codes, scale, zero_point)
        index = self.builder.constant(f"{name}.outliers", channels.astype(np.int64))
        outliers = self.builder.op("Gather", values, index, axis=-1)
        return _Activations(codes, scale, zero_point, channels=channels, outliers=outliers)

    def _with_token_scales(self, product: Product) -> _Activations:
        op, constant, values = self.builder.op, self.builder.constant, product.input
        largest = op("ReduceMax", op("Abs", values), constant("last_axis", np.array([-1])), keepdims=1)
        token_scale = op("Max", largest, constant("smallest_scale", np.array(1e-9, np.float32)))
        scale = constant("token.scale", np.array(1 / 127, np.float32))
        zero_point = constant("token.zero_point", np.array(128, np.uint8))
        codes = op("QuantizeLinear", op("Div", values, token_scale), scale, zero_point, dtype=DataType.UINT8)
        return _Activations(codes, scale, zero_point, token_scale)

    def _quantized_weight(self, product: Product, channels: np.ndarray | None) -> tuple[Value, Value]:
        """Return the weights (inputs, outputs) in int8, zero for `channels`, and the scales (outputs,)."""
        if product.table is not None:
            table, scale = self._quantized_table(product.table, WEIGHT_LEVELS)
            return self.builder.op("Transpose", table, dtype=DataType.INT8, perm=[1, 0]), scale
        weight, name = product.weight, output_name(product.node)
        if channels is not None:
            weight = weight.copy()
            weight[channels] = 0
        codes, column_scale = quantize_rows(weight.T, WEIGHT_LEVELS)
        return self.builder.constant(f"{name}.int8", codes.T), self.builder.constant(f"{name}.scale", column_scale)

    def _quantized_table(self, table: Value, levels: int) -> tuple[Value, Value]:
        """Return the table in int8, in `levels` unless it is quantized already, and the scales of its rows."""
        name = str(table.name)
        if f"{name}.int8" not in self.graph.initializers:
            array = constant_of(table)
            assert array is not None
            codes, scale = quantize_rows(array, levels)
            self.builder.constant(f"{name}.int8", codes)
            self.builder.constant(f"{name}.scale", scale)
        return self.graph.initializers[f"{name}.int8"], self.graph.initializers[f"{name}.scale"]

    def _replace_lookup(self, node: Node, table: Value) -> None:
        index = node.inputs[1]
        self.builder.position, op = node, self.builder.op
        codes, scale = self._quantized_table(table, TABLE_LEVELS)
        rows = op("Cast", op("Gather", codes, index, dtype=DataType.INT8, axis=0), to=DataType.FLOAT)
        last_axis = self.builder.constant("last_axis", np.array([-1]))
        scales = op("Unsqueeze", op("Gather", scale, index, axis=0), last_axis)
        replace_output(node, op("Mul", rows, scales))


def _transposed(value: Value | None) -> np.ndarray | None:
    table = constant_of(value)
    return None if table is None else table.T


def _bias(node: Node) -> tuple[Node, Value] | None:
    """Return the addition of a constant (outputs,) that alone reads the product, and the constant."""
    uses = [use.node for use in node.outputs[0].uses()]
    if len(uses) != 1 or uses[0].op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    for value in uses[0].inputs:
        constant = constant_of(value)
        if value is not None and constant is not None and constant.ndim == 1:
            return uses[0], value
    return None


def _is_small_head(node: Node, weight: np.ndarray) -> bool:
    """Whether the product has fewer outputs than inputs and leads to a graph output through `HEAD_OPS` only."""
    inputs, outputs = weight.shape
    todo = [*node.outputs] if outputs < inputs else []
    while todo:
        value = todo.pop()
        if value.is_graph_output():
            return True
        todo += [output for use in value.uses() if use.node.op_type in HEAD_OPS for output in use.node.outputs]
    return False
