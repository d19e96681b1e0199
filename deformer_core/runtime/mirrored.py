"""Every person looked at twice, as they are and in a mirror: the mean of both errs less than either, at twice the cost.

Known in the field as flip testing (Newell et al., ECCV 2016, for keypoints). Of two bodies that face different ways the
mean would be flat; of those the one of the picture as it is stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.errors import InputError
from deformer_core.geometry.camera import FLIP
from deformer_core.runtime.device_crops import Crops

if TYPE_CHECKING:
    from deformer_core.runtime.engines import Engine

APART = 0.5
"""Cosine of the angle between two bodies' fronts from which on they have a mean. On renders 0 to 0.85 do alike."""


class MirroredEngine:
    """An engine, see `engines.Engine`, whose bodies are means over each crop and its mirror image.

    Keypoints stay those of the crop, as do bodies that face apart. topology: the body of the engine's model.

    Raises:
        InputError: the body has no left and right that mirror each other.
    """

    def __init__(self, engine: Engine, topology: BodyTopology):
        self._engine = engine
        self.image_size, self.crop_device = engine.image_size, engine.crop_device
        self.description = f"{engine.description}, with mirror images"
        self._others = {f"vertices_{level}": mirror_rows(topology, level) for level in topology.levels}
        self._others["joints"] = np.array(topology.joint_mirror)
        trunk = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
        self._trunk = [topology.joint_names.index(name) for name in trunk]

    def __call__(self, crops: Crops, box: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        count = len(crops)
        outputs = self._engine(_with_mirrored(crops), np.concatenate([box, box * FLIP]))
        seen = {name: array[:count] for name, array in outputs.items()}
        other = self._mirrored_back({name: array[count:] for name, array in outputs.items()})
        agree = (self._front(seen["joints"]) * self._front(other["joints"])).sum(-1) > APART
        for name, array in other.items():
            seen[name] = seen[name].copy()  # not a view of what the engine may use again
            seen[name][agree] = (seen[name][agree] + array[agree]) / 2
        return seen

    def _mirrored_back(self, outputs: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What was seen in the mirror, as it is beside it."""
        bodies = {name: outputs[name][:, rows] * FLIP for name, rows in self._others.items() if name in outputs}
        return bodies | {"camera": outputs["camera"] * np.array([1, -1, 1], np.float32)}

    def _front(self, joints: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 3) where the trunk faces, of unit length."""
        left_shoulder, right_shoulder, left_hip, right_hip = joints[:, self._trunk].swapaxes(0, 1)
        across = left_shoulder + left_hip - right_shoulder - right_hip
        down = left_hip + right_hip - left_shoulder - right_shoulder
        front = np.cross(across, down)
        facing: NDArray[np.float32] = front / np.maximum(np.linalg.norm(front, axis=-1, keepdims=True), 1e-9)
        return facing


def mirror_rows(topology: BodyTopology, level: str) -> NDArray[np.integer]:
    """(V,) the vertex on the other side of the body. Errors: `InputError` where the template is not symmetric."""
    from scipy.spatial import cKDTree

    vertices = topology.levels[level].vertices
    others: NDArray[np.integer] = cKDTree(vertices).query(vertices * FLIP)[1]
    if not np.array_equal(others[others], np.arange(len(others))):
        raise InputError(f"the vertices of body {topology.name} have no mirror images: run without mirrored")
    return others


def _with_mirrored(crops: Crops) -> Crops:
    if isinstance(crops, torch.Tensor):
        return torch.cat([crops, crops.flip(2)])
    return np.concatenate([crops, crops[:, :, ::-1]])
