"""What a dataset says of one person in one full image, and the crop that training takes from it.

Every reader of `data.readers` yields `Annotation`s; `crop` alone turns them into `Sample`s, with the changes of
augmentation applied to image and labels alike. All of them are exact under perspective: rolling the image about its
principal point is a roll of the camera, mirroring it is a mirror beside the camera, and the window is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.data.augment import mirror_sample
from deformer_core.data.sample import Sample
from deformer_core.geometry.camera import CropWindow, Intrinsics, camera_from_translation, crop_rotation

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Annotation:
    """One person in one full image. J joints in the order of the topology it was read for; unknown parts are None."""

    source: str
    """For messages and tables: file and record."""
    load_image: Callable[[], NDArray[np.uint8]]
    """(H, W, 3) RGB of the undistorted full image. Raises `InputError` if there is none."""
    center: tuple[float, float]
    """Of the person, pixels (the image's edges are at 0)."""
    side: float
    """Of the square around the person with a little air, pixels: 200 * `scale` of the SPIN line."""
    intrinsics: Intrinsics
    """Where a dataset has none, `Intrinsics.from_fov`."""
    uv: FloatArray
    """(J, 2) pixels."""
    uv_weight: FloatArray
    """(J,) 0 for joints without a label."""
    joints: FloatArray | None = None
    """(J, 3) metres, axes of the full camera, the middle of the hips at the origin."""
    joints_weight: FloatArray | None = None
    """(J,) 0 for joints that `joints` does not have; None: it has all."""
    body: str = ""
    """Name of the body that `rotations` and `shape` pose; for another body they are left out."""
    rotations: FloatArray | None = None
    """(R, 3, 3) relative to the parent, the root's in the full camera's axes."""
    shape: FloatArray | None = None
    """(S,)"""
    translation: FloatArray | None = None
    """(3,) metres: the middle of the hips in the full camera. Only with known intrinsics."""
    named_joints: Mapping[str, FloatArray] = field(default_factory=dict)
    """(3,) as of `joints`: joints that the topology lacks, by their name in `joint_sets`."""
    tags: Mapping[str, str | int] = field(default_factory=dict)
    """What protocols select and group by: subject, action, camera, frame, sequence, gender; as each reader says."""


@dataclass(frozen=True)
class CropChange:
    """How a crop differs from the plain one."""

    mirror: bool = False
    roll: float = 0.0
    """Radians, of the image about its principal point, x towards y."""
    scale: float = 1.0
    """Of the window's side."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Of the window, in its sides."""


def crop(annotation: Annotation, topology: BodyTopology, size: int, change: CropChange | None = None) -> Sample:
    """The person's square crop, `size` pixels a side, with its labels in the crop's virtual camera."""
    change = change or CropChange()
    cos, sin = math.cos(change.roll), math.sin(change.roll)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    lens = annotation.intrinsics
    principal = np.array([lens.cx, lens.cy])

    center = principal + turn[:2, :2] @ (np.array(annotation.center) - principal)
    side = annotation.side * change.scale
    window = CropWindow(center[0] + change.shift[0] * side, center[1] + change.shift[1] * side, side)
    uv = principal + (annotation.uv - principal) @ turn[:2, :2].T
    uv = (uv - [window.center_x, window.center_y]) / (side / 2) * (annotation.uv_weight > 0)[:, None]

    box = window.box(lens).astype(np.float32)
    to_crop = crop_rotation(torch.from_numpy(box)[None])[0].numpy().T @ turn
    sample = Sample(
        source=annotation.source,
        box=box,
        uv=uv.astype(np.float32),
        uv_weight=annotation.uv_weight.astype(np.float32),
        image=_cut(annotation.load_image(), turn[:2, :2], principal, window, size),
    )
    if annotation.joints is not None:
        sample.joints = (annotation.joints @ to_crop.T).astype(np.float32)
        sample.joints_weight = annotation.joints_weight
    if annotation.body == topology.name and annotation.rotations is not None:
        root = to_crop @ annotation.rotations[0]
        sample.rotations = np.concatenate([root[None], annotation.rotations[1:]]).astype(np.float32)
        sample.shape = annotation.shape
    if annotation.translation is not None:
        translation = torch.from_numpy((to_crop @ annotation.translation).astype(np.float32))
        sample.camera = camera_from_translation(translation[None], torch.from_numpy(box)[None])[0].numpy()
    return mirror_sample(sample, topology) if change.mirror else sample


def _cut(
    image: NDArray[np.uint8], turn: NDArray, principal: NDArray, window: CropWindow, size: int
) -> NDArray[np.uint8]:
    """(size, size, 3) of the turned image, black outside it; averaged where its pixels are smaller."""
    import cv2

    shrink = max(1, int(window.side // size))
    # Of pixel indices, whose centres are half a pixel from the edges that `principal` counts from.
    about = principal - 0.5
    turned = np.vstack([np.column_stack([turn, about - turn @ about]), [0, 0, 1]])
    affine = window.affine(size * shrink) @ turned
    cut = cv2.warpAffine(image, affine, (size * shrink, size * shrink), flags=cv2.INTER_LINEAR)
    return cut if shrink == 1 else cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
