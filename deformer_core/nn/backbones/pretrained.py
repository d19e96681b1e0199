"""The pose networks by name, and their weights as published.

Files of the original repositories (flat names), MMPose 0.x (`backbone.`, `keypoint_head.`) and 1.x (`backbone.`,
`head.`), torchvision and timm are read; every tensor is accounted for.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from deformer_core.errors import InputError
from deformer_core.nn.backbones.aggpose import AggPose
from deformer_core.nn.backbones.heatmaps import PoseBackbone
from deformer_core.nn.backbones.hrformer import HRFormer
from deformer_core.nn.backbones.hrnet import HighResolutionNet
from deformer_core.nn.backbones.resnet import ResNet

log = logging.getLogger(__name__)

SHOWN = 8
"""Names of each kind in a message."""
NESTS = ("state_dict", "model", "model_state_dict")
"""Where files keep the tensors, beside other things."""
MMPOSE_HEADS = ("keypoint_head.", "head.")


def build_pose_backbone(name: str, image_size: int, image_width: int | None) -> PoseBackbone:
    """A name of `POSE_BACKBONES`, with random weights. Sizes: as of `build_backbone`."""
    if name == "resnet50":
        return ResNet(image_size=image_size, image_width=image_width)
    if name == "aggpose_large":
        return AggPose(image_size=image_size, image_width=image_width)
    if name in ("hrnet_w32", "hrnet_w48"):
        return HighResolutionNet(int(name[-2:]), image_size=image_size, image_width=image_width)
    width, heads, drop_path = {"hrformer_small": (32, 1, 0.1), "hrformer_base": (78, 2, 0.2)}[name]
    return HRFormer(width, heads, drop_path, image_size=image_size, image_width=image_width)


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file, by their names in the backbone."""

    path: Path
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    """In the backbone alone."""
    unexpected: tuple[str, ...]
    """In the file alone."""
    reshaped: tuple[str, ...]
    """In both, of different shapes, which are added."""
    unused: tuple[str, ...]
    """In the file, left out on purpose (`PoseBackbone.UNUSED`)."""

    def __str__(self) -> str:
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.reshaped,
            "left out on purpose": self.unused,
        }
        listed = [f"{len(names)} {kind}{_listed(names)}" for kind, names in kinds.items()]
        return "; ".join([f"{len(self.matched)} matched", *listed])


def load_pretrained(backbone: PoseBackbone, path: str | Path) -> LoadReport:
    """Load published weights into a backbone: all of them, or an error that lists what does not fit.

    Not errors: tensors of a classification head and others in `UNUSED`; absent `num_batches_tracked`; and, with a
    warning, a file without any keypoint head (ImageNet's), which leaves the backbone's head random.

    Raises:
        InputError: the file cannot be read, holds more than tensors and plain values, or does not fit.
    """
    path = Path(path)
    state = backbone.translate(_without_prefixes(_read_tensors(path)))
    own = backbone.state_dict()
    unused = [key for key in state if key not in own and any(re.match(rule, key) for rule in backbone.UNUSED)]
    expected = {key for key in own if not key.endswith("num_batches_tracked")}
    shared = sorted(own.keys() & state.keys())
    reshaped = [key for key in shared if own[key].shape != state[key].shape]
    report = LoadReport(
        path,
        matched=tuple(key for key in shared if key not in reshaped),
        missing=tuple(sorted(expected - state.keys())),
        unexpected=tuple(sorted(state.keys() - own.keys() - set(unused))),
        reshaped=tuple(f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in reshaped),
        unused=tuple(sorted(unused)),
    )
    headless = set(report.missing) == {key for key in expected if key.startswith(backbone.HEAD)}
    if report.unexpected or report.reshaped or (report.missing and not headless):
        raise InputError(
            f"{path} does not fit this {type(backbone).__name__}: {report}. Nothing was loaded: give the weights of "
            "the same network, with COCO's 17 keypoints"
        )
    backbone.load_state_dict({key: state[key] for key in report.matched}, strict=False)
    log.info("Backbone weights %s: %s", path, report)
    if headless:
        log.warning("%s has no keypoint head: the backbone's is random, and its keypoints mean nothing yet", path)
    return report


def _listed(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})" if names else ""


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file, at its top or in one of `NESTS`. No code in it is run."""
    if not path.is_file():
        raise InputError(f"there are no backbone weights {path}: check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_numpy_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged, or holds Python objects beside tensors, which are not loaded because they could run "
            "code: download it again, or save its state_dict alone"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no file of weights, or is damaged ({error}): download it again") from error
    content = content if isinstance(content, Mapping) else {}
    for nest in NESTS:
        if isinstance(content.get(nest), Mapping):
            content = content[nest]
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensors: give a file of weights")
    return tensors


def _numpy_globals() -> list[Any]:
    """What numpy arrays need to be read, as MMPose 1.x keeps some beside its weights."""
    rebuild = np.zeros(0).__reduce__()[0]
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    kinds = {type(np.dtype(kind)) for kind in "bBhHiIlLfd?"} | {type(np.dtype("U1"))}
    return [*((rebuild, name) for name in names), np.ndarray, np.dtype, *kinds]


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MMPose's and DataParallel's prefixes taken off. Of MMPose, only the backbone and the head are kept."""
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if not any(key.startswith("backbone.") for key in state):
        return state
    flat = {}
    for key, value in state.items():
        for prefix in ("backbone.", *MMPOSE_HEADS):
            if key.startswith(prefix):
                flat[key.removeprefix(prefix)] = value
                break
        else:
            flat[key] = value
    return flat
