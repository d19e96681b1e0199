"""Where the camera stands and which window of its image a detector would cut out.

World: y down, the body's rotations as sampled (upright, heading towards the camera). The view turns the world
into the full camera's axes: yaw of the body first, then the camera's pitch and roll.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deformer_core.geometry.camera import CropWindow, Intrinsics

FloatArray = NDArray[np.float64]

MIN_DEPTH = 0.3
"""Metres. No vertex comes nearer to the camera than this."""

MAX_HALF_ANGLE = 1.2
"""Greatest half side of a crop on the plane z = 1: a hundred degrees."""

ATTEMPTS = 20

CUTS = ("none", "tight", "bottom", "left", "right", "top")
"""How a person may be truncated: not at all, by a window around the upper part only, or by a border."""


@dataclass(frozen=True)
class SceneConfig:
    truncated: float = 0.25
    """Share of people of whom only a part is in the crop."""
    fov: tuple[float, float, float] = (25.0, 55.0, 100.0)
    """Least, most frequent and greatest diagonal field of view, degrees."""
    margin: float = 1.25
    """The crop's side over the longer side of the person's box."""
    scale_jitter: tuple[float, float] = (0.9, 1.2)
    center_jitter: float = 0.04
    """Standard deviation of the crop's centre, in sides of the person's box."""


@dataclass(frozen=True)
class Scene:
    intrinsics: Intrinsics
    view: FloatArray
    """(3, 3) world axes to the full camera's axes, the body's yaw included."""
    translation: FloatArray
    """(3,) the body's origin in the full camera, metres."""
    window: CropWindow
    cut: str

    def box(self) -> NDArray[np.float32]:
        return self.window.box(self.intrinsics)


def sample_scene(rng: np.random.Generator, config: SceneConfig, vertices: NDArray[np.float32]) -> Scene:
    """Draw a camera, a place and a crop for a body. vertices: (V, 3) in the world, pelvis at the origin."""
    for _ in range(ATTEMPTS):
        intrinsics = sample_intrinsics(rng, config)
        view = sample_view(rng)
        points = vertices.astype(np.float64) @ view.T
        cut = sample_cut(rng, config)
        translation = place(rng, points, intrinsics, cut)
        uv = project(points + translation, intrinsics)
        window = sample_window(rng, config, uv, intrinsics, cut)
        if is_usable(points + translation, uv, window, intrinsics):
            break
    return Scene(intrinsics, view, translation, window, cut)


def is_usable(points: FloatArray, uv: FloatArray, window: CropWindow, intrinsics: Intrinsics) -> bool:
    """Rare draws fail: bodies that pass the lens, or of which the picture shows next to nothing."""
    size = np.array([intrinsics.width, intrinsics.height], dtype=np.float64)
    center = np.array([window.center_x, window.center_y])
    shown = ((uv >= 0) & (uv <= size) & (np.abs(uv - center) <= window.side / 2)).all(1).mean()
    return bool(
        points[:, 2].min() >= MIN_DEPTH * 0.99
        and shown > 0.18
        and (center >= 0).all()
        and (center <= size).all()
        and window.side / 2 / intrinsics.fx < MAX_HALF_ANGLE
    )


def sample_intrinsics(rng: np.random.Generator, config: SceneConfig) -> Intrinsics:
    aspect = rng.choice([4 / 3, 3 / 2, 16 / 9, 1.0, 3 / 4, 2 / 3, 9 / 16]) * rng.uniform(0.95, 1.05)
    long_side = int(rng.integers(480, 1921))
    short_side = round(long_side / max(aspect, 1 / aspect))
    width, height = (long_side, short_side) if aspect > 1 else (short_side, long_side)
    return Intrinsics.from_fov(width, height, float(rng.triangular(*config.fov)))


def sample_view(rng: np.random.Generator) -> FloatArray:
    """Mostly a level camera; one in six looks down, one in twenty up. Half of the bodies face it."""
    yaw = rng.normal(0, 0.7) if rng.random() < 0.45 else rng.uniform(-np.pi, np.pi)
    kind = rng.random()
    if kind < 0.8:
        pitch = np.clip(rng.normal(0.03, 0.13), -0.35, 0.35)
    else:
        pitch = rng.uniform(0.3, 1.1) if kind < 0.95 else -rng.uniform(0.25, 0.7)
    roll = rng.normal(0, 0.05) if rng.random() < 0.95 else rng.normal(0, 0.4)
    return rotation("z", roll) @ rotation("x", pitch) @ rotation("y", yaw)


