"""What is installed, what for, and which engine would run."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deformer_core import __version__
from deformer_core.errors import InputError
from deformer_core.files import cache_folder

REQUIRED = {
    "numpy": "numpy",
    "scipy": "scipy",
    "opencv-python-headless": "cv2",
    "safetensors": "safetensors",
    "pyyaml": "yaml",
    "tqdm": "tqdm",
}
"""Distribution and module."""
OPTIONAL = {
    "onnx": ("onnx", "the faster CPU engine, to export its graph once: pip install 'deformer[export]'"),
    "onnxscript": ("onnxscript", "the same: pip install 'deformer[export]'"),
    "moderngl": ("moderngl", "rendering training images: pip install 'deformer[train]'"),
    "deepspeed": ("deepspeed", "training on many GPUs: pip install 'deformer[train]'"),
    "tensorboard": ("tensorboard", "watching a training run: pip install 'deformer[train]'"),
    "openvino": ("openvino", "the openvino engine: pip install openvino"),
    "tensorrt": ("tensorrt", "TensorRT engines: pip install 'deformer[gpu]'"),
    "smplx": ("smplx", "checking our SMPL bodies against it, with your own licence: pip install 'deformer[smpl]'"),
    "rosbags": ("rosbags", "reading bags without ROS: pip install 'deformer[ros]'"),
    "rclpy": ("rclpy", "the ROS 2 node, comes with ROS"),
}
"""Distribution to module and what it is needed for."""


def report() -> Iterator[str]:
    """The lines of `deformer doctor`."""
    yield f"deformer               {__version__}"
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield f"python                 {platform.python_version()} on {machine}"
    yield _torch()
    yield _onnxruntime()
    for name, module in REQUIRED.items():
        yield f"{name:<23}{_version(name, module) or 'NOT INSTALLED: pip install deformer'}"
    yield from _optional()
    yield f"SMPL files             {os.environ.get('DEFORMER_SMPL') or 'none: DEFORMER_SMPL names no folder'}"
    yield from _weights()
    yield _engine()
    yield f"cache                  {cache_folder()} ({_size(cache_folder())})"


def _torch() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"torch                  {torch.__version__}, no CUDA GPU"
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"torch                  {torch.__version__}, GPU: {names}"


def _onnxruntime() -> str:
    import onnxruntime

    providers = ", ".join(onnxruntime.get_available_providers())
    return f"onnxruntime            {onnxruntime.__version__}, providers: {providers}"


def _optional() -> Iterator[str]:
    for name, (module, purpose) in OPTIONAL.items():
        yield f"{name:<23}{_version(name, module) or f'not installed, needed for {purpose}'}"


def _weights() -> Iterator[str]:
    """The shipped weight files with the start of their SHA-256."""
    folder = Path(__file__).with_name("weights")
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".onnx"):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
            yield f"weights                {file.name}, {file.stat().st_size / 1e6:.1f} MB, sha256 {digest}"


def _engine() -> str:
    from deformer_core.runtime.engines import choose_engine

    try:
        choice = choose_engine("small")
    except InputError as error:
        return f"engine                 none: {error}"
    return f"engine                 auto is {choice.engine} on {choice.device}: {choice.reason}"


def _version(name: str, module: str) -> str | None:
    """The installed version, "present" for a module that pip does not know (ROS), None without it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "present" if importlib.util.find_spec(module) else None


def _size(folder: Path) -> str:
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{total / 1e6:.1f} MB, may be deleted" if total else "empty"
