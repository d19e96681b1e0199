"""Every person looked at twice, as they are and in a mirror: the mean of both errs less than either, at twice the cost.

Known in the field as flip testing (Newell et al., ECCV 2016, for keypoints).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.errors import InputError
from deformer_core.runtime.device_crops import Crops

if TYPE_CHECKING:
    from deformer_core.runtime.engines import Engine

FLIP = np.array([-1, 1, 1], np.float32)
"""Model space, and a crop's box, in a mirror beside the camera."""


class MirroredEngine:
    """An engine, see `engines.Engine`, whose bodies are means over each crop and its mirror image.

    Keypoints stay those of the crop. topology: the body of the engine's model.

    Raises:
        InputError: the body has no left and right that mirror each other.
    """

    def __init__(self, engine: Engine, topology: BodyTopology):
        self._engine = engine
        self.image_size, self.crop_device = engine.image_size, engine.crop_device
        self.description = f"{engine.description}, with mirror images"
        self._others = {f"vertices_{level}": mirror_rows(topology, level) for level in topology.levels}
        self._others["joints"] = np.array(topology.joint_mirror)

    def __call__(self, crops: Crops, box: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        count = len(crops)
        outputs = self._engine(_with_mirrored(crops), np.concatenate([box, box * FLIP]))
        seen = {name: array[:count] for name, array in outputs.items()}
        return seen | self._means(seen, {name: array[count:] for name, array in outputs.items()})

    def _means(
        self, seen: Mapping[str, NDArray[np.float32]], mirrored: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        means = {
            name: (seen[name] + mirrored[name][:, other] * FLIP) / 2
            for name, other in self._others.items()
            if name in seen
        }
        (scale, x, y), (other_scale, other_x, other_y) = (views["camera"].T for views in (seen, mirrored))
        camera = np.stack([np.sqrt(scale * other_scale), (x - other_x) / 2, (y + other_y) / 2], -1)
        return means | {"camera": camera}


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
