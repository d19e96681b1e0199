"""From a crop's virtual camera to the camera that took the image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.geometry.camera import NEAR, camera_translation, crop_rotation

FloatArray = NDArray[np.float32]


class Placed(NamedTuple):
    """Bodies in the full camera's axes (x right, y down, z forward), metres, float32."""

    vertices: FloatArray
    """(B, V, 3), origin at the pelvis."""
    joints: FloatArray
    """(B, J, 3), origin at the pelvis."""
    translation: FloatArray
    """(B, 3) the pelvis in the full camera."""
    keypoints_2d: FloatArray
    """(B, J, 2) the joints in the image, pixels."""


def place(vertices: FloatArray, joints: FloatArray, camera: FloatArray, box: FloatArray, intrinsics: NDArray) -> Placed:
    """Turn crop-space bodies into the full camera and project their joints.

    vertices (B, V, 3), joints (B, J, 3): metres in the virtual camera. camera (B, 3): s, tx, ty.
    box (B, 3): see `geometry.camera`. intrinsics: (3, 3) pixels.
    """
    box_tensor = torch.from_numpy(np.ascontiguousarray(box, dtype=np.float64))
    camera_tensor = torch.from_numpy(np.ascontiguousarray(camera, dtype=np.float64))
    rotation = crop_rotation(box_tensor).numpy()
    translation = (rotation @ camera_translation(camera_tensor, box_tensor).numpy()[:, :, None])[:, :, 0]
    turned = joints @ rotation.transpose(0, 2, 1)
    keypoints = project(turned + translation[:, None], intrinsics)
    return Placed(
        vertices @ rotation.transpose(0, 2, 1).astype(np.float32),
        turned.astype(np.float32),
        translation.astype(np.float32),
        keypoints.astype(np.float32),
    )


def project(points: NDArray, intrinsics: NDArray) -> NDArray:
    """Pixels (..., 2) of points (..., 3) in the camera; those nearer than `NEAR` project as if they were there."""
    depth = np.maximum(points[..., 2:], NEAR)
    return points[..., :2] / depth * np.diagonal(intrinsics)[:2] + intrinsics[:2, 2]
