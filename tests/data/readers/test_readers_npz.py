"""SPIN, HMR2 and HumanData: files written with the published names and shapes, by numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deformer_core.body.topology import BodyTopology
from deformer_core.data.readers import open_dataset
from deformer_core.errors import InputError
from tests.data.readers.drawn import UPRIGHT, Drawn, published

J24 = published(
    "R_Ankle R_Knee R_Hip L_Hip L_Knee L_Ankle R_Wrist R_Elbow R_Shoulder L_Shoulder L_Elbow L_Wrist Neck Top_of_Head "
    "Pelvis Thorax Spine Jaw Head Nose L_Eye R_Eye L_Ear R_Ear"
)
OPENPOSE = published(
    "Nose Neck R_Shoulder R_Elbow R_Wrist L_Shoulder L_Elbow L_Wrist Pelvis R_Hip R_Knee R_Ankle L_Hip L_Knee L_Ankle "
    "R_Eye L_Eye R_Ear L_Ear L_Big_Toe L_Small_Toe L_Heel R_Big_Toe R_Small_Toe R_Heel"
)
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def people(rng: np.random.Generator, tmp_path: Path) -> list[Drawn]:
    return [Drawn(rng, tmp_path, f"images/{number}.png") for number in range(3)]


def write_spin(people: list[Drawn], path: Path, edit: Edit = lambda arrays: None) -> Path:
    arrays: dict[str, Any] = {
        "imgname": np.array([person.name for person in people]),
        "center": np.array([[320.0, 240.0]] * len(people)),
        "scale": np.array([1.5] * len(people)),
        "part": np.stack([person.keypoints(J24) for person in people]),
        "openpose": np.stack([person.keypoints(OPENPOSE, 0.7) for person in people]),
        "S": np.stack([person.points4(J24, person.points(["pelvis"])[0]) for person in people]),
        "pose": np.stack([person.pose.ravel() for person in people]),
        "shape": np.stack([person.betas for person in people]),
        "has_smpl": np.array([1, 1, 0]),
        "gender": np.array(["m", "f", "n"]),
    }
    arrays["part"][0, 11] = 0  # its left wrist is OpenPose's alone
    edit(arrays)
    np.savez(path, **arrays)
    return path


def test_spin(people: list[Drawn], body: BodyTopology, tmp_path: Path) -> None:
    path = write_spin(people, tmp_path / "spin.npz")
    read = open_dataset({"reader": "spin", "path": str(path)}, body)
    assert len(read) == 3 and [person.body for person in read] == ["smpl_male", "smpl_female", ""]
    for drawn, person in zip(people, read):
        drawn.check_2d(person, body)
        drawn.check_3d(person, body)
        assert person.side == 300 and person.center == (320, 240) and person.translation is None
        assert set(person.named_joints) == {"neck", "top_of_head", "pelvis", "thorax", "spine", "jaw", "head"}
        assert person.uv_weight[body.joint_names.index("left_heel")] == np.float32(0.7)
        assert (person.intrinsics.width, person.intrinsics.height) == (640, 480)
    people[0].check_smpl(read[0])
    assert read[0].uv_weight[body.joint_names.index("left_wrist")] == np.float32(0.7)
    assert read[-1].rotations is None and len(read[:2]) == 2


def test_an_upright_body_has_no_rotation(people: list[Drawn], body: BodyTopology, tmp_path: Path) -> None:
    def stand(arrays: dict[str, Any]) -> None:
        arrays["pose"][:] = 0
        arrays["pose"][:, :3] = UPRIGHT

    rotations = open_dataset(f"spin:{write_spin(people, tmp_path / 'a.npz', stand)}", body)[0].rotations
    np.testing.assert_allclose(rotations, np.tile(np.eye(3), (24, 1, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda arrays: arrays.pop("center"), "record 1 has no field 'center'"),
        (lambda arrays: arrays.update(part=arrays["part"][..., :2]), r"record 1, field 'part' has the shape \(24, 2\)"),
        (lambda arrays: arrays["S"].__setitem__((1, 3), np.nan), "record 1, field 'S' holds .* not finite"),
        (lambda arrays: arrays.update(scale=arrays["scale"][:1]), "record 1 has no field 'scale'"),
        (lambda arrays: arrays.pop("imgname"), "has no field 'imgname'"),
        (lambda arrays: arrays["imgname"].__setitem__(1, "none.png"), "none.png is missing"),
    ],
)
def test_errors_name_file_record_and_field(
    people: list[Drawn], body: BodyTopology, tmp_path: Path, edit: Edit, message: str
) -> None:
    path = write_spin(people, tmp_path / "spin.npz", edit)
    with pytest.raises(InputError, match=message):
        open_dataset(f"spin:{path}?images={tmp_path}", body)[1]
    if "none.png" not in message:
        with pytest.raises(InputError, match="spin.npz"):
            open_dataset(f"spin:{path}", body)[1]


def test_hmr2(people: list[Drawn], body: BodyTopology, tmp_path: Path) -> None:
    extra = [person.keypoints(J24[:19]) for person in people]
    extra[0][11, 2] = 0  # its left wrist is OpenPose's alone
    np.savez(
        tmp_path / "hmr2.npz",
        imgname=np.array([person.name for person in people], object),
        center=np.array([[320.0, 240.0]] * 3),
        scale=np.array([[200.0, 260.0]] * 3),
        extra_keypoints_2d=np.stack(extra),
        body_keypoints_2d=np.stack([person.keypoints(OPENPOSE) for person in people]),
        extra_keypoints_3d=np.stack([person.points4(J24[:19]) for person in people]),
        body_keypoints_3d=np.stack([person.points4(OPENPOSE, (0.1, 0, 0)) for person in people]) * [1, 1, 1, 0],
        body_pose=np.stack([person.pose.ravel() for person in people]),
        betas=np.stack([person.betas for person in people]),
        has_body_pose=np.array([1, 0, 1]),
        has_betas=np.array([1, 1, 1]),
    )
    read = open_dataset(f"hmr2:{tmp_path / 'hmr2.npz'}", body)
    for drawn, person in zip(people, read):
        drawn.check_2d(person, body)
        drawn.check_3d(person, body)
        assert person.side == 260 and person.uv_weight[body.joint_names.index("left_heel")] == 1
    people[0].check_smpl(read[0])
    assert read[1].rotations is None and read[0].body == "smpl"


@pytest.mark.parametrize("packed", [False, True])
def test_humandata(people: list[Drawn], body: BodyTopology, tmp_path: Path, packed: bool) -> None:
    """Joints as a COCO set has them: body joints, the hips as left_hip_extra and right_hip_extra."""
    places = {"left_knee": 4, "right_knee": 5, "left_wrist": 20, "right_wrist": 21, "nose": 55, "right_eye": 56}
    places |= {"left_heel": 62, "right_heel": 65, "right_hip": 144, "left_hip": 145, "neck": 146, "head": 152}
    columns = sorted(places.values())
    names = sorted(places, key=places.__getitem__)
    mask = np.isin(np.arange(190), columns).astype(np.uint8)
    keypoints2d, keypoints3d = np.full((3, 190, 3), 7.0), np.full((3, 190, 4), 7.0)
    for row, person in enumerate(people):
        keypoints2d[row, columns], keypoints3d[row, columns] = person.keypoints(names), person.points4(names)
    smpl = {
        "global_orient": np.stack([person.pose[0] for person in people]),
        "body_pose": np.stack([person.pose[1:] for person in people]),
        "betas": np.stack([person.betas for person in people]),
    }
    np.savez(
        tmp_path / "human.npz",
        image_path=np.array([person.name for person in people]),
        bbox_xywh=np.array([[*person.box, 1.0] for person in people]),
        keypoints2d=keypoints2d[:, columns] if packed else keypoints2d,
        keypoints2d_mask=mask,
        keypoints3d=keypoints3d[:, columns] if packed else keypoints3d,
        keypoints3d_mask=mask,
        smpl=np.array(smpl),
        meta=np.array({"gender": np.array(["neutral", "female", "male"])}),
        __keypoints_compressed__=np.array([packed]),
    )
    read = open_dataset({"reader": "humandata", "path": tmp_path / "human.npz"}, body)
    for drawn, person in zip(people, read):
        drawn.check_2d(person, body)
        drawn.check_3d(person, body)
        drawn.check_smpl(person)
        assert person.uv_weight.sum() == 10 and set(person.named_joints) == {"neck", "head"}
    assert [person.body for person in read] == ["smpl", "smpl_female", "smpl_male"]
