"""What runs the model: torch, or ONNX Runtime on the CPU. All give the same numbers to a tested tolerance.

An engine is called with crops (B, H, W, 3) uint8 RGB and boxes (B, 3) float32 (`geometry.camera`) and returns a
dict of float32 arrays in model space: `vertices_full`, `vertices_middle`, `vertices_coarse` (B, V, 3), as far as
the model makes them, `joints` (B, J, 3), `camera` (B, 3), `keypoints` (B, 17, 3).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.checkpoint import checkpoint_path, load_checkpoint, read_checkpoint_info
from deformer_core.errors import InputError
from deformer_core.files import cache_folder
from deformer_core.nn.deformer import DeFormer
from deformer_core.runtime.export import INPUTS, METADATA_KEY, ExportModel, export_onnx

log = logging.getLogger(__name__)

ENGINES = ("auto", "onnxruntime", "torch")
Arrays = dict[str, NDArray[np.float32]]


class Engine(Protocol):
    """image_size: side of the crops. description: engine, version, device and why, in one line."""

    image_size: int
    description: str

    def __call__(self, crops: NDArray[np.uint8], box: NDArray[np.float32]) -> Arrays: ...


class TorchEngine:
    """The model as it was trained, on the CPU or a GPU."""

    def __init__(self, model: DeFormer, device: str = "cpu", threads: int | None = None):
        if threads:
            torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._model = ExportModel(model).to(self._device).eval()
        self.image_size = int(model.backbone.image_size)
        self.description = f"torch {torch.__version__} on {device}"

    def __call__(self, crops: NDArray[np.uint8], box: NDArray[np.float32]) -> Arrays:
        with torch.inference_mode():
            tensors = self._model(
                torch.from_numpy(np.ascontiguousarray(crops)).to(self._device),
                torch.from_numpy(np.ascontiguousarray(box, dtype=np.float32)).to(self._device),
            )
        return {name: tensor.cpu().numpy() for name, tensor in zip(self._model.outputs, tensors)}


class OnnxEngine:
    """An exported graph in ONNX Runtime on the CPU; the model's classes and torch's kernels are not used.

    Raises:
        InputError: the file is no graph of `export_onnx`, or is damaged.
    """

    def __init__(self, graph: Path, threads: int | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
            record = json.loads(self._session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        except Exception as error:  # ONNX Runtime's own exceptions share no base but this
            raise InputError(f"{graph} is not a graph of 'deformer export', or is damaged: export it again") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.image_size = int(record["image_size"])
        self.description = f"ONNX Runtime {onnxruntime.__version__} on cpu"

    def __call__(self, crops: NDArray[np.uint8], box: NDArray[np.float32]) -> Arrays:
        inputs = (np.ascontiguousarray(crops), np.ascontiguousarray(box, dtype=np.float32))
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(zip(INPUTS, inputs)))))


class Choice(NamedTuple):
    """engine: "torch" or "onnxruntime". device: "cpu" or "cuda...". reason: why, for the user."""

    engine: str
    device: str
    reason: str


def choose_engine(checkpoint: str | Path, engine: str = "auto", device: str = "auto") -> Choice:
    """What `make_engine` would take, without making it. Errors: `InputError` for what cannot be had."""
    if engine not in ENGINES:
        raise InputError(f"unknown engine '{engine}': use one of {', '.join(ENGINES)}")
    wants_gpu = device.startswith("cuda")
    if wants_gpu and not torch.cuda.is_available():
        raise InputError(f"device '{device}' is not there: torch sees no CUDA GPU; use --device cpu")
    if wants_gpu and engine == "onnxruntime":
        raise InputError("the onnxruntime engine runs on the CPU: use --engine torch for a GPU")
    if not (wants_gpu or device in ("auto", "cpu")):
        raise InputError(f"unknown device '{device}': use auto, cpu, cuda or cuda:N")
    if engine == "onnxruntime":
        return Choice("onnxruntime", "cpu", "asked for")
    if engine == "torch":
        return Choice("torch", _torch_device(device), "asked for")
    if _torch_device(device) != "cpu":
        return Choice("torch", _torch_device(device), "there is a GPU")
    if graph_path(checkpoint_path(checkpoint)).is_file():
        return Choice("onnxruntime", "cpu", "faster than torch on a CPU")
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        reason = f"no {' and no '.join(missing)} to export a graph for ONNX Runtime: pip install 'deformer[export]'"
        return Choice("torch", "cpu", reason)
    return Choice("onnxruntime", "cpu", "faster than torch on a CPU, its graph is exported at the first use")


def make_engine(
    checkpoint: str | Path, engine: str = "auto", device: str = "auto", threads: int | None = None
) -> Engine:
    """The engine for a checkpoint (a path, or shipped weights by name).

    engine: "auto" is torch on a GPU if there is one, else ONNX Runtime if a graph can be had, else torch.
    device: "auto", "cpu", "cuda", "cuda:N". threads: of the CPU, all by default.

    Raises:
        InputError: a bad checkpoint (see `load_checkpoint`), or an engine or device that cannot be had.
    """
    choice = choose_engine(checkpoint, engine, device)
    if choice.engine == "onnxruntime":
        try:
            return _described(_onnx_engine(checkpoint_path(checkpoint), threads), choice)
        except Exception as error:  # exporters fail in many ways, and torch can do it too
            if engine != "auto":
                raise
            choice = Choice("torch", "cpu", f"ONNX Runtime cannot be used: {error}")
    made = TorchEngine(load_checkpoint(checkpoint), choice.device, threads)
    if engine == "auto" and choice.device == "cpu":
        log.warning("Engine: torch on the CPU, %s", choice.reason)
    return _described(made, choice)


def _described(engine: TorchEngine | OnnxEngine, choice: Choice) -> Engine:
    engine.description += f" ({choice.reason})"
    return engine


def graph_path(checkpoint: Path) -> Path:
    """Where the cache keeps the graph of a checkpoint: named by the content of all that determines it."""
    digest = hashlib.sha256(version("torch").encode())
    package = Path(__file__).parents[1]
    sources = [Path(__file__).with_name("export.py")]
    for room in ("nn", "body", "geometry"):
        sources += sorted((package / room).rglob("*.py"))
    for source in [*sources, checkpoint]:
        digest.update(source.read_bytes() if source.is_file() else b"")
    return cache_folder() / "graphs" / f"{checkpoint.stem}-{digest.hexdigest()[:16]}.onnx"


def _onnx_engine(checkpoint: Path, threads: int | None) -> OnnxEngine:
    read_checkpoint_info(checkpoint).body()
    graph = graph_path(checkpoint)
    if graph.is_file():
        try:
            return OnnxEngine(graph, threads)
        except InputError:
            log.warning("The cached graph %s is damaged: exporting it again", graph)
    log.info("Exporting %s for ONNX Runtime, once; this takes about a minute", checkpoint.name)
    start = time.monotonic()
    export_onnx(load_checkpoint(checkpoint), graph)
    log.info("Exported in %.0f s to %s", time.monotonic() - start, graph)
    return OnnxEngine(graph, threads)


def _torch_device(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
