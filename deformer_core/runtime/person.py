"""The one record that leaves the runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


@dataclass
class Person:
    """One person found in an image. Metres in the full camera's axes (x right, y down, z forward); float32.

    `joints + translation` and `vertices + translation` are coordinates in the full camera.
    """

    id: int
    """Index in the image, by falling score."""
    box: FloatArray
    """(4,) x0, y0, x1, y1 in pixels."""
    score: float
    """Of the detector, 0..1; 1 for a box that was given."""
    joints: FloatArray
    """(J, 3), origin at the pelvis."""
    vertices: FloatArray
    """(V, 3) at the mesh level `level`, origin at the pelvis."""
    translation: FloatArray
    """(3,) the pelvis in the full camera."""
    camera: FloatArray
    """(3,) s, tx, ty of the crop's virtual camera (see `geometry.camera.camera_translation`)."""
    keypoints_2d: FloatArray
    """(J, 2) the joints in the image, pixels."""
    level: str
    """"coarse", "middle" or "full"."""
    intrinsics: FloatArray
    """(3, 3) of the full image, pixels."""
