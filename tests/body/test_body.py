from pathlib import Path

import numpy as np
import pytest
import torch

from deformer_core.body.assets import load_body, read_body, write_body
from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import LEVELS, BodyTopology
from deformer_core.errors import InputError
from deformer_core.geometry.rotations import rotation_from_axis_angle


def random_pose(body: BodyTopology, rng: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    axis_angles = torch.tensor(rng.normal(0, 0.4, (count, len(body.rig.bone_names), 3)), dtype=torch.float32)
    shape = torch.from_numpy(body.rig.shape_samples[rng.integers(len(body.rig.shape_samples), size=count)])
    return rotation_from_axis_angle(axis_angles), shape


def test_levels_and_joints(body: BodyTopology) -> None:
    assert [len(body.levels[name].vertices) for name in LEVELS] == [615, 1229, 12272]
    assert len(body.joint_names) == 23 and body.joint_names[0] == "nose" and body.joint_names[11] == "left_hip"
    for level in body.levels.values():
        np.testing.assert_allclose(level.skin_weights.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(level.joint_regressor.weights.sum(1), 1, atol=1e-5)
        assert level.faces.max() == len(level.vertices) - 1


@pytest.mark.parametrize("name", LEVELS)
def test_meshes_are_closed_where_anny_is_and_face_outwards(body: BodyTopology, name: str) -> None:
    level = body.levels[name]
    triangles = level.vertices[level.faces].astype(np.float64)
    volume = np.einsum("fi,fi->f", triangles[:, 0], np.cross(triangles[:, 1], triangles[:, 2])).sum() / 6
    assert 0.03 < volume < 0.2  # cubic metres, positive only if the faces turn outwards
    assert len(level.edges) == len({tuple(edge) for edge in level.edges.tolist()})


def test_template_faces_the_camera_upright(body: BodyTopology) -> None:
    joints = dict(zip(body.joint_names, body.levels["full"].joint_regressor.apply(body.levels["full"].vertices)))
    assert joints["nose"][1] < joints["left_hip"][1] < joints["left_ankle"][1]  # y points down
    assert joints["left_shoulder"][0] > joints["right_shoulder"][0]  # seen from the front
    assert joints["nose"][2] < joints["left_ear"][2] and joints["left_big_toe"][2] < joints["left_heel"][2]
    np.testing.assert_allclose((joints["left_hip"] + joints["right_hip"]) / 2, 0, atol=3e-3)


def test_mirror_tables(body: BodyTopology) -> None:
    for names, table in ((body.joint_names, body.joint_mirror), (body.rig.bone_names, body.rig.mirror)):
        for index, other in enumerate(table):
            assert table[other] == index
            assert names[index].replace("left", "right").replace(".L", ".R") == names[other].replace(
                "left", "right"
            ).replace(".L", ".R")


def test_posing_equals_skinning_written_out(body: BodyTopology, rng: np.random.Generator) -> None:
    """One body, bone by bone and vertex by vertex in float64, against the batched module."""
    rotations, shape = random_pose(body, rng, 1)
    level, rig = body.levels["coarse"], body.rig
    coefficients = shape[0].numpy().astype(np.float64)
    heads = rig.bone_heads + np.einsum("s,src->rc", coefficients, rig.head_basis)
    rest = level.vertices + np.einsum("s,svc->vc", coefficients, level.shape_basis)
    transforms: list[np.ndarray] = []
    for bone, parent in enumerate(rig.bone_parents):
        about_head = np.eye(4)
        about_head[:3, :3] = rotations[0, bone].numpy()
        about_head[:3, 3] = heads[bone] - about_head[:3, :3] @ heads[bone]
        transforms.append(about_head if parent < 0 else transforms[parent] @ about_head)
    expected = np.array(
        [
            sum(w * (transforms[b] @ np.append(v, 1))[:3] for b, w in zip(bones, weights))
            for v, bones, weights in zip(rest, level.skin_indices, level.skin_weights)
        ]
    )
    joints = level.joint_regressor.apply(expected.astype(np.float32))
    expected -= (joints[body.hips[0]] + joints[body.hips[1]]) / 2
    posed = ParametricBody(body)(rotations, shape)
    np.testing.assert_allclose(posed["coarse"][0], expected, atol=2e-6)


def test_root_rotation_turns_the_whole_body(body: BodyTopology, rng: np.random.Generator) -> None:
    rotations, shape = random_pose(body, rng, 3)
    model = ParametricBody(body, ("coarse", "full"))
    turn = rotation_from_axis_angle(torch.tensor([0.3, 2.0, -0.4]))
    turned = rotations.clone()
    turned[:, 0] = turn @ rotations[:, 0]
    before, after = model(rotations, shape), model(turned, shape)
    for key in before:
        torch.testing.assert_close(after[key], before[key] @ turn.T, atol=3e-6, rtol=0)


def test_levels_are_one_body(body: BodyTopology, rng: np.random.Generator) -> None:
    """One pose gives all three levels; upsampling and every level's regressor agree to millimetres."""
    rotations, shape = random_pose(body, rng, 8)
    posed = ParametricBody(body, LEVELS)(rotations, shape)
    for source, target in (("coarse", "middle"), ("middle", "full")):
        error = (body.upsample[target].apply(posed[source]) - posed[target]).norm(dim=-1)
        assert error.mean() < 4e-3
    for name in LEVELS:
        joints = body.levels[name].joint_regressor.apply(posed[name])
        assert (joints - posed["joints"]).norm(dim=-1).mean() < 4e-3


def test_posing_gradient(body: BodyTopology, rng: np.random.Generator) -> None:
    model = ParametricBody(body).double()
    axis_angles = torch.tensor(rng.normal(0, 0.4, (1, model.n_bones, 3)), requires_grad=True)
    shape = torch.tensor(rng.normal(0, 1, (1, model.n_shape)), requires_grad=True)

    def summary(axis_angles: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
        return model(rotation_from_axis_angle(axis_angles), shape)["joints"][:, ::6]

    assert torch.autograd.gradcheck(summary, (axis_angles, shape))


def test_blend_dense_and_gather_agree(body: BodyTopology, rng: np.random.Generator) -> None:
    blend = body.upsample["middle"]
    values = rng.normal(size=(2, blend.n_input, 3)).astype(np.float32)
    np.testing.assert_allclose(blend.apply(values), blend.dense() @ values, atol=1e-5)
    np.testing.assert_allclose(blend.apply(torch.from_numpy(values)).numpy(), blend.apply(values), atol=1e-6)


def test_written_body_reads_back(body: BodyTopology, tmp_path: Path) -> None:
    write_body(body, tmp_path / "again.safetensors")
    again = read_body(tmp_path / "again.safetensors")
    assert again.content_hash == body.content_hash
    np.testing.assert_array_equal(again.levels["full"].vertices, body.levels["full"].vertices)


def test_bad_body_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no body 'nobody'"):
        load_body("nobody")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x00" * 64)
    with pytest.raises(InputError, match="broken.safetensors"):
        read_body(broken)


def test_posing_equals_anny(body: BodyTopology, rng: np.random.Generator) -> None:
    """Where anny is installed: the baked body, posed, is Anny's own to the shape space's error."""
    anny = pytest.importorskip("anny", reason="anny is needed for baking only")
    from training.bake_body import to_model_axes

    model = anny.Anny(topology="notoes", skinning_method="lbs").float()
    phenotypes = {label: torch.tensor([0.5]) for label in model.phenotype_labels} | {"age": torch.tensor([0.7])}
    pose = torch.eye(4).repeat(1, model.bone_count, 1, 1)
    rotations, _ = random_pose(body, rng, 1)
    rotations[:, 0] = torch.eye(3)
    axes = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # model axes to Anny's
    for bone, name in enumerate(body.rig.bone_names):
        pose[0, model.bone_labels.index(name), :3, :3] = axes @ rotations[0, bone] @ axes.T
    with torch.no_grad():
        theirs = model(pose_parameters=pose, phenotype_kwargs=phenotypes)
        rest = to_model_axes(theirs["rest_vertices"].numpy())[0]
    # The person's coefficients, by least squares on the unposed mesh.
    full = body.levels["full"]
    basis = full.shape_basis.reshape(len(full.shape_basis), -1).T
    shift = np.tile(np.eye(3), (len(full.vertices), 1))
    solved = np.linalg.lstsq(np.hstack([basis, shift]), (rest - full.vertices).ravel(), rcond=None)[0]
    shape = torch.tensor(solved[None, : basis.shape[1]], dtype=torch.float32)
    ours = ParametricBody(body, ("full",))(rotations, shape)["full"][0]
    expected = torch.from_numpy(to_model_axes(theirs["vertices"].numpy())[0])
    error = (ours - ours.mean(0) - (expected - expected.mean(0))).norm(dim=-1)
    assert error.mean() < 4e-3 and error.max() < 2e-2
