"""Rigid and similarity alignment of point sets (orthogonal Procrustes; Umeyama 1991)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def align_rotation(covariance: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The proper rotation R that maximises trace(R^T covariance), and that maximum.

    covariance: (..., 3, 3), sum of target x source^T. Returns (..., 3, 3) and (...). Reflections are never
    returned: the axis of the least singular value is turned instead.
    """
    u, singular, vt = np.linalg.svd(covariance)
    signs = np.ones_like(singular)
    signs[..., 2] = np.sign(np.linalg.det(u @ vt))
    return u @ (signs[..., None] * vt), (singular * signs).sum(-1)


def similarity_align(source: FloatArray, target: FloatArray) -> FloatArray:
    """`source` moved, turned and scaled onto `target` in the least-squares sense, without reflection.

    source, target: (B, N, 3). Returns (B, N, 3). A source whose points all coincide is returned at the
    target's mean (any rotation and scale fit it equally well).
    """
    source_mean, target_mean = source.mean(1, keepdims=True), target.mean(1, keepdims=True)
    a, b = source - source_mean, target - target_mean
    rotation, gain = align_rotation(b.swapaxes(1, 2) @ a)
    variance = (a * a).sum((1, 2))
    scale = np.where(variance > 0, gain / np.maximum(variance, np.finfo(a.dtype).tiny), 0)
    return scale[:, None, None] * a @ rotation.swapaxes(1, 2) + target_mean
