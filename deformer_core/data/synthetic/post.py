"""From drawn layers to a photo: background, occluders, borders, and what cameras and codecs do to pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]
"""uint8"""
Floats = NDArray[Any]
"""float32"""


@dataclass(frozen=True)
class PostConfig:
    occluded: float = 0.3
    """Share of people with something flat in front of them."""
    blur: float = 0.35
    low_resolution: float = 0.25
    jpeg: float = 0.5


def compose(color: Image, alpha: Image, background: Image) -> Floats:
    """Blend drawn colours (already multiplied by `alpha`) over a background. Returns (S, S, 3) in [0, 255]."""
    share = alpha[..., None].astype(np.float32) * np.float32(1 / 255)
    return color + background * (1 - share)


def defocus(rng: np.random.Generator, background: Image) -> Image:
    """A background that is out of focus, sometimes."""
    if rng.random() > 0.35:
        return background
    return cv2.GaussianBlur(background, (0, 0), rng.uniform(0.6, 4))


def sample_occluders(rng: np.random.Generator, size: int, subject: Image) -> Floats:
    """(S, S) opacity of one to three shapes, the first of them on the subject."""
    mask = np.zeros((size, size), np.uint8)
    rows, columns = np.nonzero(subject > 127)
    for number in range(int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1]))):
        if len(rows) and number == 0:
            pick = int(rng.integers(len(rows)))
            center = np.array([columns[pick], rows[pick]], dtype=np.float64) + rng.normal(0, 12, 2)
        else:
            center = rng.uniform(0, size, 2)
        extent = np.exp(rng.uniform(np.log(0.05), np.log(0.28), 2)) * size
        _draw_shape(rng, mask, center, extent)
    return cv2.GaussianBlur(mask, (3, 3), 0).astype(np.float32) * np.float32(1 / 255)


def _draw_shape(rng: np.random.Generator, mask: Image, center: NDArray, extent: NDArray) -> None:
    size = len(mask)
    kind = rng.choice(["box", "ellipse", "polygon", "table", "post"], p=[0.3, 0.2, 0.2, 0.2, 0.1])
    x, y = (int(v) for v in center)
    w, h = (int(v) for v in extent)
    if kind == "box":
        angle = 0.0 if rng.random() < 0.6 else float(rng.uniform(0, 180))
        corners = cv2.boxPoints(((x, y), (2 * w, 2 * h), angle))
        cv2.fillConvexPoly(mask, corners.astype(np.int32), 255)
    elif kind == "ellipse":
        cv2.ellipse(mask, (x, y), (w, h), float(rng.uniform(0, 180)), 0, 360, 255, -1)
    elif kind == "polygon":
        corners = center + rng.normal(0, 1, (7, 2)) * extent
        cv2.fillConvexPoly(mask, cv2.convexHull(corners.astype(np.int32)), 255)
    elif kind == "table":  # from here down
        width = int(rng.uniform(0.3, 1) * size)
        slope = int(rng.normal(0, 10))
        top = max(y, size // 2)
        corners = np.array([[x - width, top + slope], [x + width, top - slope], [x + width, size], [x - width, size]])
        cv2.fillConvexPoly(mask, corners.astype(np.int32), 255)
    else:  # a post or a railing from top to bottom
        cv2.rectangle(mask, (x - w // 4, 0), (x + w // 4, size), 255, -1)


def sample_texture(rng: np.random.Generator, background: Image) -> Floats:
    """What an occluder looks like: a picture, or one colour with a gradient."""
    if rng.random() < 0.6:
        return background.astype(np.float32) * np.float32(rng.uniform(0.6, 1.2))
    size = len(background)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    shade = ramp[:, None] * rng.normal(0, 25) + ramp[None] * rng.normal(0, 25)
    return (rng.uniform(10, 240, 3) + shade[..., None]).astype(np.float32)


def fill_border(rng: np.random.Generator, image: NDArray, inside: tuple[int, int, int, int]) -> None:
    """Overwrite, in place, what lies outside of the full image: black, grey, or its edge repeated.

    inside: x0, y0, x1, y1 of the full image in pixels of the crop.
    """
    x0, y0, x1, y1 = inside
    size = len(image)
    if x0 <= 0 and y0 <= 0 and x1 >= size and y1 >= size:
        return
    seen = image[max(y0, 0) : y1, max(x0, 0) : x1]
    pads = (max(y0, 0), max(size - y1, 0), max(x0, 0), max(size - x1, 0))
    kind = rng.random()
    if kind < 0.25:
        image[:] = cv2.copyMakeBorder(seen, *pads, cv2.BORDER_REPLICATE)
    else:
        value = 0.0 if kind < 0.9 else 114.0
        image[:] = cv2.copyMakeBorder(seen, *pads, cv2.BORDER_CONSTANT, value=(value, value, value))


def photograph(rng: np.random.Generator, image: Floats, config: PostConfig) -> Floats:
    """Exposure, contrast, white balance, blur, lost resolution and noise. image: (S, S, 3) in [0, 255]."""
    size = len(image)
    contrast = rng.uniform(0.75, 1.25)
    gains = (rng.uniform(0.75, 1.25) * contrast * rng.uniform(0.92, 1.08, 3)).astype(np.float32)
    image = image * gains + np.float32((1 - contrast) * 128 + rng.normal(0, 10))
    if rng.random() < 0.04:
        image[:] = image @ np.array([[0.299], [0.587], [0.114]], np.float32)
    kind = rng.random()
    if kind < config.blur * 0.8:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.8))
    elif kind < config.blur:
        image = cv2.filter2D(image, -1, _motion_kernel(rng))
    if rng.random() < config.low_resolution:
        small = max(8, int(size * np.exp(rng.uniform(np.log(0.22), np.log(0.8)))))
        image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        method = cv2.INTER_LINEAR if rng.random() < 0.6 else cv2.INTER_CUBIC
        image = cv2.resize(image, (size, size), interpolation=method)
    if rng.random() < 0.6:
        noise = rng.integers(-128, 128, (size, size, 3), dtype=np.int8)
        image = image + noise * np.float32(rng.exponential(5) / 74)
    return image


def _motion_kernel(rng: np.random.Generator) -> Floats:
    length = int(rng.integers(3, 12)) | 1
    kernel = np.zeros((length, length), np.float32)
    reach = length / 2 * np.array([np.cos(angle := rng.uniform(0, np.pi)), np.sin(angle)])
    middle = np.array([length // 2, length // 2])
    start, end = (middle - reach).round().astype(int), (middle + reach).round().astype(int)
    cv2.line(kernel, start.tolist(), end.tolist(), 1.0)
    return kernel / kernel.sum()


def encode(rng: np.random.Generator, image: Floats, config: PostConfig) -> Image:
    """To 8 bits, sometimes through JPEG. Returns (S, S, 3) RGB."""
    result = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() >= config.jpeg:
        return result
    quality = int(rng.integers(30, 96))
    _, data = cv2.imencode(".jpg", result[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded: Any = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(decoded[..., ::-1])
