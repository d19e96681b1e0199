"""METRO's tsv, 3DPW's pickles and UP-3D's many files; pickles are read without running what they say."""

from __future__ import annotations

import base64
import json
import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deformer_core.body.topology import BodyTopology
from deformer_core.data.readers import open_dataset
from deformer_core.data.readers.pickles import Table, read_fields
from deformer_core.errors import InputError
from tests.data.readers.drawn import LENS, Drawn, published

J24 = published(
    "R_Ankle R_Knee R_Hip L_Hip L_Knee L_Ankle R_Wrist R_Elbow R_Shoulder L_Shoulder L_Elbow L_Wrist Neck Top_of_Head "
    "Pelvis Thorax Spine Jaw Head Nose L_Eye R_Eye L_Ear R_Ear"
)
OPENPOSE18 = published(
    "Nose Neck R_Shoulder R_Elbow R_Wrist L_Shoulder L_Elbow L_Wrist R_Hip R_Knee R_Ankle L_Hip L_Knee L_Ankle R_Eye "
    "L_Eye R_Ear L_Ear"
)


@pytest.fixture
def people(rng: np.random.Generator, tmp_path: Path) -> list[Drawn]:
    return [Drawn(rng, tmp_path, f"imageFiles/walk/image_{number:05d}.jpg") for number in (0, 2)]


def write_tsv(path: Path, rows: list[tuple[str, str]], index: bool) -> None:
    offsets, content = [], b""
    for row in rows:
        offsets.append(len(content))
        content += "\t".join(row).encode() + b"\n"
    path.write_bytes(content)
    if index:
        path.with_suffix(".lineidx").write_text("".join(f"{offset}\n" for offset in offsets))


def metro_label(person: Drawn, **changes: Any) -> dict[str, Any]:
    return {
        "center": [320.0, 240.0],
        "scale": 1.5,
        "2d_joints": [person.keypoints(J24).tolist()],
        "3d_joints": [person.points4(J24, (0.2, 0, 0)).tolist()],
        "pose": person.pose.ravel().tolist(),
        "betas": person.betas.tolist(),
        "has_2d_joints": 1,
        "has_3d_joints": 1,
        "has_smpl": 1,
        "gender": "none",
    } | changes


def write_metro(people: list[Drawn], folder: Path, stem: str, index: bool, **changes: Any) -> None:
    images = [(person.folder / person.name).read_bytes() for person in people]
    keys = [person.name for person in people]
    labels = [json.dumps([metro_label(person, **changes)]) for person in people]
    encoded = [base64.b64encode(image).decode() for image in images]
    write_tsv(folder / f"{stem}.img.tsv", list(zip(keys, encoded)), index)
    write_tsv(folder / f"{stem}.label.tsv", list(zip(keys, labels)), index)


@pytest.fixture
def pngs(rng: np.random.Generator, tmp_path: Path) -> list[Drawn]:
    """Without JPEG's errors, so that colours can be compared."""
    return [Drawn(rng, tmp_path, f"{number}.png") for number in range(3)]


@pytest.mark.parametrize("index", [True, False])
def test_metro(pngs: list[Drawn], body: BodyTopology, tmp_path: Path, index: bool) -> None:
    write_metro(pngs, tmp_path, "train", index)
    (tmp_path / "train.linelist.tsv").write_text("0\n2\n")
    (tmp_path / "train.yaml").write_text(
        "img: train.img.tsv\nlabel: train.label.tsv\nhw: train.hw.tsv\nlinelist: train.linelist.tsv\n"
    )
    read = open_dataset(f"metro:{tmp_path / 'train.yaml'}", body)
    assert len(read) == 2
    for drawn, person in zip((pngs[0], pngs[2]), read):
        drawn.check_2d(person, body)
        drawn.check_3d(person, body)
        drawn.check_smpl(person)
        assert person.side == 300 and (person.intrinsics.width, person.intrinsics.height) == (640, 480)


def test_metro_composite(pngs: list[Drawn], body: BodyTopology, tmp_path: Path) -> None:
    write_metro(pngs[:2], tmp_path, "a", index=True)
    write_metro(pngs[2:], tmp_path, "b", index=True, has_3d_joints=0, has_smpl=0)
    (tmp_path / "both.linelist.tsv").write_text("1\t0\n0\t1\n")
    (tmp_path / "labels.txt").write_text("a.label.tsv\nb.label.tsv\n")
    (tmp_path / "both.yaml").write_text(
        "composite: true\nimg: [a.img.tsv, b.img.tsv]\nlabel: labels.txt\nlinelist: both.linelist.tsv\n"
    )
    read = open_dataset(f"metro:{tmp_path / 'both.yaml'}", body)
    assert len(read) == 2 and read[0].joints is None and read[0].rotations is None
    pngs[2].check_2d(read[0], body)
    pngs[1].check_2d(read[1], body)
    pngs[1].check_3d(read[1], body)


