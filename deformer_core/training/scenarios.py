"""Which people of a rendered set are in which situation that robots meet, and how well they are found there."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from deformer_core.data.sample import Sample

Mask = NDArray[np.bool_]
FloatArray = NDArray[np.floating]

BACK_VIEW = 120.0
"""Degrees between where the chest faces and the way to the camera, from which on a person is seen from behind."""
SITTING = 60.0
"""Degrees by which both thighs are bent from the trunk's line, at least."""
LOW_LIGHT = 0.12
"""Share of the light that is left in the dark pictures."""
READ_NOISE = 3.0
"""Grey levels, of the brightened sensor."""


def scenarios(samples: Sequence[Sample], names: Sequence[str]) -> dict[str, Mask]:
    """Masks (N,) over samples with 3D joints. `crowded` is left out where the renders do not say who else was drawn."""
    joints = np.stack([sample.joints for sample in samples if sample.joints is not None])
    masks = {
        "truncated": np.array([bool(sample.truncated) for sample in samples]),
        "back_view": facing(joints, names) > BACK_VIEW,
        "sitting": thigh_bend(joints, names).min(1) > SITTING,
    }
    if all(sample.companions is not None for sample in samples):
        masks["crowded"] = np.array([(sample.companions or 0) > 0 for sample in samples])
    return masks


def facing(joints: FloatArray, names: Sequence[str]) -> FloatArray:
    """Angle between where the chest faces and the way to the camera, degrees in 0..180.

    joints: (N, J, 3) in model space: x right, y down, z away from the camera. Returns (N,).
    """
    left, right, hips = _trunk(joints, names)
    up = (left + right) / 2 - hips
    front = _unit(np.cross(left - right, up))
    return np.degrees(np.arccos(np.clip(-front[:, 2], -1, 1)))


def thigh_bend(joints: FloatArray, names: Sequence[str]) -> FloatArray:
    """Angle of each thigh from the trunk's line, degrees, 0 standing upright. (N, J, 3) to (N, 2)."""
    left, right, hips = _trunk(joints, names)
    down = _unit(hips - (left + right) / 2)[:, None]
    knees, tops = (joints[:, [names.index(f"{side}_{end}") for side in ("left", "right")]] for end in ("knee", "hip"))
    return np.degrees(np.arccos(np.clip((_unit(knees - tops) * down).sum(-1), -1, 1)))


def low_light(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture as an automatic camera takes it with an eighth of the light: most of it won back by gain, with noise.

    image: (H, W, 3) RGB. Shot noise grows with the root of the light, read noise does not; colours fade.
    """
    light = (image.astype(np.float32) / 255) ** 2.2 * LOW_LIGHT
    electrons = rng.poisson(light * 600).astype(np.float32) / 600
    electrons += rng.normal(0, READ_NOISE / 255 * LOW_LIGHT, image.shape).astype(np.float32)
    seen = np.clip(electrons / LOW_LIGHT * 0.35, 0, 1) ** (1 / 2.2)
    grey = cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)[..., None]
    return ((0.6 * seen + 0.4 * grey) * 255 + 0.5).astype(np.uint8)


def _trunk(joints: FloatArray, names: Sequence[str]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Left and right shoulder and the middle of the hips, (N, 3) each."""
    left, right, *hips = (names.index(name) for name in ("left_shoulder", "right_shoulder", "left_hip", "right_hip"))
    return joints[:, left], joints[:, right], joints[:, hips].mean(1)


def _unit(vectors: FloatArray) -> FloatArray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
