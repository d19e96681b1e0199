"""Square crops of people, cut from images of any size by OpenCV; on a GPU: `device_crops`."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from deformer_core.geometry.camera import CropWindow, Intrinsics

Image = NDArray[np.uint8]


class CropPlan(NamedTuple):
    """How a crop is made of its image, whatever makes it: averages of pixels, read bilinearly. Arrays are (x, y).

    low, high: (2,) int, the pixels of the image that the crop sees, with a margin; none if it lies outside.
    blocks: (2,) int, how many averages to make of them, of equal parts: at most two for each pixel of the crop.
    scale, offset: (2,) float, `scale * block + offset` is the crop's pixel, both counted at their centres.
    """

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    blocks: NDArray[np.intp]
    scale: NDArray[np.float64]
    offset: NDArray[np.float64]


def cut_crop(image: Image, window: CropWindow, intrinsics: Intrinsics, size: int) -> Image:
    """The window of the image as (size, size, 3) uint8; black outside the image.

    With fx != fy the window is side * fy / fx pixels high, so that the crop has square pixels in directions.
    Where more than two pixels fall on one of the crop, they are averaged first (no aliasing, any image size).
    """
    plan = plan_crop(image.shape[1], image.shape[0], window, intrinsics, size)
    region = image[plan.low[1] : plan.high[1], plan.low[0] : plan.high[0]]
    if region.size == 0:
        return np.zeros((size, size, 3), np.uint8)
    if (plan.blocks != plan.high - plan.low).any():
        region = np.asarray(cv2.resize(region, plan.blocks.tolist(), interpolation=cv2.INTER_AREA), np.uint8)
    affine = np.column_stack([np.diag(plan.scale), plan.offset])
    crop = cv2.warpAffine(region, affine, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(crop, np.uint8)


def plan_crop(width: int, height: int, window: CropWindow, intrinsics: Intrinsics, size: int) -> CropPlan:
    """The plan of `cut_crop` for an image of so many pixels."""
    scale, offset = _scale_and_offset(window, intrinsics, size)
    shrink = np.maximum(np.floor(1 / scale), 1)
    # The part of the image that the crop sees.
    limit, margin = np.array([width, height]), 2 * shrink
    low = np.clip(np.floor((-0.5 - offset) / scale) - margin, 0, limit).astype(int)
    high = np.clip(np.ceil((size - 0.5 - offset) / scale) + 1 + margin, 0, limit).astype(int)
    offset = offset + scale * low
    # Averages over about `shrink` pixels; the map follows exactly, whatever the rounding of their number.
    pixels = np.maximum(high - low, 1)
    blocks = np.maximum(np.round(pixels / shrink), 1).astype(int)
    ratio = pixels / blocks
    offset = offset + scale * (ratio - 1) / 2  # centres: pixel = (block + 0.5) * ratio - 0.5
    return CropPlan(low, high, blocks, scale * ratio, offset)


def _scale_and_offset(
    window: CropWindow, intrinsics: Intrinsics, size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The map between pixel indices, image to crop: (x, y) each."""
    affine = np.array(window.affine(size), np.float64)
    stretch = intrinsics.fx / intrinsics.fy
    affine[1, 1] *= stretch
    affine[1, 2] = affine[1, 1] * (0.5 - window.center_y) + size / 2 - 0.5
    return np.array([affine[0, 0], affine[1, 1]]), affine[:, 2]
