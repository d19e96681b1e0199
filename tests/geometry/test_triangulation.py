import numpy as np
import pytest

from deformer_core.geometry.triangulation import reproject, triangulate, triangulate_agreeing


@pytest.fixture
def cameras(rng: np.random.Generator) -> np.ndarray:
    """Four cameras on a circle of 4 m that look at the origin, world to camera."""
    matrices = []
    for angle in np.arange(4) * np.pi / 2 + rng.uniform(-0.3, 0.3, 4):
        forward = -np.array([np.cos(angle), np.sin(angle), 0])
        turn = np.stack([np.cross([0, 0, -1.0], forward), [0, 0, -1.0], forward])
        matrices.append(np.column_stack([turn, turn @ forward * 4]))
    return np.stack(matrices)


def test_exact_images_give_the_points_back(rng: np.random.Generator, cameras: np.ndarray) -> None:
    points = rng.uniform(-1, 1, (9, 3))
    weights = rng.uniform(0.2, 1, (4, 9))
    weights[2:, 4] = 0
    np.testing.assert_allclose(triangulate(reproject(points, cameras), cameras, weights), points, atol=1e-10)


def test_reprojection_by_loops(rng: np.random.Generator, cameras: np.ndarray) -> None:
    points = rng.uniform(-1, 1, (5, 3))
    for camera, row in zip(cameras, reproject(points, cameras)):
        for point, seen in zip(points, row):
            x, y, z = camera @ [*point, 1]
            np.testing.assert_allclose(seen, [x / z, y / z])
    behind = np.array([[100.0, 0, 0]])
    assert np.isnan(reproject(behind, cameras)).any(-1).any()


def test_noise_is_averaged_and_weights_count(rng: np.random.Generator, cameras: np.ndarray) -> None:
    points = rng.uniform(-1, 1, (200, 3))
    noise = rng.normal(0, 1, (4, 200, 2)) * np.array([0.001, 0.001, 0.001, 0.05])[:, None, None]
    seen = reproject(points, cameras) + noise
    plain = np.linalg.norm(triangulate(seen, cameras, np.ones((4, 200))) - points, axis=1).mean()
    trusting = np.repeat([[1.0], [1], [1], [0.02]], 200, 1)
    assert np.linalg.norm(triangulate(seen, cameras, trusting) - points, axis=1).mean() < plain / 5


def test_a_camera_that_is_wrong_is_left_out(rng: np.random.Generator, cameras: np.ndarray) -> None:
    points = rng.uniform(-1, 1, (6, 3))
    seen = reproject(points, cameras)
    seen[1, 2] += 0.3
    weights = np.ones((4, 6))
    weights[1:, 5] = 0
    found = triangulate_agreeing(seen, cameras, weights, 0.01)
    np.testing.assert_allclose(found.points[:5], points[:5], atol=1e-9)
    assert found.used[:, 2].tolist() == [True, False, True, True] and found.used[:, 0].all()
    assert np.isnan(found.points[5]).all() and np.isnan(found.error[5]) and not found.used[:, 5].any()


def test_cameras_that_disagree_give_nothing(rng: np.random.Generator, cameras: np.ndarray) -> None:
    two = cameras[:2]  # a quarter turn apart, both upright: their rays at different heights miss each other
    seen = reproject(rng.uniform(-0.5, 0.5, (3, 3)), two) + np.array([0, 0.5])[:, None, None] * [0.0, 1.0]
    assert np.isnan(triangulate_agreeing(seen, two, np.ones((2, 3)), 0.01).points).all()
