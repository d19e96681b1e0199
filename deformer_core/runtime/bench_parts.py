"""The model's parts, each ready to be run by itself on what it is given in the whole model."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deformer_core.nn.deformer import DeFormer
from deformer_core.runtime.export import INPUTS, ExportModel
from deformer_core.runtime.onnx_engine import graph_providers

PARTS = {
    "backbone": ("backbone",),
    "self-attention": ("attend_self",),
    "sampling": ("attend_image",),
    "recovery": ("recovery", "regress_joints"),
}
"""Names of the modules; self-attention and sampling are all layers' together."""

Cases = dict[str, Callable[[], object]]


def torch_parts(model: DeFormer, crops: NDArray[np.uint8], box: NDArray[np.float32]) -> Cases:
    """The parts in torch, on the model's device."""
    calls: dict[str, list[tuple[nn.Module, tuple[Any, ...]]]] = {part: [] for part in PARTS}
    hooks = []
    for part, names in PARTS.items():
        for name, module in model.named_modules():
            if name.split(".")[-1] in names:
                keep = calls[part].append
                hooks.append(module.register_forward_pre_hook(lambda m, inputs, keep=keep: keep((m, inputs))))
    device = next(model.parameters()).device
    with torch.inference_mode():
        ExportModel(model)(torch.from_numpy(crops).to(device), torch.from_numpy(box).to(device))
    for hook in hooks:
        hook.remove()

    def run(part: str) -> None:
        with torch.inference_mode():
            for module, inputs in calls[part]:
                module(*inputs)

    return {part: lambda part=part: run(part) for part in PARTS}  # type: ignore[misc]


def onnx_parts(path: Path, crops: NDArray[np.uint8], box: NDArray[np.float32], threads: int, device: str) -> Cases:
    """The parts of an exported graph in ONNX Runtime, cut out by the modules its operators come from.

    Empty where the onnx package, which cuts, is not installed.
    """
    try:
        import onnx
    except ImportError:
        return {}
    graph = onnx.load(str(path))
    parts = {part: cut(graph, names) for part, names in PARTS.items()}
    wanted = sorted({value.name for part in parts.values() for value in part.graph.input} - set(INPUTS))
    whole = onnx.ModelProto()
    whole.CopyFrom(graph)
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    given = dict(zip(INPUTS, (crops, box)))
    values = given | dict(zip(wanted, _session(whole, threads, device).run(wanted, given)))

    def case(part: onnx.ModelProto) -> Callable[[], object]:
        session = _session(part, threads, device)
        inputs = {value.name: values[value.name] for value in part.graph.input}
        return lambda: session.run(None, inputs)

    return {name: case(part) for name, part in parts.items()}


def cut(model: Any, modules: tuple[str, ...]) -> Any:
    """The part of an `onnx.ModelProto` that modules of these names became: operators, and what goes in and out."""
    import onnx

    graph = model.graph
    nodes = [node for node in graph.node if any(name.split(".")[-1] in modules for name in _scopes(node))]
    made = {name for node in nodes for name in node.output}
    needed = {name for node in nodes for name in node.input if name} - made
    used = {name for node in graph.node if not made & set(node.output) for name in node.input}
    results = sorted(made & (used | {value.name for value in graph.output}))
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    inputs = sorted(needed - {tensor.name for tensor in tensors})
    known = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    part = onnx.helper.make_graph(
        nodes, "part", [known[name] for name in inputs], [known[name] for name in results], tensors
    )
    part.value_info.extend(known[name] for name in made - set(results) if name in known)
    return onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)


def _scopes(node: Any) -> list[str]:
    """Names of the modules that an operator was exported from, as torch's exporter notes them."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    return list(ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]")))[:-1]


def _session(model: Any, threads: int, device: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = graph_providers(onnxruntime.get_available_providers(), device)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
