"""Rigid and similarity alignment of point sets (orthogonal Procrustes; Umeyama 1991)."""

from __future__ import annotations

import torch
from torch import Tensor


def align_rotation(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The proper rotation R that maximises trace(R^T covariance), and that maximum.

    covariance: (..., 3, 3), sum of target x source^T. Returns (..., 3, 3) and (...). Reflections are never
    returned: the axis of the least singular value is turned instead.
    """
    u, singular, vt = torch.linalg.svd(covariance)
    handedness = torch.det(u @ vt).sign()
    signs = torch.ones_like(singular)
    signs = torch.cat([signs[..., :2], signs[..., 2:] * handedness[..., None]], -1)
    return u @ (signs[..., None] * vt), (singular * signs).sum(-1)


def similarity_align(source: Tensor, target: Tensor) -> Tensor:
    """`source` moved, turned and scaled onto `target` in the least-squares sense, without reflection.

    source, target: (B, N, 3). Returns (B, N, 3). A source whose points all coincide is returned at the
    target's mean (any rotation and scale fit it equally well).
    """
    source_mean, target_mean = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    a, b = source - source_mean, target - target_mean
    rotation, gain = align_rotation(b.transpose(1, 2) @ a)
    variance = (a * a).sum((1, 2))
    scale = torch.where(variance > 0, gain / variance.clamp(min=torch.finfo(a.dtype).tiny), torch.zeros_like(gain))
    return scale[:, None, None] * a @ rotation.transpose(1, 2) + target_mean
