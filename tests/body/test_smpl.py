from pathlib import Path

import numpy as np
import pytest
import torch
from made_smpl import PARENTS, MadeSmpl

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.scap import build_scap, joint_links
from deformer_core.body.smpl import SMPL_BONES, rig_rotations
from deformer_core.body.topology import COCO_23, COCO_23_PARENTS, LEVELS, PART_NAMES, BodyTopology
from deformer_core.geometry.rotations import rotation_from_axis_angle


def smpl_forward(made: MadeSmpl, pose: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """The paper's equations, vertex by vertex in float64. pose: (24, 3); betas: (10,). Returns (6890, 3)."""
    rotations = [np.eye(3)] * 24
    for bone, vector in enumerate(pose):
        angle = np.linalg.norm(vector)
        x, y, z = vector / angle
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        rotations[bone] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    shaped = made.vertices + made.shape_basis @ betas
    joints = made.bone_regressor @ shaped
    bends = np.concatenate([(rotation - np.eye(3)).ravel() for rotation in rotations[1:]])
    rest = shaped + made.pose_basis @ bends
    world: list[np.ndarray] = []
    for bone, parent in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3] = rotations[bone]
        local[:3, 3] = joints[bone] - (joints[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    posed = np.zeros_like(rest)
    for bone in range(24):
        moved = (rest - joints[bone]) @ world[bone][:3, :3].T + world[bone][:3, 3]
        posed += made.weights[:, bone, None] * moved
    return posed


def random_people(rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(rng.normal(0, 0.4, (count, 72))), torch.tensor(rng.normal(0, 1, (count, 10))).float()


def test_levels_joints_and_rig(smpl: BodyTopology, body: BodyTopology) -> None:
    assert [len(smpl.levels[name].vertices) for name in LEVELS] == [431, 1723, 6890]
    assert smpl.joint_names == COCO_23 == body.joint_names
    assert smpl.joint_parents == COCO_23_PARENTS == body.joint_parents
    assert smpl.part_names == PART_NAMES == body.part_names
    assert smpl.rig.bone_names == SMPL_BONES and smpl.rig.bone_parents == PARENTS
    assert smpl.rig.shape_samples.shape[1] == 10
    for level in smpl.levels.values():
        np.testing.assert_allclose(level.skin_weights.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(level.joint_regressor.weights.sum(1), 1, atol=1e-5)
        assert level.faces.max() == len(level.vertices) - 1
        triangles = level.vertices[level.faces].astype(np.float64)
        assert np.einsum("fi,fi->f", triangles[:, 0], np.cross(triangles[:, 1], triangles[:, 2])).sum() > 0
        strongest = np.take_along_axis(level.skin_indices, level.skin_weights.argmax(1)[:, None], 1)[:, 0]
        for side in ("left", "right"):
            of_bones = np.char.startswith(np.array(SMPL_BONES)[strongest], side)
            of_parts = np.char.startswith(np.array(PART_NAMES)[level.parts], side)
            collar = np.char.endswith(np.array(SMPL_BONES)[strongest], "collar")
            np.testing.assert_array_equal(of_parts, of_bones & ~collar)


def test_mirror_tables(smpl: BodyTopology) -> None:
    for names, table in ((smpl.joint_names, smpl.joint_mirror), (smpl.rig.bone_names, smpl.rig.mirror)):
        for index, other in enumerate(table):
            assert table[other] == index
            assert names[other].replace("left", "right") == names[index].replace("left", "right")
    heads = smpl.rig.bone_heads
    np.testing.assert_allclose(heads[smpl.rig.mirror] * [-1, 1, 1], heads, atol=1e-6)


def test_template_faces_the_camera_upright_and_centred(smpl: BodyTopology) -> None:
    for level in smpl.levels.values():
        joints = dict(zip(smpl.joint_names, level.joint_regressor.apply(level.vertices)))
        assert joints["nose"][1] < joints["left_hip"][1] < joints["left_ankle"][1]  # y points down
        for joint in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "big_toe", "heel"):
            assert joints[f"left_{joint}"][0] > joints[f"right_{joint}"][0]  # seen from the front
        assert joints["nose"][2] < joints["left_ear"][2] and joints["left_big_toe"][2] < joints["left_heel"][2]
        np.testing.assert_allclose((joints["left_hip"] + joints["right_hip"]) / 2, 0, atol=3e-3)


def test_posing_equals_smpl_written_out(smpl: BodyTopology, made: MadeSmpl, rng: np.random.Generator) -> None:
    pose, betas = random_people(rng, 2)
    posed = ParametricBody(smpl, LEVELS)(rig_rotations(pose).float(), betas)
    hips = smpl.levels["full"].joint_regressor.dense()[list(smpl.hips)].mean(0)
    for person in range(2):
        expected = smpl_forward(made, pose[person].reshape(24, 3).numpy(), betas[person].double().numpy())
        expected = expected - hips @ expected
        shift = hips @ posed["full"][person].numpy()  # the coarse level's hips are the origin
        assert np.linalg.norm(shift) < 3e-3
        for name in LEVELS:
            np.testing.assert_allclose(posed[name][person] - shift, expected[made.selection[name]], atol=1e-5)


def test_identity_faces_the_camera(smpl: BodyTopology) -> None:
    """SMPL's root turned half about x stands before a camera as our template does."""
    pose = torch.zeros(72, dtype=torch.float64)
    pose[0] = torch.pi
    torch.testing.assert_close(rig_rotations(pose), torch.eye(3, dtype=torch.float64).expand(24, 3, 3))


def test_posing_gradient(smpl: BodyTopology, rng: np.random.Generator) -> None:
    model = ParametricBody(smpl).double()
    axis_angles = torch.tensor(rng.normal(0, 0.4, (1, 24, 3)), requires_grad=True)
    shape = torch.tensor(rng.normal(0, 1, (1, 10)), requires_grad=True)

    def summary(axis_angles: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
        return model(rotation_from_axis_angle(axis_angles), shape)["joints"][:, ::11]

    assert torch.autograd.gradcheck(summary, (axis_angles, shape))


def test_levels_are_one_body(smpl: BodyTopology, rng: np.random.Generator) -> None:
    """The fitted joints lie where the full level's do, on bodies that they were not fitted on."""
    pose, betas = random_people(rng, 8)
    posed = ParametricBody(smpl, LEVELS)(rig_rotations(pose).float(), betas)
    joints = smpl.levels["full"].joint_regressor.apply(posed["full"])
    for name in ("middle", "coarse"):
        error = (smpl.levels[name].joint_regressor.apply(posed[name]) - joints).norm(dim=-1)
        print(name, f"{1e3 * error.mean():.2f} mm, worst {1e3 * error.max():.1f}")
        assert error.mean() < 4e-3
        assert np.square(smpl.levels[name].joint_regressor.weights).sum(1).max() < 2  # no noise is blown up


def test_upsampling_moves_with_the_body(smpl: BodyTopology, made: MadeSmpl, rng: np.random.Generator) -> None:
    """Rows of the file that do not sum to 1 are repaired with the same vertices; the others are the file's."""
    for target, source in (("middle", "coarse"), ("full", "middle")):
        blend, given = smpl.upsample[target], made.upsample[target].toarray()
        affine = np.abs(given.sum(1) - 1) < 1e-5
        assert blend.indices.shape[1] == 3 and 0 < (~affine).sum() < len(affine) / 10
        np.testing.assert_allclose(blend.dense()[affine], given[affine], atol=1e-5)
        np.testing.assert_array_equal((blend.dense() != 0) & (given == 0), False)
        vertices = smpl.levels[source].vertices
        raised = blend.apply(vertices)
        shift = rng.normal(0, 1, 3).astype(np.float32)
        np.testing.assert_allclose(blend.apply(vertices + shift), raised + shift, atol=1e-5)
        error = np.linalg.norm(raised - smpl.levels[target].vertices, axis=1)
        assert error[~affine].max() < 0.1 and error.mean() < 0.02


def test_further_regressors(made: MadeSmpl, smpl: BodyTopology) -> None:
    regressor = smpl.extra_regressors["h36m"]
    np.testing.assert_allclose(regressor.dense(), made.h36m_regressor, atol=1e-6)
    joints = regressor.apply(smpl.levels["full"].vertices)
    assert (joints[1:4, 0] < 0).all() and (joints[4:7, 0] > 0).all()  # the right leg first, as in METRO's file
    assert (joints[11:14, 0] > 0).all() and (joints[14:17, 0] < 0).all()
    heads = smpl.extra_regressors["smpl24"].apply(smpl.levels["full"].vertices)
    np.testing.assert_allclose(heads, smpl.rig.bone_heads, atol=1e-5)


@pytest.mark.parametrize("level", ["coarse", "full"])
def test_scap(smpl: BodyTopology, level: str) -> None:
    links = joint_links(smpl, level)
    assert links.toarray().any(0).all()
    scap = build_scap(smpl.levels[level].faces, len(smpl.levels[level].vertices), links)
    assert scap.n_tokens == 32 + len(smpl.levels[level].vertices)
    edges = smpl.levels[level].edges + 32
    pairs = scap.token_pairs()
    known = set(map(tuple, pairs[(pairs >= 32).all(1)].tolist()))
    assert all(tuple(edge) in known for edge in edges.tolist())


def test_posing_equals_smplx(smpl: BodyTopology, folder: Path, rng: np.random.Generator) -> None:
    """Where smplx is installed, which is free for research alone: another implementation of SMPL on the same file."""
    smplx = pytest.importorskip("smplx", reason="smplx is a cross-check alone")
    with np.load(folder / "SMPL_NEUTRAL.npz") as archive:
        model = smplx.SMPL("", data_struct=smplx.utils.Struct(**archive))
    pose, betas = random_people(rng, 1)
    theirs = model(global_orient=pose[:, :3].float(), body_pose=pose[:, 3:].float(), betas=betas).vertices.detach()
    ours = ParametricBody(smpl, ("full",))(rig_rotations(pose).float(), betas)["full"]
    torch.testing.assert_close(ours - ours.mean(1), theirs - theirs.mean(1), atol=1e-5, rtol=0)