def test_metro_names_what_is_wrong(pngs: list[Drawn], body: BodyTopology, tmp_path: Path) -> None:
    write_metro(pngs, tmp_path, "train", True, betas=["x"] * 10)
    path = tmp_path / "train.yaml"
    path.write_text("img: train.img.tsv\nlabel: train.label.tsv\nlinelist: train.linelist.tsv\n")
    (tmp_path / "train.linelist.tsv").write_text("1\n7\n")
    read = open_dataset(f"metro:{path}", body)
    with pytest.raises(InputError, match="train.label.tsv: record 1, field 'betas' does not hold numbers"):
        read[0]
    with pytest.raises(InputError, match="train.label.tsv has 3 rows, but row 7"):
        read[1]
    (tmp_path / "train.linelist.tsv").write_text("1\t0\n")
    with pytest.raises(InputError, match="train.linelist.tsv .*line 0 names file 1"):
        open_dataset(f"metro:{path}", body)
    path.write_text("img: train.img.tsv\n")
    with pytest.raises(InputError, match="train.yaml has no field 'label'"):
        open_dataset(f"metro:{path}", body)


def write_3dpw(people: list[Drawn], folder: Path, **changes: Any) -> tuple[Path, np.ndarray]:
    """Two people, three frames: frame 1 has no valid camera, and the second person is never seen."""
    turn = cv2.Rodrigues(np.array([0.4, -1.0, 2.0]))[0]
    camera = np.eye(4)
    camera[:3, :3], camera[:3, 3] = turn, (1, 2, 3)
    drawn = [people[0], people[0], people[1]]
    poses = np.stack([person.pose.ravel() for person in drawn])
    poses2d = np.stack([person.keypoints(OPENPOSE18).T for person in drawn])
    sequence = {
        "sequence": "walk",
        "poses": [poses, poses],
        "betas": [np.append(people[0].betas, np.ones(290)), people[0].betas],
        "trans": [np.zeros((3, 3))] * 2,
        "poses2d": [poses2d, np.zeros_like(poses2d)],
        "cam_poses": np.stack([camera] * 3),
        "cam_intrinsics": LENS.matrix,
        "campose_valid": [np.array([1, 0, 1]), np.ones(3)],
        "genders": ["f", "m"],
        "img_frame_ids": np.array([0, 2, 4]),
        "jointPositions": [np.full((3, 72), np.nan)] * 2,
    } | changes
    path = folder / "sequenceFiles" / "test" / "walk_00.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(sequence, protocol=2))
    return path, turn


def test_3dpw(people: list[Drawn], body: BodyTopology, tmp_path: Path) -> None:
    path, turn = write_3dpw(people, tmp_path)
    read = open_dataset({"reader": "threedpw", "path": tmp_path, "split": "test"}, body)
    assert [person.tags["frame"] for person in read] == [0, 2]
    for drawn, person in zip(people, read):
        names = [name for name in OPENPOSE18 if name in body.joint_names]
        rows = [body.joint_names.index(name) for name in names]
        np.testing.assert_allclose(person.uv[rows], drawn.uv(names), atol=1e-3)
        image = person.load_image().astype(int)
        x, y = person.uv[body.joint_names.index("left_wrist")].astype(int)
        assert image[y, x, 0] > 150 and image[y, x, 1] < 100  # as far as JPEG keeps red
        drawn.betas = people[0].betas
        drawn.check_smpl(person, turn)
        assert person.body == "smpl_female" and person.intrinsics == LENS and person.joints is None
        assert person.tags["sequence"] == "walk" and person.tags["gender"] == "f" and person.tags["person"] == 0
    alone = open_dataset(f"threedpw:{path}", body)
    assert len(alone) == 2 and alone[0].source == read[0].source


def test_3dpw_names_what_is_wrong(people: list[Drawn], body: BodyTopology, tmp_path: Path) -> None:
    path, _ = write_3dpw(people, tmp_path, genders=["f"], cam_intrinsics=np.eye(2))
    with pytest.raises(InputError, match="walk_00.pkl: person 0, frame 0, field 'cam_intrinsics' has the shape"):
        open_dataset(f"threedpw:{path}", body)[0]
    write_3dpw(people, tmp_path, campose_valid=[np.ones(2), np.ones(2)])
    with pytest.raises(InputError, match="walk_00.pkl: person 0, field 'campose_valid' has the shape"):
        open_dataset(f"threedpw:{path}", body)
    with pytest.raises(InputError, match="sequenceFiles/train has no pkl"):
        open_dataset(f"threedpw:{tmp_path}?split=train", body)


