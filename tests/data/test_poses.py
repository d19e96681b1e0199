import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.mocap import PoseBank, load_pose_bank, remove_heading, yaw
from deformer_core.data.synthetic.poses import PoseConfig, PoseSampler, mirror_pose
from deformer_core.errors import InputError


def joints_of(body: BodyTopology, rotations: np.ndarray) -> dict[str, np.ndarray]:
    model = ParametricBody(body)
    posed = model(torch.tensor(rotations, dtype=torch.float32), torch.zeros(len(rotations), model.n_shape))
    return dict(zip(body.joint_names, posed["joints"].numpy().swapaxes(0, 1)))


def knee_bend(joints: dict[str, np.ndarray], side: str) -> np.ndarray:
    """Degrees, positive when the shin goes behind the thigh as a knee can."""
    thigh = joints[f"{side}_knee"] - joints[f"{side}_hip"]
    shin = joints[f"{side}_ankle"] - joints[f"{side}_knee"]
    across = joints["left_hip"] - joints["right_hip"]
    axis = across / np.linalg.norm(across, axis=1, keepdims=True)
    return np.degrees(
        np.arctan2(np.einsum("ni,ni->n", np.cross(thigh, shin), axis), np.einsum("ni,ni->n", thigh, shin))
    )


def test_same_generator_same_poses(body: BodyTopology, seed: int) -> None:
    sampler = PoseSampler(body)
    first, second = (sampler.sample(np.random.default_rng(seed), 40) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert first[2] == second[2]


def test_drawn_poses_are_rotations_and_human(body: BodyTopology, rng: np.random.Generator) -> None:
    rotations, shape, kinds = PoseSampler(body).sample(rng, 600)
    identity = np.broadcast_to(np.eye(3), rotations.shape)
    np.testing.assert_allclose(rotations @ rotations.swapaxes(-1, -2), identity, atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-5)
    assert np.abs(shape).max() < 8
    joints = joints_of(body, rotations)
    bend = np.concatenate([knee_bend(joints, "left"), knee_bend(joints, "right")])
    assert np.percentile(bend, 2) > -40  # knees do not fold forwards
    standing = np.array([kind == "stand" for kind in kinds])
    upright = joints["nose"][standing, 1] < joints["left_ankle"][standing, 1] - 1.0
    assert upright.mean() > 0.9


def test_mirroring_swaps_the_sides(body: BodyTopology, rng: np.random.Generator) -> None:
    rotations = PoseSampler(body).sample(rng, 12)[0]
    joints, mirrored = joints_of(body, rotations), joints_of(body, mirror_pose(rotations, body.rig.mirror))
    for name, other in zip(body.joint_names, body.joint_mirror):
        expected = joints[body.joint_names[other]] * [-1, 1, 1]
        np.testing.assert_allclose(mirrored[name], expected, atol=0.02)  # the mesh is symmetric to a centimetre


def test_heading_is_removed(rng: np.random.Generator, body: BodyTopology) -> None:
    rotations = PoseSampler(body).sample(rng, 50)[0].astype(np.float64)
    turned = rotations.copy()
    turned[:, 0] = yaw(rng.uniform(-3, 3, 50)) @ rotations[:, 0]
    np.testing.assert_allclose(remove_heading(turned), remove_heading(rotations), atol=1e-6)


def test_recordings_retarget_to_people(body: BodyTopology, mocap_folder: Path) -> None:
    bank = load_pose_bank(mocap_folder, body, every=40)
    walking = np.array(["walking" in name for name in bank.clips])[bank.clip]
    joints = joints_of(body, bank.rotations[walking])
    bend = np.concatenate([knee_bend(joints, "left"), knee_bend(joints, "right")])
    assert np.percentile(bend, 1) > -10 and bend.mean() > 10  # a walk bends knees, backwards only
    assert np.percentile(joints["nose"][:, 1], 95) < -0.5  # almost always upright: y points down
    # Feet swing to opposite sides: the ankles' depths are anti-correlated over a walk.
    depth = np.stack([joints["left_ankle"][:, 2], joints["right_ankle"][:, 2]])
    assert np.corrcoef(depth)[0, 1] < -0.3


def test_held_out_clips_are_never_trained_on(body: BodyTopology) -> None:
    clips = ("test_a", "train_b", "sit")
    identity = np.tile(np.eye(3, dtype=np.float32), (30, len(body.rig.bone_names), 1, 1))
    bank = PoseBank(identity, np.repeat(np.arange(3, dtype=np.int32), 10), clips)
    train, held_out = bank.split(held_out=False), bank.split(held_out=True)
    assert set(train.clip) == {1, 2} and set(held_out.clip) == {0}


def test_weights_without_recordings() -> None:
    weights = PoseConfig().weights(has_recordings=False)
    assert weights[-1] == 0 and np.isclose(weights.sum(), 1)


def humanoid_frame(**angles: float) -> list[float]:
    """A frame of pybullet's humanoid, upright at rest but for some hinges, in degrees; heading anywhere."""
    still = [1.0, 0, 0, 0]
    hinge = {name: np.radians(angles.get(name, 0.0)) for name in ("rk", "re", "lk", "le")}
    heading = [np.cos(0.4), 0, np.sin(0.4), 0]
    return [0.03, 0, 0.9, 0, *heading, *still * 2, *still, hinge["rk"], *still * 2, hinge["re"],
            *still, hinge["lk"], *still * 2, hinge["le"]]  # fmt: skip


def test_humanoid_clips(body: BodyTopology, tmp_path: Path) -> None:
    frames = [humanoid_frame(), humanoid_frame(rk=-80), humanoid_frame(le=90)]
    (tmp_path / "humanoid3d_test.txt").write_text(json.dumps({"Loop": "wrap", "Frames": frames}))
    bank = load_pose_bank(tmp_path, body, every=4)
    assert bank.clips == ("humanoid3d_test",) and len(bank.rotations) == 3
    joints = joints_of(body, bank.rotations)
    down = joints["left_wrist"][0] - joints["left_shoulder"][0]
    assert down[1] > 0.9 * np.linalg.norm(down)  # arms hang
    assert joints["nose"][0, 2] < -0.05 and joints["left_shoulder"][0, 0] > 0.1  # towards the camera
    np.testing.assert_allclose(knee_bend(joints, "right"), [0, 80, 0], atol=8)
    forward = joints["left_wrist"][2] - joints["left_elbow"][2]
    assert forward[2] < -0.8 * np.linalg.norm(forward)  # an elbow bends to the front


def test_other_files_are_no_humanoid_clips(body: BodyTopology, tmp_path: Path) -> None:
    for text in ("walk", "{}", '{"Frames": [[1, 2, 3]]}'):
        (tmp_path / "humanoid3d_x.txt").write_text(text)
        with pytest.raises(InputError, match="humanoid3d_x.txt"):
            load_pose_bank(tmp_path, body)
