"""The model as an exported graph in ONNX Runtime: on the CPU, or on a GPU by the providers installed for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.errors import InputError
from deformer_core.files import cache_folder
from deformer_core.runtime.device_crops import Crops
from deformer_core.runtime.export import INPUTS, METADATA_KEY

CPU = "CPUExecutionProvider"
GPU_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")
"""Of NVIDIA's GPUs, the better first."""


def graph_providers(available: Sequence[str], device: str) -> list[tuple[str, dict[str, str]]]:
    """What runs a graph on "cpu" or "cuda...", of what ONNX Runtime has, with options; each takes what those before it
    cannot, the CPU the rest."""
    if device == "cpu":
        return [(CPU, {})]
    kept = str(cache_folder() / "tensorrt")
    options = {
        "TensorrtExecutionProvider": {"trt_engine_cache_enable": "1", "trt_engine_cache_path": kept},
        "CUDAExecutionProvider": {"use_tf32": "0"},
    }
    number = {"device_id": str(torch.device(device).index or 0)}
    return [(name, {**number, **options[name]}) for name in GPU_PROVIDERS if name in available] + [(CPU, {})]


class OnnxEngine:
    """An exported graph in ONNX Runtime; the model's classes and torch's kernels are not used.

    device: "cpu" or "cuda...", see `graph_providers`.

    Raises:
        InputError: the file is no graph of `export_onnx`, or is damaged; or no GPU provider could be started.
    """

    crop_device = None

    def __init__(self, graph: Path, threads: int | None = None, device: str = "cpu"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        providers = graph_providers(onnxruntime.get_available_providers(), device)
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
            record = json.loads(self._session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        except Exception as error:  # ONNX Runtime's own exceptions share no base but this
            raise InputError(f"{graph} is not a graph of 'deformer export', or is damaged: export it again") from error
        used = self._session.get_providers()[0]  # one that cannot be started is left out without an error
        if device != "cpu" and used == CPU:
            raise InputError(f"ONNX Runtime {onnxruntime.__version__} cannot start a provider for {device}")
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.image_size = int(record["image_size"])
        by = "" if used == CPU else f" by {used}"
        self.description = f"ONNX Runtime {onnxruntime.__version__} on {device}{by}"

    def __call__(self, crops: Crops, box: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        inputs = (np.ascontiguousarray(crops), np.ascontiguousarray(box, dtype=np.float32))
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(zip(INPUTS, inputs)))))


def has_gpu_providers() -> bool:
    """Whether the installed ONNX Runtime was built with any, whatever this machine has."""
    import onnxruntime

    return not set(GPU_PROVIDERS).isdisjoint(onnxruntime.get_available_providers())
