"""The model as an ONNX graph: uint8 crops in, named float32 arrays out, standard operators only."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deformer_core.body.assets import load_body
from deformer_core.body.topology import LEVELS
from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.nn.backbones import BackboneOutput
from deformer_core.nn.deformer import DeFormer
from deformer_core.nn.sparse_attention import DENSE_LIMITS

OPSET = 18
MASKED = -60.0
"""What graphs add to the scores of tokens that no link joins, in place of minus infinity: they weigh 1e-26 of a linked
token of the same score. ONNX Runtime makes denormal numbers of anything below -87, which Intel's processors are slow
with (a tenth of the whole model's time, see docs/performance.md)."""
INPUTS = ("crops", "box")
METADATA_KEY = "deformer"
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PORTABLE = frozenset(
    (
        "Add And ArgMax AveragePool Cast Clip Concat Constant ConstantOfShape Conv ConvTranspose Div Einsum Equal Erf "
        "Exp Expand Floor Gather "
        "GatherElements GatherND Gelu Gemm Greater GreaterOrEqual Identity InstanceNormalization LayerNormalization "
        "Less LessOrEqual Log MatMul Max MaxPool Min Mod Mul Neg Not Or Pad Pow Range Reciprocal ReduceL2 ReduceMax "
        "ReduceMean ReduceMin ReduceSum Relu Reshape Resize Shape Sigmoid Slice Softmax Split Sqrt Squeeze Sub Tanh "
        "Tile TopK Transpose Unsqueeze Where"
    ).split()
)
"""Operators a graph may have: of those that TensorRT's parser documents (onnx-tensorrt, docs/operators.md of 10.15),
the plain ones. Not GridSample, which parsers are known to get wrong, nor control flow; sampling is gathers instead."""


class ExportModel(nn.Module):
    """The model with its image normalisation, as engines call it.

    precision: a key of `PRECISIONS`, of the backbone alone: most of the arithmetic, and none of the geometry.
    """

    def __init__(self, model: DeFormer, precision: str = "float32"):
        super().__init__()
        self.model = model
        self.dtype = PRECISIONS[precision]
        model.backbone.to(self.dtype)
        levels = LEVELS[LEVELS.index(model.config.query_level) :]
        self.outputs = (*(f"vertices_{level}" for level in levels), "joints", "camera", "keypoints")

    def forward(self, crops: Tensor, box: Tensor) -> tuple[Tensor, ...]:
        """crops (B, H, W, 3) uint8 RGB, box (B, 3) float32. Returns the tensors named in `outputs`, float32."""
        # Cast first: inference engines take bytes as an input, and no operator but this takes bytes.
        images = crops.to(self.dtype).permute(0, 3, 1, 2)
        maps, pooled, keypoints = self.model.backbone(images)[:3]
        seen = BackboneOutput(tuple(level.float() for level in maps), pooled.float(), keypoints.float())
        result: dict[str, Any] = self.model.decode(seen, box)
        return tuple(result[name] for name in self.outputs)


def export_onnx(model: DeFormer, path: Path, attention: str = "tiles", precision: str = "float32") -> None:
    """Write the model on the CPU as ONNX, opset 18, any batch size; whole or not at all.

    attention: how self-attention is written: "tiles", faster on a CPU; "dense"; or "auto", what a GPU likes: dense for
    few tokens, tiles for many.
    precision: see `ExportModel`.

    Raises:
        InputError: onnx or onnxscript are not installed, or the folder cannot be written.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch needs it)
    except ImportError as error:
        raise InputError(f"exporting to ONNX needs {error.name}: pip install 'deformer[export]'") from error
    size = model.backbone.image_size
    body = load_body(model.config.body)
    if attention == "auto":
        attention = "dense" if len(model.decoder.order) <= DENSE_LIMITS["cuda"] else "tiles"
    exported = DeFormer(replace(model.config, sampling="gather", attention=attention), body)
    exported.load_state_dict(model.state_dict())
    for constant in exported.decoder.buffers():
        constant[constant == -math.inf] = MASKED
    crops = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    box = torch.tensor([[0.0, 0.0, 0.2], [0.1, -0.1, 0.3]])
    batch = torch.export.Dim("batch", min=1, max=1024)
    module = ExportModel(exported, precision).eval()
    with _quiet(), torch.no_grad():
        # Exported here and not by torch.onnx, which on a difficulty falls back to a fixed batch without a word.
        shapes = {"crops": {0: batch}, "box": {0: batch}}
        traced = torch.export.export(module, (crops, box), dynamic_shapes=shapes)
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=module.outputs,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    record = {"image_size": size, "body": {"name": body.name, "hash": body.content_hash}}
    graph.metadata_props.add(key=METADATA_KEY, value=json.dumps(record))
    check_graph(graph)
    with replace_file(Path(path)) as temporary:
        onnx.save_model(graph, str(temporary))


def check_graph(graph: object) -> None:
    """Check an `onnx.ModelProto`: valid, one standard domain of the right opset, operators out of `PORTABLE`."""
    import onnx

    assert isinstance(graph, onnx.ModelProto)
    onnx.checker.check_model(graph)
    used = {node.op_type for node in graph.graph.node} | {n.op_type for f in graph.functions for n in f.node}
    opsets = {entry.domain: entry.version for entry in graph.opset_import}
    if used - PORTABLE or opsets.get("", 0) != OPSET or set(opsets) - {""}:
        raise RuntimeError(f"the exported graph is not portable: operators {sorted(used - PORTABLE)}, opsets {opsets}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes on packages it could also serve, and its deprecation warnings, from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
