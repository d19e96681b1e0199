import numpy as np
import torch
from scipy.spatial.transform import Rotation

from deformer_core.geometry.procrustes import align_rotation, similarity_align
from deformer_core.geometry.rotations import (
    rotation_angle,
    rotation_between,
    rotation_from_6d,
    rotation_from_axis_angle,
    rotation_from_quaternion,
)


def test_axis_angle_equals_scipy(rng: np.random.Generator) -> None:
    axis_angle = np.concatenate([rng.normal(0, 1.5, (20, 3)), rng.normal(0, 1e-6, (5, 3)), np.zeros((1, 3))])
    ours = rotation_from_axis_angle(torch.tensor(axis_angle)).numpy()
    np.testing.assert_allclose(ours, Rotation.from_rotvec(axis_angle).as_matrix(), atol=1e-12)


def test_axis_angle_has_gradients_everywhere() -> None:
    values = torch.tensor([[0.0, 0, 0], [1e-7, 0, 0], [0.3, -1, 0.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation_from_axis_angle, values)


def test_six_numbers_make_a_rotation_and_keep_one(rng: np.random.Generator) -> None:
    raw = rotation_from_6d(torch.tensor(rng.normal(size=(50, 6))))
    torch.testing.assert_close(raw @ raw.mT, torch.eye(3, dtype=torch.float64).expand_as(raw))
    torch.testing.assert_close(torch.det(raw), torch.ones(50, dtype=torch.float64))
    columns = torch.cat([raw[..., 0], raw[..., 1]], -1)
    torch.testing.assert_close(rotation_from_6d(columns), raw)


def test_rotation_between_takes_one_direction_to_the_other(rng: np.random.Generator) -> None:
    a, b = torch.tensor(rng.normal(size=(2, 30, 3)))
    turned = (rotation_between(a, b) @ a[..., None])[..., 0]
    torch.testing.assert_close(turned / turned.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True))


def test_rotation_angle_equals_scipy(rng: np.random.Generator) -> None:
    rotations = Rotation.random(30, random_state=int(rng.integers(1 << 30)))
    np.testing.assert_allclose(rotation_angle(torch.tensor(rotations.as_matrix())), rotations.magnitude(), atol=1e-7)


def test_similarity_align_undoes_a_similarity(rng: np.random.Generator) -> None:
    source = rng.normal(size=(8, 15, 3))
    rotation = Rotation.random(8, random_state=1).as_matrix()
    target = 0.3 * source @ rotation.swapaxes(1, 2) + [1.0, -2, 0.5]
    np.testing.assert_allclose(similarity_align(source, target), target, atol=1e-12)


def test_alignment_equals_scipy_and_never_mirrors(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 12, 3))
    mirrored = a * [-1, 1, 1]
    for target in (b, mirrored):
        rotation, _ = align_rotation(target.T @ a)
        expected = Rotation.align_vectors(target, a)[0].as_matrix()
        np.testing.assert_allclose(rotation, expected, atol=1e-9)
        np.testing.assert_allclose(np.linalg.det(rotation), 1)


def test_a_source_without_extent_goes_to_the_mean(rng: np.random.Generator) -> None:
    target = rng.normal(size=(1, 6, 3))
    aligned = similarity_align(np.ones((1, 6, 3)), target)
    np.testing.assert_allclose(aligned, np.broadcast_to(target.mean(1), target.shape[1:])[None])


def test_quaternion_equals_scipy(rng: np.random.Generator) -> None:
    quaternions = rng.normal(size=(30, 4))
    expected = Rotation.from_quat(quaternions[:, [1, 2, 3, 0]]).as_matrix()
    np.testing.assert_allclose(rotation_from_quaternion(torch.tensor(quaternions)), expected, atol=1e-12)
