"""The rasteriser against rays cast at triangles one by one."""


import numpy as np
import pytest

from deformer_core.view import raster
from deformer_core.view.raster import render, vertex_normals

SIZE = (48, 32)
INTRINSICS = np.array([[40.0, 0, 23.0], [0, 44.0, 17.0], [0, 0, 1]])


def cast_rays(vertices, faces):
    """Depth and nearest face of every pixel by Moller and Trumbore's intersection, and the margin to the edges."""
    width, height = SIZE
    depth, nearest = np.full((height, width), np.inf), np.full((height, width), -1)
    margin = np.full((height, width), np.inf)
    for row in range(height):
        for column in range(width):
            ray = np.linalg.solve(INTRINSICS, [column + 0.5, row + 0.5, 1])
            for index, (a, b, c) in enumerate(vertices[faces]):
                normal = np.cross(ray, c - a)
                determinant = (b - a) @ normal
                u = (-a @ normal) / determinant
                side = np.cross(-a, b - a)
                v, t = ray @ side / determinant, (c - a) @ side / determinant
                margin[row, column] = min(margin[row, column], abs(u), abs(v), abs(1 - u - v))
                if min(u, v, 1 - u - v) >= 0 and t < depth[row, column]:
                    depth[row, column], nearest[row, column] = t, index
    return depth, nearest, margin


def full(result, name, empty):
    """One of the raster's arrays in the whole picture."""
    picture = np.full((SIZE[1], SIZE[0]), empty, getattr(result, name).dtype)
    height, width = result.face.shape
    picture[result.y : result.y + height, result.x : result.x + width] = getattr(result, name)
    return picture


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_cast_rays(seed):
    print("seed", seed)
    random = np.random.default_rng(seed)
    vertices = random.normal(0, 1, (24, 3)) * (2, 1.4, 0.8) + (0, 0, 3.5)
    vertices[:, 2] = np.maximum(vertices[:, 2], 0.5)
    faces = np.arange(24).reshape(8, 3)
    result = render(vertices, faces, INTRINSICS, SIZE)
    depth, nearest, margin = cast_rays(vertices, faces)
    clear = margin > 1e-6  # on an edge either answer is right
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(full(result, "face", -1)[clear], nearest[clear])
    seen = clear & (nearest >= 0)
    np.testing.assert_allclose(full(result, "depth", np.inf)[seen], depth[seen], rtol=1e-5)


def test_interpolation_recovers_the_points():
    """Interpolating the vertices themselves gives the points that the pixels' rays hit."""
    random = np.random.default_rng(7)
    vertices = random.normal(0, 1, (30, 3)) + (0, 0, 4)
    faces = np.arange(30).reshape(10, 3)
    result = render(vertices, faces, INTRINSICS, SIZE)
    rows, columns = np.nonzero(result.face >= 0)
    points = result.interpolate(vertices, faces)[rows, columns]
    pixels = points @ INTRINSICS.T
    np.testing.assert_allclose(pixels[:, 0] / pixels[:, 2], columns + result.x + 0.5, atol=1e-3)
    np.testing.assert_allclose(pixels[:, 1] / pixels[:, 2], rows + result.y + 0.5, atol=1e-3)
    np.testing.assert_allclose(points[:, 2], result.depth[rows, columns], rtol=1e-5)


def test_neighbours_leave_no_gap_and_no_overlap():
    """A plane cut into many triangles covers every pixel it should exactly once, whatever the cut."""
    random = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(np.linspace(-2, 2, 9), np.linspace(-2, 2, 9), indexing="ij"), -1).reshape(-1, 2)
    grid[np.abs(grid).max(1) < 2] += random.uniform(-0.2, 0.2, ((np.abs(grid).max(1) < 2).sum(), 2))
    vertices = np.column_stack([grid, np.full(len(grid), 2.0)])
    index = np.arange(81).reshape(9, 9)
    quads = np.stack([index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]], -1).reshape(-1, 4)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    together = render(vertices, faces, INTRINSICS, SIZE)
    assert (together.face >= 0).all() and together.face.shape == SIZE[::-1]
    single = [(render(vertices, face[None], INTRINSICS, SIZE).face >= 0).sum() for face in faces]
    assert sum(single) == SIZE[0] * SIZE[1]


def test_order_and_chunks_do_not_matter(monkeypatch):
    random = np.random.default_rng(3)
    vertices = random.normal(0, 1, (60, 3)) + (0, 0, 4)
    faces = np.arange(60).reshape(20, 3)
    order = random.permutation(20)
    first = render(vertices, faces, INTRINSICS, SIZE)
    monkeypatch.setattr(raster, "MAX_FRAGMENTS", 100)
    second = render(vertices, faces[order], INTRINSICS, SIZE)
    np.testing.assert_array_equal(first.face, np.where(second.face >= 0, order[second.face], -1))
    np.testing.assert_array_equal(first.depth, second.depth)


@pytest.mark.parametrize("z", [-2.0, 0.0, raster.NEAR])
def test_nothing_behind_the_camera(z):
    vertices = np.array([[-1, -1, z], [1, -1, 2], [0, 1, 2.0]])
    assert not (render(vertices, np.array([[0, 1, 2]]), INTRINSICS, SIZE).face >= 0).any()


def test_beside_the_picture_and_degenerate():
    beside = np.array([[50, 0, 2], [51, 0, 2], [50, 1, 2.0]])
    line = np.array([[0, 0, 2], [0, 0, 2], [1, 1, 2.0]])
    for vertices in (beside, line):
        assert not (render(vertices, np.array([[0, 1, 2]]), INTRINSICS, SIZE).face >= 0).any()


def test_normals_of_a_sphere_point_outwards():
    random = np.random.default_rng(5)
    from scipy.spatial import ConvexHull

    points = random.normal(size=(400, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    hull = ConvexHull(points)
    faces = hull.simplices.copy()
    inward = np.einsum(
        "fk,fk->f", np.cross(*(points[faces[:, k]] - points[faces[:, 0]] for k in (1, 2))), points[faces[:, 0]]
    )
    faces[inward < 0] = faces[inward < 0][:, [0, 2, 1]]
    normals = vertex_normals(points, faces)
    assert np.einsum("vk,vk->v", normals, points).min() > 0.97
