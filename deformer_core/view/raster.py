"""A z-buffer rasteriser of triangle meshes in numpy, without a window system or a graphics driver.

Every triangle is cut into its pixel rows, every row into its pixels, with two calls of `np.repeat` instead of loops;
the nearest fragment of each pixel wins. Only the rectangle of the picture that the mesh covers is worked on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEAR = 0.05
"""Metres; triangles with a corner nearer than this to the camera plane are left out."""

MAX_FRAGMENTS = 4_000_000
"""Fragments rasterised at once, which bounds the memory (about 60 bytes each)."""


@dataclass
class Raster:
    """What a camera sees of a mesh, inside the rectangle of the picture that the mesh covers.

    x, y: left and top pixel of the rectangle in the picture.
    face: (h, w) int32, index of the visible face, -1 where there is nothing.
    depth: (h, w) float32, metres along the optical axis, inf where there is nothing.
    weights: (h, w, 3) float32, barycentric coordinates on that face (perspective-correct), 0 where there is nothing.
    """

    x: int
    y: int
    face: np.ndarray
    depth: np.ndarray
    weights: np.ndarray

    def interpolate(self, values: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """Values at the corners (V, C) spread over the visible pixels: (h, w, C) float32, 0 where there is nothing."""
        picture = np.zeros((*self.face.shape, values.shape[1]), np.float32)
        seen = self.face >= 0
        corners = values[faces[self.face[seen]]]
        picture[seen] = np.einsum("nk,nkc->nc", self.weights[seen], corners)
        return picture


def render(vertices: np.ndarray, faces: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> Raster:
    """Draw a mesh with a pinhole camera.

    vertices: (V, 3) metres in the camera (x right, y down, z forward). faces: (F, 3) int, drawn from both sides.
    intrinsics: (3, 3) of the picture, pixel (0, 0) having its centre at (0.5, 0.5). size: (width, height) in pixels.
    """
    vertices = np.ascontiguousarray(vertices, dtype=np.float64)
    faces = np.asarray(faces)
    depth = vertices[:, 2]
    visible = np.flatnonzero((depth[faces] > NEAR).all(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        points = np.column_stack([(vertices @ intrinsics[:2].T) / depth[:, None], 1 / depth])
    x, y, width, height = _covered(points, faces[visible], size)
    inverse_depth = np.zeros(width * height, np.float32)
    face = np.full(width * height, -1, np.int32)
    if width and height:
        points[:, :2] -= (x, y)
        corners = points[faces[visible]]
        for chunk in _chunks(corners, width, height):
            pixel, near, owner = _fragments(corners[chunk], width, height)
            np.maximum.at(inverse_depth, pixel, near)
            won = near == inverse_depth[pixel]
            face[pixel[won]] = visible[chunk][owner[won]]
    picture = face.reshape(height, width)
    return Raster(x, y, picture, *_barycentric(vertices, faces, picture, intrinsics, x, y))


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3) float32: area-weighted mean of the faces around a vertex, (0, 0, 0) where there are none."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    face_normals = np.cross(b - a, c - a)
    normals = np.stack(
        [np.bincount(faces.ravel(), np.repeat(face_normals[:, axis], 3), len(vertices)) for axis in range(3)],
        axis=1,
    )
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return (normals / np.maximum(length, 1e-12)).astype(np.float32)


def _covered(points: np.ndarray, faces: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, width and height of the rectangle of the picture that holds all projected faces."""
    if not len(faces):
        return 0, 0, 0, 0
    used = points[np.unique(faces), :2]
    limit = np.array(size)
    low = np.clip(np.floor(used.min(0)), 0, limit).astype(int)
    high = np.clip(np.ceil(used.max(0)), 0, limit).astype(int)
    width, height = np.maximum(high - low, 0)
    return int(low[0]), int(low[1]), int(width), int(height)


def _chunks(corners: np.ndarray, width: int, height: int) -> list[slice]:
    """Cut the triangles into runs whose bounding boxes hold at most about MAX_FRAGMENTS pixels."""
    limit = (width, height)
    extent = np.clip(corners[..., :2].max(1), 0, limit) - np.clip(corners[..., :2].min(1), 0, limit) + 1
    total = np.cumsum(extent.prod(1))
    runs = np.searchsorted(total, np.arange(0, total[-1], MAX_FRAGMENTS))
    bounds = np.unique(np.append(runs, len(corners)))
    return [slice(a, b) for a, b in zip(bounds[:-1], bounds[1:])]


