"""Placement against the crop's own projection: one camera, described in two ways."""

import numpy as np
import torch

from deformer_core.geometry.camera import project_crop
from deformer_core.runtime.placement import place, project


def random_scene(rng, batch=16):
    intrinsics = np.array([[rng.uniform(400, 2000), 0, 640], [0, rng.uniform(400, 2000), 360], [0, 0, 1]])
    box = np.column_stack([rng.uniform(-0.8, 0.8, (batch, 2)), rng.uniform(0.05, 0.4, batch)]).astype(np.float32)
    camera = np.column_stack([rng.uniform(0.5, 1.2, batch), rng.normal(0, 0.2, (batch, 2))]).astype(np.float32)
    joints = rng.normal(0, 0.4, (batch, 23, 3)).astype(np.float32)
    vertices = rng.normal(0, 0.4, (batch, 100, 3)).astype(np.float32)
    return intrinsics, box, camera, joints, vertices


def test_full_projection_is_the_crop_projection_in_pixels(rng):
    intrinsics, box, camera, joints, vertices = random_scene(rng)
    placed = place(vertices, joints, camera, box, intrinsics)
    tensors = [torch.from_numpy(array).double() for array in (joints, camera, box)]
    uv = project_crop(*tensors).numpy()
    directions = box[:, None, :2] + uv * box[:, None, 2:]
    pixels = directions * intrinsics.diagonal()[:2] + intrinsics[:2, 2]
    assert np.abs(pixels - placed.keypoints_2d).max() < 1e-3
    full = placed.joints.astype(float) + placed.translation[:, None]
    assert np.abs(project(full, intrinsics) - pixels).max() < 5e-3  # float32 metres


def test_shapes_are_kept(rng):
    """Placing turns a body: distances stay, and vertices and joints turn together."""
    intrinsics, box, camera, joints, vertices = random_scene(rng)
    placed = place(vertices, joints, camera, box, intrinsics)
    for before, after in ((vertices, placed.vertices), (joints, placed.joints)):
        np.testing.assert_allclose(np.linalg.norm(after, axis=2), np.linalg.norm(before, axis=2), rtol=1e-4)
    together = place(joints, joints, camera, box, intrinsics)
    np.testing.assert_allclose(together.vertices, together.joints, atol=1e-6)


def test_a_crop_in_the_middle_is_not_turned(rng):
    intrinsics, box, camera, joints, vertices = random_scene(rng)
    box[:, :2] = 0
    placed = place(vertices, joints, camera, box, intrinsics)
    np.testing.assert_allclose(placed.vertices, vertices, atol=1e-7)
    expected = np.column_stack([camera[:, 1:], 1 / (camera[:, 0] * box[:, 2])])
    np.testing.assert_allclose(placed.translation, expected, rtol=1e-6)
