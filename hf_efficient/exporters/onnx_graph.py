"""Reading and changing ONNX graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from onnx_ir import DataType, Graph, Model, Node, Value
from onnx_ir.passes.common import ShapeInferencePass
from onnxscript.optimizer import optimize
from onnxscript.rewriter.ort_fusions import shape_optimization
from onnxscript.rewriter.ort_fusions.sdpa import fuse_sdpa
from onnxscript.rewriter.ort_fusions.sdpa_via_mha import replace_sdpa_by_mha


class GraphBuilder:
    """Adds nodes and constants to a graph: before the node `position`, at the end if it is None."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.position: Node | None = None

    def op(
        self,
        op_type: str,
        *inputs: Value | None,
        dtype: DataType = DataType.FLOAT,
        domain: str = "",
        **attributes: Any,
    ) -> Value:
        """Add a node of one output; return the output."""
        node = onnx_ir.node(op_type, inputs, attributes=attributes, domain=domain)
        if self.position is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.position, node)
        node.outputs[0].dtype = dtype
        return node.outputs[0]

    def constant(self, name: str, array: np.ndarray) -> Value:
        """Return the constant of this name, added if there is none."""
        if name not in self.graph.initializers:
            array = np.array(array, order="C")
            value = Value(name=name, const_value=onnx_ir.tensor(array, name=name))
            value.dtype, value.shape = DataType.from_numpy(array.dtype), onnx_ir.Shape(array.shape)
            self.graph.register_initializer(value)
        return self.graph.initializers[name]


def unfuse_slow_kernels(graph: Graph) -> None:
    """Replace the additions before layer norms and GELUs by `Sum`, which ONNX Runtime leaves as it is.

    It fuses `Add` with them into SkipLayerNormalization and BiasGelu, whose CPU kernels take two to four times as long
    as the separate ones.
    """
    for node in list(graph):
        if node.op_type in ("LayerNormalization", "Gelu"):
            additions = [
                producer for addition in _producers(node)[:1] for producer in (addition, *_producers(addition))
            ]
            for candidate in additions:
                if candidate.op_type == "Add":
                    total = onnx_ir.node("Sum", list(candidate.inputs))
                    graph.insert_before(candidate, total)
                    replace_output(candidate, total.outputs[0])


def remove_unused_initializers(graph: Graph) -> None:
    """Remove the constants that nothing reads, and the transposes of them."""
    for node in list(graph):
        if node.op_type == "Transpose" and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def output_name(node: Node) -> str:
    """Return the name of the first output."""
    return str(node.outputs[0].name)


def constant_of(value: Value | None) -> np.ndarray | None:
    """Return the array of a constant, None if `value` is not one."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def replace_output(node: Node, output: Value) -> None:
    """Let `output` take the place, the name and the shape of the output of `node`, and remove `node`."""
    old = node.outputs[0]
    name, output.shape, output.type = old.name, old.shape, old.type
    old.replace_all_uses_with(output, replace_graph_outputs=True)
    old.name, output.name = f"{name}.replaced", name
    owner = node.graph
    assert owner is not None
    owner.remove(node, safe=True)


def _producers(node: Node) -> list[Node]:
    producers = [value.producer() for value in node.inputs if value is not None]
    return [producer for producer in producers if producer is not None]


def fuse_attention(model: Model) -> None:
    """Replace the products, softmax and transposes of each attention by one `MultiHeadAttention` where they match."""
    optimize(ShapeInferencePass()(model).model)
    shape_optimization.rules.apply_to_model(model)
    optimize(model)
    fuse_sdpa(model, apply_shape_inference=True)
    replace_sdpa_by_mha(model)
    optimize(model)  # inlines what was matched and not replaced
    model.opset_imports.setdefault("com.microsoft", 1)