def _fragments(corners: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixel index, 1/z and triangle of every pixel centre inside the triangles (N, 3 corners, (x, y, 1/z))."""
    first = np.clip(np.ceil(corners[..., 1].min(1) - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(corners[..., 1].max(1) - 0.5), 0, height).astype(np.int64)
    triangle, row = _spread(first, last)
    left, right = _row_ends(corners, triangle, row)
    start = np.clip(np.ceil(left[0] - 0.5), 0, width).astype(np.int64)
    stop = np.clip(np.ceil(right[0] - 0.5), 0, width).astype(np.int64)
    segment, column = _spread(start, stop)
    slope = (right[1] - left[1]) / np.maximum(right[0] - left[0], 1e-9)
    offset = left[1] + (0.5 - left[0]) * slope
    near = (offset[segment] + slope[segment] * column).astype(np.float32)
    return row[segment] * width + column, near, triangle[segment]


def _row_ends(
    corners: np.ndarray, triangle: np.ndarray, row: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Where the triangles' edges cross the middles of the rows: ((x, 1/z) on the left, (x, 1/z) on the right)."""
    middle = row + 0.5
    left_x = np.full(len(row), np.inf)
    right_x = np.full(len(row), -np.inf)
    left_z = np.zeros(len(row))
    right_z = np.zeros(len(row))
    rise = np.roll(corners, -1, 1) - corners
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = rise / rise[..., 1:2]
    for edge in range(3):
        begin, slope = corners[triangle, edge], slopes[triangle, edge]
        end_y = corners[triangle, (edge + 1) % 3, 1]
        crossed = (begin[:, 1] > middle) != (end_y > middle)
        step = middle - begin[:, 1]
        with np.errstate(invalid="ignore"):
            x, z = begin[:, 0] + step * slope[:, 0], begin[:, 2] + step * slope[:, 2]
        nearer = crossed & (x < left_x)
        left_x[nearer], left_z[nearer] = x[nearer], z[nearer]
        farther = crossed & (x > right_x)
        right_x[farther], right_z[farther] = x[farther], z[farther]
    empty = right_x < left_x
    left_x[empty] = right_x[empty] = 0
    return (left_x, left_z), (right_x, right_z)


def _spread(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All integers of all half-open ranges: (range index, integer), both int64."""
    count = np.maximum(stop - start, 0)
    index = np.repeat(np.arange(len(count)), count)
    first = np.cumsum(count) - count
    return index, np.arange(len(index)) + (start - first)[index]


def _barycentric(
    vertices: np.ndarray, faces: np.ndarray, face: np.ndarray, intrinsics: np.ndarray, x: int, y: int
) -> tuple[np.ndarray, np.ndarray]:
    """Depth (h, w) and barycentric coordinates (h, w, 3) where the pixels' rays meet their faces.

    A ray d meets the triangle (A, B, C) where [A B C] w = t d, so w is the solution for t = 1 scaled to sum 1.
    """
    depth = np.full(face.shape, np.inf, np.float32)
    weights = np.zeros((*face.shape, 3), np.float32)
    rows, columns = np.nonzero(face >= 0)
    pixels = np.column_stack([columns + x + 0.5, rows + y + 0.5, np.ones(len(rows))])
    rays = pixels @ np.linalg.inv(intrinsics).T
    seen, index = np.unique(face[rows, columns], return_inverse=True)
    a, b, c = (vertices[faces[seen, k]] for k in range(3))
    adjugate = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], 1)
    determinant = np.einsum("fk,fk->f", adjugate[:, 0], a)
    solution = np.einsum("nkc,nc->nk", adjugate[index], rays)
    total = solution @ np.ones(3)
    edge_on = total == 0
    total[edge_on] = 1
    depth[rows, columns] = np.where(edge_on, a[index, 2], rays[:, 2] * determinant[index] / total)
    weights[rows, columns] = np.clip(solution / total[:, None], 0, 1)
    return depth, weights
