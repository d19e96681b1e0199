"""What runs the model. All engines give the same numbers, to the tolerance of `parity`.

- `torch`: as it was trained, on the CPU or a GPU; `compiled`: by torch's compiler, for batches of fixed sizes;
- `onnxruntime`: an exported graph on the CPU, or on an NVIDIA GPU where it has providers for one, see `onnx_engine`;
- `openvino`, where it is installed: the same graph on the CPU;
- `tensorrt`: an exported graph on an NVIDIA GPU, see `tensorrt_engine`.

An engine is called with crops (B, H, W, 3) uint8 RGB, an array or a tensor on its `crop_device`, and boxes (B, 3)
float32 (`geometry.camera`). It returns a dict of float32 arrays in model space: `vertices_full`, `vertices_middle`,
`vertices_coarse` (B, V, 3), as far as the model makes them, `joints` (B, J, 3), `camera` (B, 3), `keypoints`
(B, 17, 3).
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import time
from collections.abc import Sequence
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
from deformer_core.runtime.device_crops import Crops, on_device
from deformer_core.runtime.export import INPUTS, ExportModel, export_onnx
from deformer_core.runtime.mirrored import MirroredEngine
from deformer_core.runtime.onnx_engine import OnnxEngine, has_gpu_providers
from deformer_core.runtime.parity import check_parity
from deformer_core.runtime.tensorrt_engine import TensorRtEngine, import_tensorrt, load_or_build

log = logging.getLogger(__name__)

ENGINES = ("auto", "onnxruntime", "torch", "compiled", "openvino", "tensorrt")
CPU_ONLY = ("openvino",)
BUCKETS = (1, 2, 4, 8, 16)
"""Batches of the compiled engine: others are filled up to the next."""
TENSORRT_PRECISIONS = ("float16", "bfloat16")
"""Of the backbone, the more exact first; bfloat16 for one whose values are too large for float16."""
Arrays = dict[str, NDArray[np.float32]]


class Engine(Protocol):
    """image_size: side of the crops. description: engine, version, device and why, in one line."""

    image_size: int
    description: str

    @property
    def crop_device(self) -> torch.device | None:
        """The GPU that crops are best cut on, see `device_crops`; None: the CPU, by OpenCV."""

    def __call__(self, crops: Crops, box: NDArray[np.float32]) -> Arrays: ...


class TorchEngine:
    """The model as it was trained, on the CPU or a GPU."""

    def __init__(self, model: DeFormer, device: str = "cpu", threads: int | None = None):
        if threads:
            torch.set_num_threads(threads)
        self._device = torch.device(device)
        self.crop_device = None if self._device.type == "cpu" else self._device
        self._model = ExportModel(model).to(self._device).eval()
        self.image_size = int(model.backbone.image_size)
        self.description = f"torch {torch.__version__} on {device}"

    def __call__(self, crops: Crops, box: NDArray[np.float32]) -> Arrays:
        with torch.inference_mode():
            tensors = self._model(on_device(crops, self._device), on_device(box, self._device).float())
        return {name: tensor.cpu().numpy() for name, tensor in zip(self._model.outputs, tensors)}


class CompiledEngine(TorchEngine):
    """Torch's compiler, for batches of fixed sizes; on a GPU each of them replays one CUDA graph.

    The first call with each size compiles, which takes minutes.
    """

    def __init__(self, model: DeFormer, device: str = "cpu", threads: int | None = None):
        super().__init__(model, device, threads)
        self._model.compile(dynamic=False, mode="reduce-overhead" if self._device.type == "cuda" else None)
        self.description = f"torch {torch.__version__} compiled on {device}"

    def __call__(self, crops: Crops, box: NDArray[np.float32]) -> Arrays:
        parts: list[Arrays] = []
        first = 0
        for bucket in split_batch(len(crops)):
            rows = np.arange(first, first + bucket).clip(max=len(crops) - 1)  # the last one fills the bucket up
            parts.append(super().__call__(crops[rows], box[rows]))
            first += bucket
        return {name: np.concatenate([part[name] for part in parts])[: len(crops)] for name in self._model.outputs}


def split_batch(count: int) -> list[int]:
    """`BUCKETS` for so many crops, the largest first; only the last may be more than its crops."""
    largest = BUCKETS[-1]
    full, rest = divmod(count, largest)
    return [largest] * full + [min(bucket for bucket in BUCKETS if bucket >= rest)] * (rest > 0)


class OpenVinoEngine:
    """An exported graph in OpenVINO on the CPU, in float32. Errors: `InputError`, no openvino or a damaged graph."""

    crop_device = None

    def __init__(self, graph: Path, threads: int | None = None):
        try:
            import openvino
        except ImportError as error:
            raise InputError("the openvino engine needs OpenVINO: pip install openvino") from error
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            model = openvino.Core().read_model(str(graph))
            self.image_size = int(model.input(INPUTS[0]).partial_shape[1].get_length())
            self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise InputError(f"{graph} is not a graph of 'deformer export', or is damaged: export it again") from error
        self._outputs = [output.get_any_name() for output in model.outputs]
        self.description = f"OpenVINO {openvino.__version__} on cpu"

    def __call__(self, crops: Crops, box: NDArray[np.float32]) -> Arrays:
        inputs = (np.ascontiguousarray(crops), np.ascontiguousarray(box, dtype=np.float32))
        found = self._request.infer(dict(zip(INPUTS, inputs)))
        return {name: found[name].copy() for name in self._outputs}


class Choice(NamedTuple):
    """engine: one of `ENGINES`, not auto. device: "cpu" or "cuda...". reason: why, for the user."""

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
    if wants_gpu and engine in CPU_ONLY:
        raise InputError(f"the {engine} engine runs on the CPU: use --engine torch for a GPU")
    if not (wants_gpu or device in ("auto", "cpu")):
        raise InputError(f"unknown device '{device}': use auto, cpu, cuda or cuda:N")
    if engine == "onnxruntime" and not has_gpu_providers():
        if wants_gpu:
            raise InputError("this onnxruntime has no provider for a GPU: pip install onnxruntime-gpu in its place")
        device = "cpu"
    device = "cpu" if engine in CPU_ONLY else _torch_device(device)
    if engine == "tensorrt":
        import_tensorrt()
        if device == "cpu":
            raise InputError("the tensorrt engine needs an NVIDIA GPU: use --engine onnxruntime for a CPU")
    if engine != "auto":
        return Choice(engine, device, "asked for")
    if device != "cpu":
        if importlib.util.find_spec("tensorrt"):
            return Choice("tensorrt", device, "there is a GPU with TensorRT")
        return Choice("torch", device, "there is a GPU")
    if graph_path(checkpoint_path(checkpoint)).is_file():
        return Choice("onnxruntime", "cpu", "faster than torch on a CPU")
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        reason = f"no {' and no '.join(missing)} to export a graph for ONNX Runtime: pip install 'deformer[export]'"
        return Choice("torch", "cpu", reason)
    return Choice("onnxruntime", "cpu", "faster than torch on a CPU, its graph is exported at the first use")


def make_engine(
    checkpoint: str | Path,
    engine: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    mirrored: bool = False,
) -> Engine:
    """The engine for a checkpoint (a path, or shipped weights by name).

    engine: one of `ENGINES`; "auto" is, on a GPU, TensorRT if it is installed and torch if not; on a CPU, ONNX
    Runtime if a graph can be had and torch if not. What auto chose and cannot be made is replaced by torch, with one
    line. device: "auto", "cpu", "cuda", "cuda:N". threads: of the CPU, all by default. mirrored: see `mirrored`.

    Raises:
        InputError: a bad checkpoint (see `load_checkpoint`), or an engine or device that cannot be had.
    """
    if mirrored:
        topology = read_checkpoint_info(checkpoint).body()
        return MirroredEngine(make_engine(checkpoint, engine, device, threads), topology)
    choice = choose_engine(checkpoint, engine, device)
    path = checkpoint_path(checkpoint)
    if choice.engine in ("onnxruntime", "openvino", "tensorrt"):
        try:
            if choice.engine == "tensorrt":
                return _described(_tensorrt_engine(path, choice.device), choice)
            if choice.engine == "openvino":
                return _described(_graph_engine(path, OpenVinoEngine, threads), choice)
            return _described(_onnx_engine(path, choice.device, threads), choice)
        except Exception as error:  # exporters and builders fail in many ways, and torch can do it too
            if engine != "auto":
                raise
            name = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}[choice.engine]
            choice = Choice("torch", choice.device, f"{name} cannot be used: {str(error).splitlines()[0]}")
            log.warning("Engine: torch on %s, %s", choice.device, choice.reason)
    elif engine == "auto" and choice.device == "cpu":
        log.warning("Engine: torch on cpu, %s", choice.reason)
    made = CompiledEngine if choice.engine == "compiled" else TorchEngine
    return _described(made(load_checkpoint(checkpoint), choice.device, threads), choice)


def _described(engine: Engine, choice: Choice) -> Engine:
    engine.description += f" ({choice.reason})"
    return engine


def graph_path(checkpoint: Path, attention: str = "tiles", precision: str = "float32") -> Path:
    """Where the cache keeps a graph of a checkpoint, see `export_onnx`: named by the content of all its causes."""
    digest = hashlib.sha256(f"{version('torch')} {attention} {precision}".encode())
    package = Path(__file__).parents[1]
    sources = [Path(__file__).with_name("export.py")]
    for room in ("nn", "body", "geometry"):
        sources += sorted((package / room).rglob("*.py"))
    for source in [*sources, checkpoint]:
        digest.update(source.read_bytes() if source.is_file() else b"")
    return cache_folder() / "graphs" / f"{checkpoint.stem}-{digest.hexdigest()[:16]}.onnx"


def cached_graph(checkpoint: Path, attention: str = "tiles", precision: str = "float32", anew: bool = False) -> Path:
    """The graph of a checkpoint, exported if it is not in the cache or `anew`. Errors: `InputError`, exporting."""
    read_checkpoint_info(checkpoint).body()
    graph = graph_path(checkpoint, attention, precision)
    if anew or not graph.is_file():
        log.info("Exporting %s, once; this takes about a minute", checkpoint.name)
        start = time.monotonic()
        export_onnx(load_checkpoint(checkpoint), graph, attention, precision)
        log.info("Exported in %.0f s to %s", time.monotonic() - start, graph)
    return graph


def _onnx_engine(checkpoint: Path, device: str, threads: int | None) -> Engine:
    """On a GPU checked against torch before its first use; the CPU takes over where that fails."""
    on_cpu = _graph_engine(checkpoint, OnnxEngine, threads)
    if device == "cpu":
        return on_cpu
    try:
        engine = OnnxEngine(graph_path(checkpoint), threads, device)
        check_parity(engine, TorchEngine(load_checkpoint(checkpoint)))
        return engine
    except Exception as error:  # providers fail in many ways
        log.warning("Engine: ONNX Runtime on the CPU, its GPU cannot be used: %s", str(error).splitlines()[0])
    return on_cpu


def _graph_engine(checkpoint: Path, kind: type[OnnxEngine] | type[OpenVinoEngine], threads: int | None) -> Engine:
    graph = cached_graph(checkpoint)
    try:
        return kind(graph, threads)
    except InputError:
        log.warning("The cached graph %s is damaged: exporting it again", graph)
    return kind(cached_graph(checkpoint, anew=True), threads)


def _tensorrt_engine(
    checkpoint: Path, device: str, precisions: Sequence[str] = TENSORRT_PRECISIONS
) -> TensorRtEngine:
    """Of the first precision that keeps to its tolerance: checked against torch before its first use, cached or not."""
    precision, *others = precisions
    graph = cached_graph(checkpoint, "auto", precision)
    model = load_checkpoint(checkpoint)
    engine = load_or_build(graph, int(model.backbone.image_size), device, precision)
    try:
        check_parity(engine, TorchEngine(model, device), precision)
    except InputError as error:
        if not others:
            raise
        log.warning("Engine: TensorRT in %s, since %s", others[0], error)
        return _tensorrt_engine(checkpoint, device, others)
    return engine


def _torch_device(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
