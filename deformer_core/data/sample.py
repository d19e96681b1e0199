"""The one record every reader makes, and the batch of tensors that training and evaluation take.

Keys of a batch, float32, B people, J joints, V coarse vertices, R bones, S shape coefficients:

| key | shape | meaning |
|---|---|---|
| `box` | (B, 3) | the crop, see `geometry.camera` |
| `keypoints` | (B, 17, 3) | the backbone's own keypoints, where they have been computed |
| `joints`, `vertices_coarse` | (B, J, 3), (B, V, 3) | metres, model space |
| `joints_weight` | (B, J) | 0 for joints that `joints` does not have |
| `rotations`, `shape` | (B, R, 3, 3), (B, S) | the posed rig, its root turned into the crop's virtual camera |
| `camera` | (B, 3) | true (s, tx, ty) |
| `uv`, `uv_weight` | (B, J, 2), (B, J) | 2D joints in crop coordinates, weight 0 for what is not labelled |
| `has_3d`, `has_mesh`, `has_camera` | (B,) | 1 where joints / rotations and shape / camera are known, else 0 |
| `images` | (B, S, S, 3) uint8 | crops, RGB |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology

FloatArray = NDArray[np.float32]
Batch = dict[str, Tensor]


@dataclass
class Sample:
    """One person in one crop. What is not known is None; the batch then holds zeros and a mask."""

    source: str
    """Where it came from, for messages and tables: `name:index` or a file."""
    box: FloatArray
    """(3,)"""
    uv: FloatArray
    """(J, 2) crop coordinates."""
    uv_weight: FloatArray
    """(J,) 0 for joints without a label."""
    clean: bool = False
    """Wholly inside the crop and hidden by nothing but itself."""
    truncated: bool | None = None
    """Cut by a border of the image or the crop; None: not known."""
    companions: int | None = None
    """Other people in the picture; None: not known."""
    image: NDArray[np.uint8] | None = None
    """(S, S, 3) RGB."""
    joints: FloatArray | None = None
    """(J, 3) metres, model space."""
    joints_weight: FloatArray | None = None
    """(J,) 0 for joints that `joints` does not have; None: it has all."""
    rotations: FloatArray | None = None
    """(R, 3, 3), the root's already in the crop's virtual camera; with `shape`, stands for the meshes."""
    shape: FloatArray | None = None
    """(S,)"""
    camera: FloatArray | None = None
    """(3,)"""
    keypoints: FloatArray | None = None
    """(17, 3) the backbone's."""


def label_shapes(topology: BodyTopology) -> dict[str, tuple[int, ...]]:
    """Shape of one person's entry of every float key that a sample stores (meshes are posed when needed)."""
    joints, bones = len(topology.joint_names), len(topology.rig.bone_names)
    return {
        "box": (3,),
        "uv": (joints, 2),
        "uv_weight": (joints,),
        "joints": (joints, 3),
        "joints_weight": (joints,),
        "rotations": (bones, 3, 3),
        "shape": (topology.rig.shape_samples.shape[1],),
        "camera": (3,),
        "keypoints": (17, 3),
        "has_3d": (),
        "has_mesh": (),
        "has_camera": (),
    }


def stack_labels(samples: Sequence[Sample], topology: BodyTopology) -> dict[str, FloatArray]:
    """Samples to one float32 array a key of `label_shapes`."""
    arrays = {key: np.zeros((len(samples), *shape), np.float32) for key, shape in label_shapes(topology).items()}
    for row, sample in enumerate(samples):
        if sample.joints is not None or sample.rotations is not None:
            arrays["joints_weight"][row] = 1
        for key in label_shapes(topology):
            value = getattr(sample, key, None)
            if value is not None:
                arrays[key][row] = value
        arrays["has_3d"][row] = sample.joints is not None or sample.rotations is not None
        arrays["has_mesh"][row] = sample.rotations is not None
        arrays["has_camera"][row] = sample.camera is not None
    return arrays


def collate(samples: Sequence[Sample], topology: BodyTopology) -> Batch:
    """Samples to a batch; `images` only if every sample has one."""
    batch = {key: torch.from_numpy(value) for key, value in stack_labels(samples, topology).items()}
    images = [sample.image for sample in samples if sample.image is not None]
    if images and len(images) == len(samples):
        batch["images"] = torch.from_numpy(np.stack(images))
    return batch


def pose_labels(batch: Batch, body: ParametricBody) -> Batch:
    """Add `vertices_<level>` for the body's levels, and `joints` where the mesh is known, by posing the rig.

    Rows without a mesh get a body of the rig's rest pose, which no loss looks at.
    """
    known = batch["has_mesh"] > 0
    eye = torch.eye(3, device=known.device).expand_as(batch["rotations"])
    with torch.no_grad():
        posed = body(torch.where(known[:, None, None, None], batch["rotations"], eye), batch["shape"])
    labels = {f"vertices_{level}": posed[level] for level in body.levels}
    labels["joints"] = torch.where(known[:, None, None], posed["joints"], batch["joints"])
    labels["joints_weight"] = torch.where(known[:, None], 1.0, batch["joints_weight"])
    return batch | labels


def concatenate(batches: Iterable[Batch]) -> Batch:
    """Batches of the same keys, one after the other."""
    parts = list(batches)
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
