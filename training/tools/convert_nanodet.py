"""Convert NanoDet-g 416 (Apache-2.0) from its TensorFlow.js package to the ONNX graph of `runtime.detector`.

The result takes RGB bytes of any size that 32 divides, scores people only and works channels first.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deformer_core.errors import InputError
from training.tools.tfjs import PACKAGE, PACKAGE_HELP, Graph, read_graph

OPSET, IR_VERSION = 18, 9
TRAINED_SIZE = 416
CLASSES, DISTANCES, PERSON = 80, 44, 0
PERSON_CHANNELS = [PERSON, *range(CLASSES, CLASSES + DISTANCES)]
MEAN_RGB, STD_RGB = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Builder:
    """Translates the original's nodes as they are asked for, each once.

    The original works channels last between transposes. Here every map stays channels first, so those
    transposes go, and paddings and biases become part of the convolutions they belong to.
    """

    def __init__(self, graph: Graph, source: str, image: str):
        """Map the original's placeholder `source` to the ONNX value `image`, normalised RGB (B, 3, H, W)."""
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.values = {source: image}
        self.strides = {image: 1}

    def constant(self, array: np.ndarray) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, array: np.ndarray) -> str:
        """A float array kept in 16 bits, its precision in the package; ONNX Runtime widens it on loading."""
        return self.node("Cast", [self.constant(array.astype(np.float16))], to=TensorProto.FLOAT)

    def node(self, op: str, inputs: list[str], stride: float = 1, **attributes: Any) -> str:
        """Add an operation whose result has `stride` times the stride of its first input."""
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        self.strides[name] = int(self.strides.get(inputs[0], 1) * stride)
        return name

    def value(self, name: str) -> str:
        """ONNX name of the map (B, C, H, W) that a node of the original computes."""
        if name not in self.values:
            self.values[name] = self._translate(name)
        return self.values[name]

    def _translate(self, name: str) -> str:
        node = self.graph.nodes[name]
        inputs = [reference for reference in node.inputs if reference not in self.graph.constants]
        match node.op:
            case "Transpose":
                return self.value(inputs[0])
            case "Add" if len(inputs) == 1:
                return self._convolve(inputs[0], self.graph.constants[node.inputs[1]])
            case "Add":
                return self.node("Add", [self.value(each) for each in inputs])
            case "ConcatV2":
                return self.node("Concat", [self.value(each) for each in inputs], axis=1)
            case "LeakyRelu":
                return self.node("LeakyRelu", [self.value(inputs[0])], alpha=node.attributes["alpha"])
            case "MaxPool":
                x, pads = self._padded(inputs[0])
                kernel, strides = node.attributes["ksize"][1:3], node.attributes["strides"][1:3]
                return self.node("MaxPool", [x], strides[0], kernel_shape=kernel, strides=strides, pads=pads)
            case "ResizeBilinear":
                return self._resize(inputs[0], self.graph.constants[node.inputs[1]])
        raise InputError(f"node {name}: NanoDet-g should have no operation {node.op}")

    def _padded(self, name: str) -> tuple[str, list[int]]:
        """A map and the padding (top, left, bottom, right) the original adds to it."""
        node = self.graph.nodes[name]
        if node.op == "Transpose":
            return self._padded(node.inputs[0])
        if node.op not in ("Pad", "PadV2"):
            return self.value(name), [0, 0, 0, 0]
        return self.value(node.inputs[0]), self.graph.constants[node.inputs[1]][2:].T.flatten().tolist()

    def _convolve(self, name: str, bias: np.ndarray) -> str:
        node = self.graph.nodes[name]
        kernel = self.graph.constants[node.inputs[1]].transpose(3, 2, 0, 1)
        x, pads = self._padded(node.inputs[0])
        if kernel.shape[1] == 3:
            kernel = kernel[:, ::-1]  # the original reads BGR
        if len(bias) == CLASSES + DISTANCES:
            kernel, bias = kernel[PERSON_CHANNELS], bias[PERSON_CHANNELS]
        strides = node.attributes["strides"][1:3]
        inputs = [x, self.weight(kernel), self.weight(bias)]
        return self.node(
            "Conv", inputs, strides[0], kernel_shape=kernel.shape[2:], strides=strides, pads=pads
        )

    def _resize(self, name: str, size: np.ndarray) -> str:
        x = self.value(name)
        stride = TRAINED_SIZE / size[0] / self.strides[x]
        scales = self.constant(np.array([1, 1, 1 / stride, 1 / stride], np.float32))
        return self.node(
            "Resize", [x, "", scales], stride, mode="linear", coordinate_transformation_mode="half_pixel"
        )


def convert(graph: Graph) -> onnx.ModelProto:
    """Person detector from the original graph.

    Input `images` (B, H, W, 3) uint8 RGB. Output `predictions` (B, N, 45) for the cells of strides 8, 16 and
    32, each row by row: the logit of a person, then 11 logits for each of the distances to the left, top,
    right and bottom of the box, whose softmax weighs 0 to 10 strides.
    """
    (source,) = (node.name for node in graph.nodes.values() if node.op == "Placeholder")
    builder = Builder(graph, source, "normalised")
    mean, scale = (np.array(values, np.float32).reshape(3, 1, 1) for values in (MEAN_RGB, STD_RGB))
    floats = builder.node("Cast", ["images"], to=TensorProto.FLOAT)
    centred = builder.node(
        "Sub", [builder.node("Transpose", [floats], perm=[0, 3, 1, 2]), builder.constant(mean)]
    )
    builder.nodes.append(helper.make_node("Div", [centred, builder.constant(scale)], ["normalised"]))

    splits = sorted(node.name for node in graph.nodes.values() if node.op == "SplitV")
    shape = builder.constant(np.array([0, len(PERSON_CHANNELS), -1]))
    levels = [builder.node("Reshape", [builder.value(graph.nodes[name].inputs[0]), shape]) for name in splits]
    cells = builder.node("Concat", levels, axis=2)
    builder.nodes.append(helper.make_node("Transpose", [cells], ["predictions"], perm=[0, 2, 1]))
    model = helper.make_model(
        helper.make_graph(
            builder.nodes,
            "nanodet_g_416",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", "width", 3])],
            [
                helper.make_tensor_value_info(
                    "predictions", TensorProto.FLOAT, ["batch", "cells", len(PERSON_CHANNELS)]
                )
            ],
            builder.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="convert_nanodet",
    )
    helper.set_model_props(model, {"source": f"npm {PACKAGE}, models/nanodet", "licence": "Apache-2.0"})
    onnx.checker.check_model(model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help=PACKAGE_HELP)
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file to write")
    args = parser.parse_args()
    onnx.save(convert(read_graph(args.package, "nanodet")), args.out)


if __name__ == "__main__":
    main()
