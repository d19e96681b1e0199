"""The model in TensorRT, on an NVIDIA GPU: built once from our ONNX graph, then kept.

Networks are strongly typed, as TensorRT 11 has them only (and 10 on request): a layer runs in the precision that the
graph gives it. Written to the documented API of TensorRT 10 and 11.
"""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.errors import InputError
from deformer_core.files import cache_folder, replace_file
from deformer_core.runtime.device_crops import Crops, on_device
from deformer_core.runtime.export import INPUTS

log = logging.getLogger(__name__)

BATCHES = (1, 4, 16)
"""Smallest batch that an engine takes, the one it is tuned for, and the largest; more people are several calls."""
WORKSPACE = 1 << 30
"""Bytes of GPU memory that a layer may use for itself."""


class TensorRtEngine:
    """A built engine, see `engines.Engine`. Inputs and outputs are torch tensors whose addresses TensorRT is given.

    plan: of `build_plan`. device: "cuda" or "cuda:N", the GPU it was built on.

    Raises:
        InputError: no tensorrt, the plan is of another version or GPU, or damaged, or there is no memory for it.
    """

    def __init__(self, plan: bytes, image_size: int, device: str = "cuda", precision: str = "float16"):
        trt = import_tensorrt()
        self.image_size = image_size
        self.description = f"TensorRT {trt.__version__} {precision} on {device}"
        self.crop_device = torch.device(device)
        with torch.cuda.device(self.crop_device):
            self._engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
            if self._engine is None:
                raise InputError("the TensorRT engine is of another version or GPU, or damaged: build it again")
            self._context = self._engine.create_execution_context()
            if self._context is None:  # which takes all the memory that running needs
                raise InputError("the GPU has no memory for the TensorRT engine: free some")
            self._stream = torch.cuda.Stream()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._outputs = [name for name in names if name not in INPUTS]

    def __call__(self, crops: Crops, box: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        largest = BATCHES[-1]
        parts = [self._run(crops[i : i + largest], box[i : i + largest]) for i in range(0, len(crops), largest)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _run(self, crops: Crops, box: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        device = self.crop_device
        self._stream.wait_stream(torch.cuda.current_stream(device))  # on which the crops may still be being cut
        with torch.cuda.device(device), torch.cuda.stream(self._stream):
            tensors = dict(zip(INPUTS, (on_device(crops, device), on_device(box, device).float())))
            for name, tensor in tensors.items():
                self._context.set_input_shape(name, tuple(tensor.shape))
            for name in self._outputs:  # their shapes follow from the inputs'
                shape = tuple(self._context.get_tensor_shape(name))
                tensors[name] = torch.empty(shape, dtype=torch.float32, device=device)
            for name, tensor in tensors.items():
                self._context.set_tensor_address(name, tensor.data_ptr())
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError("TensorRT could not run the model")
            results = {name: tensors[name].cpu() for name in self._outputs}  # waits for this stream
        return {name: tensor.numpy() for name, tensor in results.items()}


def import_tensorrt() -> ModuleType:
    """The package. Errors: `InputError` where it is not installed."""
    try:
        import tensorrt
    except ImportError as error:
        raise InputError("the tensorrt engine needs TensorRT: pip install 'deformer[gpu]'") from error
    module: ModuleType = tensorrt
    return module


def plan_path(graph: Path, gpu: str, tensorrt_version: str, precision: str) -> Path:
    """Where the cache keeps the engine of a graph: named by all that it depends on, so a stale one is never found."""
    digest = hashlib.sha256(graph.read_bytes())
    digest.update(f"\n{gpu}\n{tensorrt_version}\n{precision}\n{BATCHES}".encode())
    return cache_folder() / "tensorrt" / f"{graph.stem}-{digest.hexdigest()[:16]}.plan"


def load_or_build(graph: Path, image_size: int, device: str, precision: str) -> TensorRtEngine:
    """The engine of an ONNX graph from the cache, or built and kept; a stale or damaged one is built again.

    Raises:
        InputError: no tensorrt, or it cannot build the graph.
    """
    trt = import_tensorrt()
    path = plan_path(graph, torch.cuda.get_device_name(device), trt.__version__, precision)
    if path.is_file():
        try:
            return TensorRtEngine(path.read_bytes(), image_size, device, precision)
        except InputError:
            log.warning("The cached TensorRT engine %s cannot be used: building it again", path)
    log.info("Building a TensorRT engine, once for this GPU; this takes minutes")
    start = time.monotonic()
    plan = build_plan(graph.read_bytes(), image_size, path.with_name("timing.cache"), device)
    log.info("Built in %.0f s, kept in %s", time.monotonic() - start, path)
    with replace_file(path) as temporary:
        temporary.write_bytes(plan)
    return TensorRtEngine(plan, image_size, device, precision)


def build_plan(graph: bytes, image_size: int, timing_cache: Path, device: str = "cuda") -> bytes:
    """Build an ONNX graph of `export_onnx` for a GPU.

    timing_cache: file of kernel timings, read and renewed: later builds on the same GPU are faster.

    Raises:
        InputError: no tensorrt, or it refuses the graph.
    """
    trt = import_tensorrt()
    with torch.cuda.device(device):
        builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
        if not parser.parse(graph):
            problems = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
            raise InputError(f"TensorRT cannot read the graph: {problems}")
        settings = builder.create_builder_config()
        settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        settings.set_timing_cache(settings.create_timing_cache(known), False)
        profile = builder.create_optimization_profile()
        for name, shape in zip(INPUTS, ((image_size, image_size, 3), (3,))):
            profile.set_shape(name, *((batch, *shape) for batch in BATCHES))
        settings.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, settings)
        if plan is None:
            raise InputError("TensorRT cannot build the graph: see its messages above")
        _keep_timings(settings, timing_cache)
        return bytes(plan)


def _keep_timings(settings: Any, path: Path) -> None:
    with replace_file(path) as temporary:
        temporary.write_bytes(bytes(settings.get_timing_cache().serialize()))
