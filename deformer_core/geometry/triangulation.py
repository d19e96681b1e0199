"""Points in space from their images in several calibrated cameras."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


@dataclass(frozen=True)
class Triangulated:
    """points: (N, 3) world, NaN where fewer than two cameras agree; error: (N,) root mean square distance of their
    images from where they were seen, on the plane z = 1; used: (V, N) bool, the cameras that were believed."""

    points: FloatArray
    error: FloatArray
    used: NDArray[np.bool_]


def triangulate(seen: FloatArray, cameras: FloatArray, weights: FloatArray) -> FloatArray:
    """Weighted direct linear transform (Hartley and Zisserman, "Multiple View Geometry", 12.2).

    seen: (V, N, 2) image points on the plane z = 1, that is (u - cx) / fx, (v - cy) / fy. cameras: (V, 3, 4) [R | t],
    world to camera. weights: (V, N), 0 for a camera that does not see the point; two must be above 0.
    Returns (N, 3) in the world.
    """
    rows = seen[..., None] * cameras[:, None, 2:3] - cameras[:, None, :2]  # (V, N, 2, 4)
    rows = (rows * weights[..., None, None]).transpose(1, 0, 2, 3).reshape(seen.shape[1], -1, 4)
    homogeneous = np.linalg.svd(rows)[2][:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return homogeneous[:, :3] / homogeneous[:, 3:]


def reproject(points: FloatArray, cameras: FloatArray) -> FloatArray:
    """Images of (N, 3) world points on each camera's plane z = 1, (V, N, 2); NaN behind the camera."""
    local = np.einsum("vij,nj->vni", cameras[..., :3], points) + cameras[:, None, :, 3]
    depth = np.where(local[..., 2:] > 0, local[..., 2:], np.nan)
    return local[..., :2] / depth


def triangulate_agreeing(
    seen: FloatArray, cameras: FloatArray, weights: FloatArray, limit: float
) -> Triangulated:
    """`triangulate` from as many cameras as agree to within `limit` (root mean square, plane z = 1).

    Of the sets of equally many cameras that agree, the one with the smallest error is taken. Arguments as of
    `triangulate`; any number of weights may be 0.
    """
    views, count = weights.shape
    points, error = np.full((count, 3), np.nan), np.full(count, np.inf)
    used = np.zeros((views, count), bool)
    for size in range(views, 1, -1):
        open_points = ~used.any(0)
        for chosen in combinations(range(views), size):
            rows = list(chosen)
            tried = open_points & (weights[rows] > 0).all(0)
            if not tried.any():
                continue
            found = triangulate(seen[rows][:, tried], cameras[rows], weights[rows][:, tried])
            miss = np.sum((reproject(found, cameras[rows]) - seen[rows][:, tried]) ** 2, -1)
            distance = np.sqrt(miss.mean(0))
            better = np.flatnonzero(tried)[np.nan_to_num(distance, nan=np.inf) < np.minimum(error[tried], limit)]
            kept = np.isin(np.flatnonzero(tried), better)
            points[better], error[better] = found[kept], distance[kept]
            used[:, better] = np.isin(np.arange(views), rows)[:, None]
    return Triangulated(points, np.where(used.any(0), error, np.nan), used)
