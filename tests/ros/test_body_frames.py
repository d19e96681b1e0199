"""Bones measured on posed bodies, whose true rotations are known, and the tree of transforms made of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import LEVELS, BodyTopology
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.errors import InputError
from deformer_core.geometry.rotations import rotation_angle, rotation_from_axis_angle
from deformer_ros.body_frames import TEMPLATE_TO_BODY, BodyFrames, BonePoses, frame_name, quaternions


def random_turn(rng: np.random.Generator, count: int) -> np.ndarray:
    return rotation_from_axis_angle(torch.from_numpy(rng.normal(0, 1.5, (count, 3)))).numpy()


def pose(body: BodyTopology, rng: np.random.Generator, count: int, level: str) -> tuple[np.ndarray, BonePoses]:
    """People of all shapes in the training poses, turned anyhow: vertices, and what their bones really do.

    The heads are relative to the root's.
    """
    local, shape, _ = PoseSampler(body).sample(rng, count)
    local[:, 0] = random_turn(rng, count).astype(np.float32) @ local[:, 0]
    posed = ParametricBody(body, (level,))(torch.from_numpy(local), torch.from_numpy(shape))
    heads = body.rig.bone_heads + np.einsum("ps,src->prc", shape, body.rig.head_basis)
    rotations, places = np.zeros_like(local), np.zeros_like(heads)
    for bone, parent in enumerate(body.rig.bone_parents):
        rotations[:, bone] = local[:, bone] if parent < 0 else rotations[:, parent] @ local[:, bone]
        if parent >= 0:
            offset = (heads[:, bone] - heads[:, parent])[..., None]
            places[:, bone] = places[:, parent] + (rotations[:, parent] @ offset)[..., 0]
    return posed[level].numpy(), BonePoses(rotations, places)


def errors(measured: BonePoses, true: BonePoses) -> np.ndarray:
    """(P, R) degrees."""
    difference = torch.from_numpy(measured.rotations @ true.rotations.swapaxes(2, 3))
    return np.degrees(rotation_angle(difference).numpy())


@pytest.mark.parametrize("level", LEVELS)
def test_bones_of_posed_bodies(level: str, body: BodyTopology, rng: np.random.Generator) -> None:
    vertices, true = pose(body, rng, 60, level)
    measured = BodyFrames(body, level)(vertices)
    error = errors(measured, true)
    distance = np.linalg.norm(measured.heads - measured.heads[:, :1] - true.heads, axis=-1)[:, 1:]
    print(f"{level}: {error.mean():.2f} degrees (p95 {np.percentile(error, 95):.2f}), {1e3 * distance.mean():.1f} mm")
    assert error.mean() < 2.5 and np.percentile(error, 95) < 9 and error.max() < 45
    assert distance.mean() < 0.02


def test_noise_of_the_vertices_stays_noise(body: BodyTopology, rng: np.random.Generator) -> None:
    vertices, true = pose(body, rng, 60, "middle")
    frames = BodyFrames(body, "middle")
    noisy = vertices + rng.normal(0, 0.01, vertices.shape)
    assert errors(frames(noisy), true).mean() < 2 * errors(frames(vertices), true).mean()


def test_the_template_is_at_rest(body: BodyTopology) -> None:
    measured = BodyFrames(body, "full")(body.levels["full"].vertices[None])
    still = BonePoses(np.broadcast_to(np.eye(3), measured.rotations.shape), measured.heads)
    assert errors(measured, still).max() < 0.1
    np.testing.assert_allclose(measured.heads[0], body.rig.bone_heads, atol=1e-3)
    assert np.degrees(2 * np.arccos(measured.quaternions()[..., 3].min().clip(-1, 1))) < 0.1


def test_turning_a_body_turns_its_bones(body: BodyTopology, rng: np.random.Generator) -> None:
    """Also: one body alone is measured as it is among others."""
    vertices, _ = pose(body, rng, 4, "coarse")
    frames, turn = BodyFrames(body, "coarse"), random_turn(rng, 1)[0]
    before, after = frames(vertices), frames(vertices @ turn.T)
    assert errors(after, BonePoses(turn @ before.rotations, before.heads)).max() < 0.5
    np.testing.assert_allclose(after.heads, before.heads @ turn.T, atol=2e-3)
    np.testing.assert_allclose(frames(vertices[2:3]).rotations[0], before.rotations[2], atol=1e-6)


def test_all_is_rotations_whatever_the_vertices(body: BodyTopology, rng: np.random.Generator) -> None:
    level = body.levels["coarse"]
    odd = np.stack(
        [np.zeros_like(level.vertices), level.vertices * [1, 1, 0], level.vertices * -1, level.vertices * 50]
    )
    measured = BodyFrames(body, "coarse")(np.concatenate([odd, rng.normal(size=(2, *level.vertices.shape))]))
    products = measured.rotations @ measured.rotations.swapaxes(2, 3)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), products.shape), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(measured.rotations), 1, atol=1e-9)
    assert np.isfinite(measured.heads).all()
    np.testing.assert_allclose(np.linalg.norm(measured.quaternions(), axis=-1), 1, atol=1e-12)


def test_a_bone_without_skin_goes_with_its_neighbours(body: BodyTopology, rng: np.random.Generator) -> None:
    """Its vertices given to its parent, a forearm still turns with the smallest turn that leads to its hand."""
    bone = body.rig.bone_names.index("lowerarm01.L")
    parent, child = body.rig.bone_parents[bone], body.rig.bone_names.index("wrist.L")
    level = body.levels["coarse"]
    stripped = replace(level, skin_indices=np.where(level.skin_indices == bone, parent, level.skin_indices))
    frames = BodyFrames(replace(body, levels={"coarse": stripped}), "coarse")
    local = np.tile(np.eye(3, dtype=np.float32), (3, len(body.rig.bone_names), 1, 1))
    local[1:, 0] = random_turn(rng, 2)  # the whole body
    posed = ParametricBody(body)(torch.from_numpy(local), torch.zeros(3, body.rig.head_basis.shape[0]))
    measured = frames(posed["coarse"].numpy())
    assert errors(measured, BonePoses(np.repeat(local[:, :1], local.shape[1], 1), measured.heads)).max() < 0.5
    assert np.isfinite(measured.rotations[:, child]).all()


def test_vertices_that_are_not_finite_are_said(body: BodyTopology) -> None:
    vertices = np.full((1, *body.levels["coarse"].vertices.shape), np.nan)
    with pytest.raises(InputError, match="not finite"):
        BodyFrames(body, "coarse")(vertices)


def test_nobody(body: BodyTopology) -> None:
    frames = BodyFrames(body, "coarse")
    measured = frames(np.zeros((0, *body.levels["coarse"].vertices.shape)))
    positions, turns = frames.transforms(measured, np.zeros((0, 3)))
    assert measured.quaternions().shape == (0, 22, 4) and positions.shape == (0, 23, 3) and turns.shape == (0, 23, 4)


def test_transforms_lead_back_to_the_bones(body: BodyTopology, rng: np.random.Generator) -> None:
    """Chained from the camera down, as tf2 does, with rotations by the quaternion product."""
    frames, (vertices, _) = BodyFrames(body, "coarse"), pose(body, rng, 3, "coarse")
    places = rng.normal(0, 2, (3, 3))
    measured = frames(vertices)
    positions, turns = frames.transforms(measured, places)
    np.testing.assert_allclose(np.linalg.norm(turns, axis=-1), 1, atol=1e-12)
    chained_place, chained_axes = np.zeros_like(positions), np.zeros((*turns.shape[:2], 3, 3))
    for frame, parent in enumerate(frames.parents):
        axes = rotate_axes(turns[:, frame])
        assert parent < frame
        if parent < 0:
            chained_place[:, frame], chained_axes[:, frame] = positions[:, frame], axes
        else:
            step = (chained_axes[:, parent] @ positions[:, frame, :, None])[..., 0]
            chained_place[:, frame] = chained_place[:, parent] + step
            chained_axes[:, frame] = chained_axes[:, parent] @ axes
    np.testing.assert_allclose(chained_place[:, 1:], measured.heads + places[:, None], atol=1e-9)
    np.testing.assert_allclose(chained_axes[:, 1:], measured.rotations @ TEMPLATE_TO_BODY, atol=1e-9)
    np.testing.assert_allclose(chained_place[:, 0], places)


def rotate_axes(quaternion: np.ndarray) -> np.ndarray:
    """(P, 4) to (P, 3, 3), by v + 2 w (q x v) + 2 q x (q x v) of the unit vectors."""
    axis, w = quaternion[:, None, :3], quaternion[:, None, 3:]
    once = np.cross(axis, np.eye(3)[None])
    return (np.eye(3) + 2 * w * once + 2 * np.cross(axis, once)).swapaxes(1, 2)


def test_body_axes_are_rep_155(body: BodyTopology) -> None:
    """Facing the camera: x towards it, y to the person's left, which is the image's right, z up."""
    frames = BodyFrames(body, "full")
    vertices = body.levels["full"].vertices
    _, turns = frames.transforms(frames(vertices[None]), np.array([[0, 0, 3.0]]))
    axes = rotate_axes(turns[:, 0])[0]
    joints = dict(zip(body.joint_names, body.levels["full"].joint_regressor.apply(vertices)))
    assert (joints["nose"] - (joints["left_ear"] + joints["right_ear"]) / 2) @ axes[:, 0] > 0.05
    assert (joints["left_shoulder"] - joints["right_shoulder"]) @ axes[:, 1] > 0.2
    assert joints["nose"] @ axes[:, 2] > 0.4
    np.testing.assert_allclose(axes, TEMPLATE_TO_BODY, atol=2e-3)


def test_names(body: BodyTopology) -> None:
    names = BodyFrames(body, "coarse").names
    assert names[:5] == ("body", "pelvis", "left_hip", "left_knee", "left_ankle")
    assert len(set(names)) == len(names) == len(body.rig.bone_names) + 1
    assert frame_name("Odd-Bone.R") == "right_odd_bone"


def test_quaternions_against_scipy(rng: np.random.Generator) -> None:
    from scipy.spatial.transform import Rotation

    half_turns = Rotation.from_rotvec(np.pi * np.eye(3)).as_matrix()
    matrices = np.concatenate([Rotation.random(500, rng=rng).as_matrix(), half_turns, np.eye(3)[None]])
    ours, theirs = quaternions(matrices), Rotation.from_matrix(matrices).as_quat()
    assert (ours[:, 3] >= 0).all()
    np.testing.assert_allclose(np.abs((ours * theirs).sum(1)), 1, atol=1e-12)
