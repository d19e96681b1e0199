"""Rotation matrices from the forms that motion capture and networks use."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation_from_axis_angle(axis_angle: Tensor) -> Tensor:
    """Rodrigues' formula. axis_angle: (..., 3) radians. Returns (..., 3, 3)."""
    squared = (axis_angle * axis_angle).sum(-1)[..., None, None]
    # Below 1e-8 the series is exact to rounding and, unlike sin(a)/a, has finite gradients at zero.
    small = squared < 1e-8
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    first = torch.where(small, 1 - squared / 6, angle.sin() / angle)
    second = torch.where(small, 0.5 - squared / 24, (1 - angle.cos()) / safe)
    cross = skew(axis_angle)
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return identity + first * cross + second * (cross @ cross)


def rotation_from_quaternion(quaternion: Tensor) -> Tensor:
    """(..., 4) as w, x, y, z, of any length but 0, to (..., 3, 3)."""
    w, vector = quaternion[..., :1], quaternion[..., 1:]
    cross = skew(vector)
    squared = (quaternion * quaternion).sum(-1)[..., None, None]
    identity = torch.eye(3, dtype=quaternion.dtype, device=quaternion.device)
    return identity + 2 * (w[..., None] * cross + cross @ cross) / squared


def skew(vector: Tensor) -> Tensor:
    """The matrix of the cross product with `vector`. (..., 3) to (..., 3, 3)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*vector.shape[:-1], 3, 3)


def rotation_from_6d(columns: Tensor) -> Tensor:
    """Gram-Schmidt on two 3-vectors (Zhou et al. 2019, "On the Continuity of Rotation Representations").

    columns: (..., 6), the first two columns of the matrix, one after the other. Returns (..., 3, 3).
    """
    first, second = columns[..., :3], columns[..., 3:]
    x = first / first.norm(dim=-1, keepdim=True).clamp(min=1e-8)
    y = second - (x * second).sum(-1, keepdim=True) * x
    y = y / y.norm(dim=-1, keepdim=True).clamp(min=1e-8)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)


def rotation_between(source: Tensor, target: Tensor) -> Tensor:
    """The smallest rotation that takes each `source` direction to its `target`. (..., 3) to (..., 3, 3)."""
    a = source / source.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    b = target / target.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    axis = torch.linalg.cross(a, b)
    sine = axis.norm(dim=-1, keepdim=True)
    angle = torch.atan2(sine, (a * b).sum(-1, keepdim=True))
    return rotation_from_axis_angle(axis / sine.clamp(min=1e-12) * angle)


def rotation_angle(rotation: Tensor) -> Tensor:
    """Geodesic angle of (..., 3, 3) rotations, radians in [0, pi]. Accurate near 0, unlike acos of the trace."""
    distance = (rotation - torch.eye(3, dtype=rotation.dtype, device=rotation.device)).flatten(-2).norm(dim=-1)
    return 2 * torch.asin((distance / 8**0.5).clamp(max=1))
