"""Square crops of people, cut from images of any size."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from deformer_core.geometry.camera import CropWindow, Intrinsics

Image = NDArray[np.uint8]


def cut_crop(image: Image, window: CropWindow, intrinsics: Intrinsics, size: int) -> Image:
    """The window of the image as (size, size, 3) uint8; black outside the image.

    With fx != fy the window is side * fy / fx pixels high, so that the crop has square pixels in directions.
    Where more than two pixels fall on one of the crop, they are averaged first (no aliasing, any image size).
    """
    affine = _crop_affine(window, intrinsics, size)
    shrink = np.maximum(np.floor([1 / affine[0, 0], 1 / affine[1, 1]]), 1).astype(int)
    region, affine = _visible_region(image, affine, size, 2 * shrink)
    if region.size == 0:
        return np.zeros((size, size, 3), np.uint8)
    if shrink.max() > 1:
        region, affine = _shrink(region, affine, shrink)
    crop = cv2.warpAffine(region, affine, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(crop, np.uint8)


def _crop_affine(window: CropWindow, intrinsics: Intrinsics, size: int) -> NDArray[np.float64]:
    """(2, 3) map between pixel indices, image to crop."""
    affine = np.array(window.affine(size), np.float64)
    stretch = intrinsics.fx / intrinsics.fy
    affine[1, 1] *= stretch
    affine[1, 2] = affine[1, 1] * (0.5 - window.center_y) + size / 2 - 0.5
    return affine


def _visible_region(
    image: Image, affine: NDArray[np.float64], size: int, margin: NDArray
) -> tuple[Image, NDArray[np.float64]]:
    """The part of the image that the crop sees, with a margin (x, y) of pixels, and the map from it."""
    scale, offset = np.array([affine[0, 0], affine[1, 1]]), affine[:, 2]
    limit = np.array([image.shape[1], image.shape[0]])
    low = np.clip(np.floor((-0.5 - offset) / scale) - margin, 0, limit).astype(int)
    high = np.clip(np.ceil((size - 0.5 - offset) / scale) + 1 + margin, 0, limit).astype(int)
    moved = affine.copy()
    moved[:, 2] = offset + scale * low
    return image[low[1] : high[1], low[0] : high[0]], moved


def _shrink(region: Image, affine: NDArray[np.float64], shrink: NDArray) -> tuple[Image, NDArray[np.float64]]:
    """Average blocks of about (x, y) `shrink` pixels; the map follows exactly, whatever the rounding of the size."""
    old = np.array([region.shape[1], region.shape[0]])
    new = np.maximum(np.round(old / shrink), 1).astype(int)
    small = cv2.resize(region, (int(new[0]), int(new[1])), interpolation=cv2.INTER_AREA)
    ratio = old / new
    changed = affine.copy()
    changed[0, 0] *= ratio[0]
    changed[1, 1] *= ratio[1]
    changed[:, 2] += np.array([affine[0, 0], affine[1, 1]]) * (ratio - 1) / 2  # centres: u = (v + 0.5) * ratio - 0.5
    return np.asarray(small, np.uint8), changed
