"""Do two engines say the same? On real crops: the people of the shipped photo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deformer_core.errors import InputError
from deformer_core.geometry.camera import CropWindow, Intrinsics
from deformer_core.runtime.crops import cut_crop

if TYPE_CHECKING:
    from deformer_core.runtime.engines import Engine

TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}
"""Metres, by precision: the largest difference of a vertex or joint from torch in float32."""
PHOTO = Path(__file__).parents[1] / "data" / "demo" / "people.jpg"


def demo_image() -> NDArray[np.uint8]:
    """The shipped photo, (H, W, 3) RGB."""
    from deformer_core.runtime.media import find_sources

    return next(iter(find_sources(str(PHOTO))[0].frames())).image


def demo_crops(size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Crops (N, size, size, 3) and boxes (N, 3) of the people that the detector finds in the shipped photo."""
    from deformer_core.runtime.detector import PersonDetector

    image = demo_image()
    intrinsics = Intrinsics.from_fov(image.shape[1], image.shape[0])
    windows = [CropWindow.from_bbox(box) for box in PersonDetector()(image)[0]]
    crops = np.stack([cut_crop(image, window, intrinsics, size) for window in windows])
    return crops, np.stack([window.box(intrinsics) for window in windows]).astype(np.float32)


def difference(engine: Engine, reference: Engine) -> float:
    """Largest difference of any vertex or joint coordinate on the shipped photo, metres."""
    crops, box = demo_crops(engine.image_size)
    ours, theirs = engine(crops, box), reference(crops, box)
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs if name not in ("camera", "keypoints"))


def check_parity(engine: Engine, reference: Engine, precision: str = "float32") -> float:
    """`difference`, which must keep to `TOLERANCE`. Errors: `InputError` where it does not."""
    found = difference(engine, reference)
    if not found <= TOLERANCE[precision]:  # NaN is no parity either
        raise InputError(
            f"{engine.description} differs from torch by {found * 1000:.2f} mm on the shipped photo, more than the "
            f"{TOLERANCE[precision] * 1000:g} mm of {precision}: use another precision or engine"
        )
    return found
