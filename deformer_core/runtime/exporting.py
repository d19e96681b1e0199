"""`deformer export`: a checkpoint as a file for other runtimes, checked against torch on real crops."""

from __future__ import annotations

from pathlib import Path

import torch

from deformer_core.checkpoint import checkpoint_path, load_checkpoint
from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.runtime.engines import TENSORRT_PRECISIONS, TorchEngine, cached_graph
from deformer_core.runtime.export import export_onnx
from deformer_core.runtime.onnx_engine import OnnxEngine
from deformer_core.runtime.parity import check_parity
from deformer_core.runtime.tensorrt_engine import TensorRtEngine, build_plan, import_tensorrt


def export(model: str | Path, out: Path, kind: str = "onnx", precision: str | None = None) -> float | None:
    """Write a file.

    model: shipped weights by name, or a checkpoint. kind: "onnx", or "tensorrt" for an engine of this machine's GPU.
    precision: of the backbone, a key of `PRECISIONS`; float32 by default, and float16 in TensorRT.

    Returns the largest difference from torch in float32 of a vertex or joint on the shipped photo, metres; None for
    bfloat16 in ONNX, which ONNX Runtime does not run on a CPU.

    Raises:
        InputError: a bad checkpoint, a missing package or GPU, a folder that cannot be written, or no parity.
    """
    precision = precision or (TENSORRT_PRECISIONS[0] if kind == "tensorrt" else "float32")
    if kind == "tensorrt":
        return _export_tensorrt(model, out, precision)
    export_onnx(load_checkpoint(model), out, precision=precision)
    if precision == "bfloat16":
        return None
    return check_parity(OnnxEngine(out), TorchEngine(load_checkpoint(model)), precision)


def _export_tensorrt(model: str | Path, out: Path, precision: str) -> float:
    import_tensorrt()
    if not torch.cuda.is_available():
        raise InputError("a TensorRT engine is built on the GPU it is for, and torch sees none: export onnx instead")
    reference = TorchEngine(load_checkpoint(model), "cuda")
    graph = cached_graph(checkpoint_path(model), "auto", precision)
    plan = build_plan(graph.read_bytes(), reference.image_size, graph.with_name("timing.cache"))
    found = check_parity(TensorRtEngine(plan, reference.image_size, precision=precision), reference, precision)
    with replace_file(out) as temporary:
        temporary.write_bytes(plan)
    return found