def test_emdb(rng: np.random.Generator, body: BodyTopology, tmp_path: Path) -> None:
    smpl24 = published(
        "Pelvis L_Hip R_Hip Spine_1 L_Knee R_Knee Spine_2 L_Ankle R_Ankle Spine_3 L_Foot R_Foot Neck L_Collar R_Collar "
        "Head L_Shoulder R_Shoulder L_Elbow R_Elbow L_Wrist R_Wrist L_Hand R_Hand"
    )
    people = [Drawn(rng, tmp_path, f"P1/14_walk/images/{frame:05d}.jpg") for frame in range(3)]
    for person in people:
        person.betas = people[0].betas
    turn = cv2.Rodrigues(np.array([0.4, -1.0, 2.0]))[0]
    camera = np.eye(4)
    camera[:3, :3] = turn
    content: dict[str, Any] = {
        "gender": "female",
        "name": "P1_14_walk",
        "emdb1": True,
        "emdb2": False,
        "n_frames": 3,
        "good_frames_mask": np.array([True, False, True]),
        "camera": {"intrinsics": LENS.matrix, "extrinsics": np.stack([camera] * 3), "width": 640, "height": 480},
        "smpl": {
            "poses_root": np.stack([person.pose[0] for person in people]),
            "poses_body": np.stack([person.pose[1:].ravel() for person in people]),
            "trans": np.zeros((3, 3)),
            "betas": people[0].betas,
        },
        "kp2d": np.stack([person.uv(smpl24) for person in people]),
        "bboxes": {"bboxes": np.array([[100, 50, 300, 450]] * 3), "invalid_idxs": np.array([1])},
    }
    path = tmp_path / "P1" / "14_walk" / "P1_14_walk_data.pkl"
    path.write_bytes(pickle.dumps(content, protocol=4))
    read = open_dataset(f"emdb:{tmp_path}", body)
    assert [person.tags["frame"] for person in read] == [0, 2]
    assert len(open_dataset(f"emdb:{tmp_path}?split=emdb2", body)) == 0
    for drawn, person in zip((people[0], people[2]), read):
        names = [name for name in smpl24 if name in body.joint_names]
        for name in names:
            row = body.joint_names.index(name)
            inside = bool((np.abs(drawn.uv([name])[0] / (640, 480) - 0.5) <= 0.5).all())
            assert person.uv_weight[row] == inside, name
            if inside:
                np.testing.assert_allclose(person.uv[row], drawn.uv([name])[0], atol=1e-3)
        drawn.check_smpl(person, turn)
        assert person.body == "smpl_female" and person.intrinsics == LENS and person.side == pytest.approx(480)
    assert read[0].load_image().shape == (480, 640, 3)
    content["kp2d"] = content["kp2d"][:2]
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="P1_14_walk_data.pkl, field 'kp2d' has nothing for frame 2"):
        open_dataset(f"emdb:{tmp_path}", body)[1]


def test_pickles_cannot_run_anything(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps({"poses": [Bomb()]}))
    with pytest.raises(InputError, match=r"bomb.pkl cannot be unpickled \(it asks for posix.system"):
        read_fields(tmp_path / "bomb.pkl")
    np.savez(tmp_path / "bomb.npz", imgname=np.array([Bomb()], object))
    with pytest.raises(InputError, match="bomb.npz is not a readable npz .*posix.system"):
        Table(tmp_path / "bomb.npz", "imgname")
    assert not (tmp_path / "ran").exists()
    values = {"a": [np.arange(3), np.float32(2.5), "text", b"bytes"], "b": np.array(["x", "y"], object)}
    for protocol in range(5):
        (tmp_path / "good.pkl").write_bytes(pickle.dumps(values, protocol=protocol))
        assert repr(read_fields(tmp_path / "good.pkl").values()) == repr(values)
    (tmp_path / "half.pkl").write_bytes(pickle.dumps(values)[:-20])
    with pytest.raises(InputError, match="half.pkl cannot be unpickled"):
        read_fields(tmp_path / "half.pkl")


def test_up3d(rng: np.random.Generator, body: BodyTopology, tmp_path: Path) -> None:
    people = [Drawn(rng, tmp_path, f"0000{number}_image.png") for number in range(2)]
    for number, person in enumerate(people):
        np.save(tmp_path / f"0000{number}_joints.npy", person.keypoints(J24[:14]).T)
        content = {"pose": person.pose.ravel(), "betas": person.betas, "rt": np.array([0, 0, 0.5]), "f": 5000.0}
        (tmp_path / f"0000{number}_body.pkl").write_bytes(pickle.dumps(content, protocol=2))
    light = np.full((480, 640, 3), 255, np.uint8)
    light[100:300, 200:240] = 90
    cv2.imwrite(str(tmp_path / "00001_render_light.png"), light)
    (tmp_path / "trainval.txt").write_text("/00001_image.png\n")
    read = open_dataset(f"up3d:{tmp_path}", body)
    turn = cv2.Rodrigues(np.array([0, 0, 0.5]))[0]
    for drawn, person in zip(people, read):
        drawn.check_2d(person, body)
        drawn.check_smpl(person, turn)
        assert person.joints is None and person.uv_weight.sum() == 12
    part = open_dataset(f"up3d:{tmp_path}?split=trainval", body)
    assert len(part) == 1 and part[0].center == (220, 200) and part[0].side == pytest.approx(240)
    np.save(tmp_path / "00000_joints.npy", np.zeros((3, 12)))
    with pytest.raises(InputError, match=r"00000_joints.npy, field 'joints' has the shape \(3, 12\)"):
        read[0]
    with pytest.raises(InputError, match="test.txt does not exist"):
        open_dataset(f"up3d:{tmp_path}?split=test", body)
