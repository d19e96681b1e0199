"""How a keypoint network errs, so that poses without an image can be given keypoints like those of a photo.

The errors are bootstrapped: a drawn pose takes over the errors and scores of a real detection of a similar
pose, all joints together, so that swapped sides and lost limbs come as they come.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

CANDIDATES = 24
BORDER = 1.05
"""Detections do not leave the crop by more than this."""


class KeypointErrors:
    """Detections with their true places: `keypoints` (N, 17, 3), `uv` (N, 17, 2), `labelled` (N, 17).

    Joints without a label take the error of a random detection that has one.
    """

    def __init__(self, keypoints: FloatArray, uv: FloatArray, labelled: FloatArray) -> None:
        rng = np.random.default_rng(0)
        self.uv = uv.copy()
        self.residual = np.concatenate([keypoints[..., :2] - uv, keypoints[..., 2:]], -1)
        for joint in range(uv.shape[1]):
            known = np.flatnonzero(labelled[:, joint] > 0)
            missing = np.flatnonzero(labelled[:, joint] <= 0)
            source = rng.choice(known, len(missing))
            self.residual[missing, joint] = self.residual[source, joint]
            self.uv[missing, joint] = keypoints[missing, joint, :2] - self.residual[missing, joint, :2]

    def apply(self, rng: np.random.Generator, uv: FloatArray) -> FloatArray:
        """Keypoints a network might have seen for joints at `uv`. (B, 17, 2) to (B, 17, 3)."""
        rows = rng.integers(len(self.uv), size=(len(uv), CANDIDATES))
        distance = np.abs(np.clip(self.uv[rows], -1.5, 1.5) - np.clip(uv[:, None], -1.5, 1.5)).mean((2, 3))
        best = rows[np.arange(len(uv)), distance.argmin(1)]
        residual = self.residual[best]
        place = uv + residual[..., :2] + rng.normal(0, 0.01, uv.shape)
        return np.concatenate([np.clip(place, -BORDER, BORDER), residual[..., 2:]], -1).astype(np.float32)


class DrawnErrors:
    """In place of recorded errors where there are none: mostly small, some gross, gross ones with low scores."""

    def apply(self, rng: np.random.Generator, uv: FloatArray) -> FloatArray:
        spread = 0.02 * rng.choice([0.6, 1.0, 3.0], (len(uv), uv.shape[1], 1), p=[0.5, 0.4, 0.1])
        lost = (rng.random(uv.shape[:2]) < 0.06) | (np.abs(uv) > 1).any(-1)
        spread = np.where(lost[..., None], 0.25, spread)
        score = rng.uniform(0.4, 0.95, uv.shape[:2]) * np.where(lost, 0.4, 1.0)
        place = np.clip(uv + rng.normal(0, 1, uv.shape) * spread, -BORDER, BORDER)
        return np.concatenate([place, score[..., None]], -1).astype(np.float32)
