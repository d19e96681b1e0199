"""Cameras: pinhole intrinsics, the square crop around a person, and projection through both.

Frames (REP-103 optical): x right, y down, z forward, metres.

A crop is seen by a *virtual camera*: the full camera turned about its centre so that it looks through the
middle of the crop. A person at the edge of the image is then not read as rotated, whatever the lens. The
crop's `box` is (cx, cy, h): the direction of its centre on the plane z = 1 and half its side there, that is
((u - px) / f, (v - py) / f, side / 2 / f).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.floating]

FLIP = np.array([-1, 1, 1], np.float32)
"""Points, and a crop's box, as seen in a mirror beside the camera."""
NEAR = 0.05
"""Metres. Points nearer than this (or behind the camera) project as if they were here."""


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole intrinsics of an undistorted image, in pixels."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @classmethod
    def from_fov(cls, width: int, height: int, degrees: float = 55.0) -> Intrinsics:
        """Intrinsics with the given diagonal field of view and a centred principal point."""
        focal = math.hypot(width, height) / 2 / math.tan(math.radians(degrees) / 2)
        return cls(focal, focal, width / 2, height / 2, width, height)

    @property
    def matrix(self) -> FloatArray:
        """(3, 3) float64."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=np.float64)


@dataclass(frozen=True)
class CropWindow:
    """A square window of the full image, in pixels; it may reach outside the image."""

    center_x: float
    center_y: float
    side: float

    @classmethod
    def from_bbox(cls, xyxy: FloatArray, margin: float = 1.25) -> CropWindow:
        """The square around a bounding box, `margin` times its longer side."""
        x0, y0, x1, y1 = (float(value) for value in xyxy)
        return cls((x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0) * margin)

    def affine(self, size: int) -> FloatArray:
        """(2, 3) map from full-image pixel indices to those of a `size` x `size` crop, for `cv2.warpAffine`.

        Pixel *centres* carry integer indices there, so both images' edges lie at -0.5.
        """
        scale = size / self.side
        offset_x = scale * (0.5 - self.center_x) + size / 2 - 0.5
        offset_y = scale * (0.5 - self.center_y) + size / 2 - 0.5
        return np.array([[scale, 0, offset_x], [0, scale, offset_y]], dtype=np.float64)

    def box(self, intrinsics: Intrinsics) -> FloatArray:
        """(3,) float32, see the module's docstring. With fx != fy the side is measured by fx."""
        return np.array(
            [
                (self.center_x - intrinsics.cx) / intrinsics.fx,
                (self.center_y - intrinsics.cy) / intrinsics.fy,
                self.side / 2 / intrinsics.fx,
            ],
            dtype=np.float32,
        )


def crop_rotation(box: Tensor) -> Tensor:
    """Rotation from the crop's virtual camera to the full camera.

    box: (B, 3). Returns (B, 3, 3): the smallest rotation that takes the z axis to the direction of the crop's
    centre (Rodrigues' formula between two unit vectors; crops behind the camera cannot occur).
    """
    x, y = box[:, 0], box[:, 1]
    norm = torch.sqrt(x * x + y * y + 1)
    ax, ay, az = x / norm, y / norm, 1 / norm
    k = 1 / (1 + az)
    rows = [1 - k * ax * ax, -k * ax * ay, ax, -k * ax * ay, 1 - k * ay * ay, ay, -ax, -ay, az]
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def camera_translation(camera: Tensor, box: Tensor) -> Tensor:
    """Translation of the body in the virtual camera from (s, tx, ty): (tx, ty, 1 / (s * h)) metres.

    `s` is the weak-perspective scale of METRO's camera, crop half-sides per metre at the pelvis' depth; the
    crop's real half angle h turns it into a distance. camera, box: (B, 3). Returns (B, 3).
    """
    depth = 1 / (camera[:, 0] * box[:, 2])
    return torch.stack([camera[:, 1], camera[:, 2], depth], -1)


def camera_from_translation(translation: Tensor, box: Tensor) -> Tensor:
    """Inverse of `camera_translation`. translation: (B, 3) in the virtual camera. Returns (B, 3)."""
    scale = 1 / (translation[:, 2] * box[:, 2])
    return torch.stack([scale, translation[:, 0], translation[:, 1]], -1)


def full_translation(camera: Tensor, box: Tensor) -> Tensor:
    """The body's origin in the full camera, metres. camera, box: (B, 3). Returns (B, 3)."""
    return (crop_rotation(box) @ camera_translation(camera, box)[:, :, None])[:, :, 0]


def project_crop(points: Tensor, camera: Tensor, box: Tensor) -> Tensor:
    """Project model-space points into the crop, in exact perspective through the full camera.

    points: (B, N, 3) metres in the virtual camera's axes, origin at the pelvis; camera, box: (B, 3).
    Returns (B, N, 2): crop coordinates, -1 at the left / top edge and 1 at the right / bottom edge
    (`align_corners=False`).
    """
    translated = points + camera_translation(camera, box)[:, None]
    seen = translated @ crop_rotation(box).transpose(1, 2)
    depth = seen[..., 2:].clamp(min=NEAR)
    return (seen[..., :2] / depth - box[:, None, :2]) / box[:, None, 2:]
