"""COCO, MPII, Human3.6M and MuCo, written as their json files are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deformer_core.body.topology import BodyTopology
from deformer_core.data.readers import open_dataset
from deformer_core.errors import InputError
from tests.data.readers.drawn import LENS, Drawn, published

COCO = published(
    "Nose L_Eye R_Eye L_Ear R_Ear L_Shoulder R_Shoulder L_Elbow R_Elbow L_Wrist R_Wrist L_Hip R_Hip L_Knee R_Knee "
    "L_Ankle R_Ankle"
)
FEET = published("L_Big_Toe L_Small_Toe L_Heel R_Big_Toe R_Small_Toe R_Heel")
MPII = published(
    "R_Ankle R_Knee R_Hip L_Hip L_Knee L_Ankle Pelvis Thorax Neck Top_of_Head R_Wrist R_Elbow R_Shoulder L_Shoulder "
    "L_Elbow L_Wrist"
)
H36M = published(
    "Pelvis R_Hip R_Knee R_Ankle L_Hip L_Knee L_Ankle Spine Neck Jaw Head L_Shoulder L_Elbow L_Wrist R_Shoulder "
    "R_Elbow R_Wrist"
)
MUCO = published(
    "Top_of_Head Thorax R_Shoulder R_Elbow R_Wrist L_Shoulder L_Elbow L_Wrist R_Hip R_Knee R_Ankle L_Hip L_Knee "
    "L_Ankle Pelvis Spine Head R_Hand L_Hand R_Toe L_Toe"
)
SIZE = {"width": 640, "height": 480}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, default=lambda value: value.tolist()))
    return path


@pytest.fixture
def people(rng: np.random.Generator, tmp_path: Path) -> list[Drawn]:
    return [Drawn(rng, tmp_path / "images", f"{number}.png") for number in range(2)]


def coco(people: list[Drawn]) -> dict[str, Any]:
    images = [{"id": 70 + row, "file_name": person.name, **SIZE} for row, person in enumerate(people)]
    annotations = [
        {
            "id": row,
            "image_id": 70 + row,
            "iscrowd": 0,
            "num_keypoints": 17,
            "bbox": person.box,
            "keypoints": person.keypoints(COCO, 2).ravel(),
            "foot_kpts": person.keypoints(FEET, 1).ravel(),
        }
        for row, person in enumerate(people)
    ]
    crowd = {**annotations[0], "iscrowd": 1, "keypoints": []}
    far = {**annotations[0], "num_keypoints": 2}
    return {"images": images, "annotations": [crowd, far, *annotations], "categories": [{"name": "person"}]}


def test_coco(people: list[Drawn], body: BodyTopology, tmp_path: Path) -> None:
    content = coco(people)
    path = write(tmp_path / "annotations" / "person_keypoints_val2017.json", content)
    read = open_dataset(f"coco:{path}?images={tmp_path / 'images'}", body)
    assert len(read) == 2
    for drawn, person, written in zip(people, read, content["annotations"][2:]):
        drawn.check_2d(person, body)
        assert person.uv_weight.tolist() == [1] * 23 and person.joints is None and person.body == ""
        x, y, width, height = written["bbox"]
        assert person.side == pytest.approx(1.2 * max(width, height))
        assert person.center == pytest.approx((x + width / 2, y + height / 2))
    assert len(open_dataset(f"coco:{path}?images={tmp_path / 'images'}&least=1", body)) == 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bbox", [1, 2, 3], "record 2 of 'annotations', field 'bbox' has the shape"),
        ("keypoints", "none", "record 2 of 'annotations', field 'keypoints' does not hold numbers"),
        ("image_id", 5, "record 2 of 'annotations', field 'image_id' is 5"),
        ("bbox", [1, 2, 0, 0], "record 2 of 'annotations' has a box without size"),
    ],
)
def test_coco_names_what_is_wrong(
    people: list[Drawn], body: BodyTopology, tmp_path: Path, field: str, value: Any, message: str
) -> None:
    content = coco(people)
    content["annotations"][2][field] = value
    path = write(tmp_path / "bad.json", content)
    with pytest.raises(InputError, match=f"bad.json: {message}"):
        open_dataset(f"coco:{path}?images={tmp_path / 'images'}", body)[0]


def mpii(people: list[Drawn]) -> list[dict[str, Any]]:
    """Pixels count from 1 there, and their centres are whole numbers: 0.5 more than ours."""
    return [
        {
            "image": person.name,
            "center": [320.0, 240.0],
            "scale": 1.2,
            "joints": person.uv(MPII) + 0.5,
            "joints_vis": [0, *[1] * 15],
        }
        for person in people
    ]


def test_mpii(people: list[Drawn], body: BodyTopology, tmp_path: Path) -> None:
    path = write(tmp_path / "annot" / "train.json", mpii(people))
    for drawn, person in zip(people, open_dataset(f"mpii:{path}?images={tmp_path / 'images'}", body)):
        drawn.check_2d(person, body)
        assert person.uv_weight.sum() == 11 and not person.uv_weight[body.joint_names.index("right_ankle")]
        assert person.side == pytest.approx(300) and person.center == (319.5, 239.5 + 18)
    write(path, [{"image": "0.png", "center": [1, 2], "scale": 1}])
    with pytest.raises(InputError, match="train.json: record 0 has no field 'joints'"):
        open_dataset(f"mpii:{path}", body)[0]


def test_mpii_h5(people: list[Drawn], body: BodyTopology, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    rows = mpii(people)
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["imgname"] = np.array([row["image"].encode() for row in rows])
        file["center"], file["scale"] = [row["center"] for row in rows], [row["scale"] for row in rows]
        file["part"] = np.stack([row["joints"] for row in rows])
    for drawn, person in zip(people, open_dataset(f"mpii:{tmp_path / 'train.h5'}?images={tmp_path / 'images'}", body)):
        drawn.check_2d(person, body)


@pytest.fixture
def human36m(people: list[Drawn], tmp_path: Path) -> Path:
    """Subject 9, action 13 (Walking is 14), two frames; camera 4 turned and shifted in the world."""
    turn, shift = cv2.Rodrigues(np.array([0.3, 2.0, -0.4]))[0], np.array([100.0, -900.0, 5000.0])
    camera = {"R": turn, "t": shift, "f": [LENS.fx, LENS.fy], "c": [LENS.cx, LENS.cy]}
    keys = {"subject": 9, "action_idx": 14, "subaction_idx": 1, "cam_idx": 4, **SIZE}
    frames, fits, images, annotations = {}, {}, [], []
    for row, person in enumerate(people):
        frame = 5 * row
        frames[str(frame)] = (1000 * person.points(H36M) - shift) @ turn
        images.append({"id": row, "file_name": person.name, "frame_idx": frame, **keys})
        annotations.append({"id": row, "image_id": row, "bbox": person.box})
        fits[str(frame)] = {"pose": person.pose.ravel(), "shape": person.betas, "trans": [0, 0, 0]}
    images += [{**images[0], "id": 8, "frame_idx": 3}, {**images[0], "id": 9, "cam_idx": 1}]
    annotations += [{"id": 8, "image_id": 8, "bbox": [0, 0, 9, 9]}, {"id": 9, "image_id": 9, "bbox": [0, 0, 9, 9]}]
    del fits["5"]
    folder = tmp_path / "annotations"
    files = {
        "data": {"images": images, "annotations": annotations},
        "camera": {"1": camera, "4": camera},
        "joint_3d": {"14": {"1": frames}},
        "smpl_param": {"14": {"1": fits}},
    }
    for name, content in files.items():
        write(folder / f"Human36M_subject9_{name}.json", content)
    return folder


def test_human36m(human36m: Path, people: list[Drawn], body: BodyTopology) -> None:
    spec = {"reader": "human36m", "path": human36m, "split": "9", "camera": 60457274}
    read = open_dataset(spec, body)
    assert len(read) == 2 and len(open_dataset({**spec, "camera": None}, body)) == 3
    for frame, drawn, person in zip((0, 5), people, read):
        drawn.check_2d(person, body)
        drawn.check_3d(person, body)
        np.testing.assert_allclose(person.translation, drawn.pelvis, atol=1e-5)
        assert person.intrinsics == LENS and set(person.named_joints) == {"pelvis", "spine", "neck", "jaw", "head"}
        assert person.tags == {"subject": 9, "action": "Walking", "camera": "60457274", "frame": frame}
    assert read[1].rotations is None
    camera = json.loads((human36m / "Human36M_subject9_camera.json").read_text())["4"]
    people[0].check_smpl(read[0], np.array(camera["R"]))


def test_human36m_names_what_is_wrong(human36m: Path, body: BodyTopology) -> None:
    with pytest.raises(InputError, match="Human36M_subject11_camera.json"):
        open_dataset(f"human36m:{human36m}?split=11", body)
    with pytest.raises(InputError, match="there is no camera 7: .*60457274"):
        open_dataset(f"human36m:{human36m}?split=9&camera=7", body)
    path = human36m / "Human36M_subject9_joint_3d.json"
    joints = json.loads(path.read_text())
    del joints["14"]["1"]["5"]
    write(path, joints)
    with pytest.raises(InputError, match="subject9_joint_3d.json.* has no field '5'"):
        open_dataset(f"human36m:{human36m}?split=9", body)[1]
    joints["14"]["1"]["0"] = joints["14"]["1"]["0"][:16]
    write(path, joints)
    with pytest.raises(InputError, match=r"action 14, subaction 1, field 'frame 0' has the shape \(16, 3\)"):
        open_dataset(f"human36m:{human36m}?split=9", body)[0]


def test_muco(people: list[Drawn], body: BodyTopology, tmp_path: Path) -> None:
    """Of the two in the first picture, the nearer is taken."""
    lens = {"f": [LENS.fx, LENS.fy], "c": [LENS.cx, LENS.cy], **SIZE}
    images = [{"id": row, "file_name": f"images/{person.name}", **lens} for row, person in enumerate(people)]
    annotations = [
        {
            "id": 40 + row,
            "image_id": row,
            "bbox": person.box,
            "keypoints_img": person.uv(MUCO),
            "keypoints_cam": 1000 * person.points(MUCO),
        }
        for row, person in enumerate(people)
    ]
    behind = {**annotations[0], "id": 39, "keypoints_cam": 1000 * people[0].points(MUCO) + [0, 0, 2000]}
    path = write(tmp_path / "MuCo-3DHP.json", {"images": images, "annotations": [behind, *annotations]})
    fit = {"pose": people[1].pose.ravel(), "shape": people[1].betas}
    write(tmp_path / "smpl_param.json", {"41": fit})
    read = open_dataset(f"muco:{path}", body)
    assert len(read) == 2 and read[0].rotations is None
    for drawn, person in zip(people, read):
        drawn.check_2d(person, body)
        drawn.check_3d(person, body)
        np.testing.assert_allclose(person.translation, drawn.pelvis, atol=1e-5)
        assert person.intrinsics == LENS
    people[1].check_smpl(read[1])
    del annotations[1]["keypoints_img"]
    write(path, {"images": images, "annotations": annotations})
    with pytest.raises(InputError, match="MuCo-3DHP.json: record 1 of 'annotations' has no field 'keypoints_img'"):
        open_dataset(f"muco:{path}", body)[1]
