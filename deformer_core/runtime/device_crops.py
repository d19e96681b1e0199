"""Crops cut by torch on a GPU, from one upload of the image: the same as OpenCV's in `crops`.

To 2 grey levels where the image is smooth; at its hardest edges to 10, because OpenCV rounds places to 1/32 pixel.

Both of a crop's steps, averaging and reading bilinearly, are weighted sums along y and along x. So a crop is
Y @ image @ X^T, two products of matrices, whose entries follow from the crop's plan in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deformer_core.geometry.camera import CropWindow, Intrinsics
from deformer_core.runtime.crops import CropPlan, Image, plan_crop

AT_ONCE = 16
"""Crops whose weights are made together: of an image of 4K they take up to 300 MB."""

Crops = NDArray[np.uint8] | Tensor
"""(N, size, size, 3) uint8 RGB, in the CPU's memory or a device's."""


def cut_crops(
    image: Image, windows: Sequence[CropWindow], intrinsics: Intrinsics, size: int, device: torch.device
) -> Tensor:
    """All crops of one image as (N, size, size, 3) uint8 on the device; each as `crops.cut_crop` makes it.

    Only the part of the image that the crops see is uploaded.
    """
    plans = [plan_crop(image.shape[1], image.shape[0], window, intrinsics, size) for window in windows]
    seeing = [number for number, plan in enumerate(plans) if (plan.low < plan.high).all()]
    crops = torch.zeros(len(plans), 3, size, size, device=device)
    if seeing:
        left, top = np.min([plans[number].low for number in seeing], 0)
        right, bottom = np.max([plans[number].high for number in seeing], 0)
        uploaded = _upload(image[top:bottom, left:right], device).permute(2, 0, 1)
        planes = uploaded.to(torch.float32, memory_format=torch.contiguous_format)
    for first in range(0, len(seeing), AT_ONCE):
        numbers = seeing[first : first + AT_ONCE]
        some = [plans[number] for number in numbers]
        columns, rows = (_shares(some, axis, size, device) for axis in (0, 1))
        for number, plan, x, y in zip(numbers, some, columns, rows):
            (x0, y0), (x1, y1) = plan.low - (left, top), plan.high - (left, top)
            along_y = y[:, : y1 - y0] @ planes[:, y0:y1, x0:x1]
            torch.matmul(along_y, x[:, : x1 - x0].T, out=crops[number])
    return crops.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def on_device(values: NDArray | Tensor, device: torch.device) -> Tensor:
    """The values as a contiguous tensor there; one that is there already is not copied."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    return tensor.to(device).contiguous()


def _upload(image: Image, device: torch.device) -> Tensor:
    """By way of pinned memory: a GPU fetches it while the weights are being made."""
    staging = torch.empty(image.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    staging.numpy()[:] = image
    return staging.to(device, non_blocking=True)


def _shares(plans: Sequence[CropPlan], axis: int, size: int, device: torch.device) -> Tensor:
    """How much of each pixel of its region is in each pixel of a crop, along one axis: (N, size, most pixels).

    A crop's pixel looks between the centres of two blocks. Each of them has its pixels evenly, the first and the last
    in part; where there is no block, it is black.
    """
    table = [[plan.high[axis] - plan.low[axis], *(part[axis] for part in plan[2:])] for plan in plans]
    most = int(max(row[0] for row in table))
    pixels, blocks, scale, offset = torch.tensor(table, dtype=torch.float64, device=device)[..., None, None].unbind(1)
    place = (torch.arange(size, device=device)[:, None] - offset) / scale  # (N, size, 1), in blocks
    block = place.floor()
    weight = (place - block).float()  # of the second one
    ends = torch.arange(most + 1, device=device).minimum(pixels) * (blocks / pixels)  # (N, 1, most + 1), in blocks
    # What of a block lies before the end of a pixel: the difference between two ends is what lies in the pixel.
    first = (ends - block).float()
    before = torch.lerp(first.clamp(0, 1), (first - 1).clamp(0, 1), weight)
    return before.diff(dim=-1)