def rotation(axis: str, angle: float) -> FloatArray:
    """(3, 3) rotation about a coordinate axis, radians."""
    i = "xyz".index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    matrix = np.eye(3)
    matrix[[j, k], [j, k]] = np.cos(angle)
    matrix[j, k], matrix[k, j] = -np.sin(angle), np.sin(angle)
    return matrix


def sample_cut(rng: np.random.Generator, config: SceneConfig) -> str:
    if rng.random() >= config.truncated:
        return "none"
    return str(rng.choice(CUTS[1:], p=[0.4, 0.33, 0.12, 0.12, 0.03]))


def project(points: FloatArray, intrinsics: Intrinsics) -> FloatArray:
    """(..., 3) metres in the full camera to (..., 2) pixels."""
    uv = points[..., :2] / np.maximum(points[..., 2:], MIN_DEPTH / 2)
    return uv * [intrinsics.fx, intrinsics.fy] + [intrinsics.cx, intrinsics.cy]


def place(rng: np.random.Generator, points: FloatArray, intrinsics: Intrinsics, cut: str) -> FloatArray:
    """A translation that puts the person's box where it was drawn to be; cut by the asked border, if any."""
    size = np.array([intrinsics.width, intrinsics.height], dtype=np.float64)
    nearest = MIN_DEPTH - points[:, 2].min()
    extent = np.ptp(points[:, :2], axis=0)
    # The box's share of the image side that it fills more.
    share = np.exp(rng.uniform(np.log(0.25), np.log(0.95)))
    if cut not in ("none", "tight"):
        share = rng.uniform(0.6, 1.8)
    distance = max(nearest, intrinsics.fx * float((extent / size).max()) / share)
    translation = np.array([0.0, 0.0, distance])
    target = None
    shown = rng.uniform(0.3, 0.85) if rng.random() < 0.85 else rng.uniform(0.15, 0.3)
    place_of_centre = rng.beta(2, 2, 2)
    for _ in range(4):
        uv = project(points + translation, intrinsics)
        low, high = uv.min(0), uv.max(0)
        if cut in ("none", "tight"):
            grow = float(((high - low) / (size * 0.97)).max())
            translation[2] *= max(grow, 1.0)
        box = np.minimum(high - low, size * 0.97)
        target = box / 2 + place_of_centre * (size - box)
        if cut == "bottom":
            target[1] = size[1] - shown * (high - low)[1] + (high - low)[1] / 2
        elif cut == "top":
            target[1] = (0.5 - 0.25 * (1 - shown)) * (high - low)[1]
        elif cut == "left":
            target[0] = (shown - 0.5) * (high - low)[0]
        elif cut == "right":
            target[0] = size[0] - (shown - 0.5) * (high - low)[0]
        shift = (target - (low + high) / 2) / [intrinsics.fx, intrinsics.fy]
        translation[:2] += shift * translation[2]
        translation[2] = max(translation[2], nearest)
    return translation


def sample_window(
    rng: np.random.Generator, config: SceneConfig, uv: FloatArray, intrinsics: Intrinsics, cut: str
) -> CropWindow:
    """The square a detector's box of the visible part would give, jittered. uv: (V, 2) pixels."""
    size = np.array([intrinsics.width, intrinsics.height], dtype=np.float64)
    seen = uv
    if cut == "tight":
        shown = rng.uniform(0.3, 0.8) if rng.random() < 0.85 else rng.uniform(0.18, 0.3)
        top, bottom = uv[:, 1].min(), uv[:, 1].max()
        seen = uv[uv[:, 1] < top + shown * (bottom - top)]
    inside = ((seen >= 0) & (seen <= size)).all(1)
    seen = seen[inside] if inside.sum() >= 50 else seen
    window = CropWindow.from_bbox(np.concatenate([seen.min(0), seen.max(0)]), config.margin)
    jitter = rng.normal(0, config.center_jitter, 2) * window.side / config.margin
    scale = rng.uniform(*config.scale_jitter)
    return CropWindow(window.center_x + jitter[0], window.center_y + jitter[1], window.side * scale)
