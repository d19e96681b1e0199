"""The contact sheet shows labels where they are, in the colours of their sides; the table counts them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation, CropChange, crop
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.geometry.camera import Intrinsics
from training.inspect_data import COLORS, SIZE, Shares, draw, lay_over, main, spread, table


@pytest.fixture
def person(body: BodyTopology, rng: np.random.Generator) -> Annotation:
    """In the template's pose, of a random shape, somewhere in a grey image."""
    lens = Intrinsics(600, 600, 330, 250, 640, 480)
    _, shape, _ = PoseSampler(body).sample(rng, 1)
    rotations = np.tile(np.eye(3, dtype=np.float32), (1, len(body.rig.bone_names), 1, 1))
    joints = ParametricBody(body)(torch.from_numpy(rotations), torch.from_numpy(shape))["joints"][0].numpy()
    translation = np.array([0.4, 0.1, 5.0], np.float32)
    seen = (joints + translation) @ lens.matrix.T
    uv = (seen[:, :2] / seen[:, 2:]).astype(np.float32)
    center = (float(uv[:, 0].mean()), float(uv[:, 1].mean()))
    image = np.full((480, 640, 3), 60, np.uint8)
    labels = {"uv": uv, "uv_weight": np.ones(23, np.float32), "joints": joints, "translation": translation}
    pose = {"body": "anny", "rotations": rotations[0], "shape": shape[0]}
    return Annotation("drawn", lambda: image, center, 1.4 * float(np.ptp(uv, axis=0).max()), lens, **labels, **pose)


def test_joints_have_the_colours_of_their_sides(person: Annotation, body: BodyTopology) -> None:
    parts = ParametricBody(body)
    for change in (CropChange(), CropChange(mirror=True, roll=0.4)):
        sample = crop(person, body, SIZE, change)
        picture = draw(sample, body, parts)
        places = ((sample.uv + 1) / 2 * SIZE).round().astype(int)
        seen = {side: 0 for side in COLORS}
        for row, (name, (x, y)) in enumerate(zip(body.joint_names, places)):
            others = np.delete(places, row, 0) - places[row]
            if np.abs(others).max(1).min() > 10:  # no other dot or ring lies over it
                side = next(side for side in COLORS if name.startswith(side))
                seen[side] += 1
                np.testing.assert_allclose(picture[y, x].astype(int), COLORS[side], atol=40, err_msg=name)
        assert min(seen["left_"], seen["right_"]) >= 4, seen


def test_3d_is_laid_over_2d_without_a_camera(person: Annotation, body: BodyTopology) -> None:
    sample = crop(replace(person, translation=None), body, SIZE)
    known = crop(person, body, SIZE)
    assert sample.joints is not None and sample.camera is None and known.camera is not None
    camera = lay_over(sample.joints, np.ones(23), sample)
    assert camera is not None
    np.testing.assert_allclose(camera, known.camera, atol=0.15 * known.camera[0])
    assert (draw(sample, body, ParametricBody(body))[:8, :8] == 255).all()
    assert lay_over(sample.joints, np.eye(23)[0], sample) is None
    assert lay_over(sample.joints * [-1, -1, 1], np.ones(23), sample) is None


def test_shares(person: Annotation, body: BodyTopology) -> None:
    bare = replace(person, joints=None, translation=None, body="smpl", uv_weight=np.eye(23, dtype=np.float32)[0])
    shares = Shares.of([person, bare, bare, bare], body, 100)
    assert shares.shares == {"2d": 1, "3d": 0.25, "mesh": 0.25, "camera": 0.25, "joints": 6.5}
    line = table({"some": shares, "part": Shares.of([person, bare, bare, bare], body, 2)}).splitlines()
    assert line[1].split() == ["some", "4", "100.0%", "25.0%", "25.0%", "25.0%", "6.5"]
    assert line[2].endswith("(of 2 looked at)")
    assert spread(10, 3) == [0, 4, 9] and spread(2, 5) == [0, 1]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((120, 160, 3), 90, np.uint8))
    keypoints = [[60.0 + k, 50.0, 2] for k in range(17)]
    people = [{"bbox_xywh": [20 + 10 * i, 10, 60, 80], "keypoints": keypoints, "usable": True} for i in range(3)]
    photo = {"file": "a.png", "our_split": "val", "people": people}
    path = tmp_path / "people.json"
    path.write_text(json.dumps([photo]))
    out = tmp_path / "made" / "sheet.png"
    options = ["--path", str(path), "--split", "val", "--out", str(out), "--augment"]
    assert main(["--reader", "coco_people", *options]) == 0
    assert cv2.imread(str(out)).shape == (2 * SIZE, 2 * SIZE, 3)
    assert capsys.readouterr().out.splitlines()[1].split() == ["coco_people", "3", *["100.0%", *["0.0%"] * 3], "17.0"]
    assert main([f"coco_people:{path}?split=val", "--count", "1", "--out", str(out)]) == 0
    assert cv2.imread(str(out)).shape == (SIZE, SIZE, 3)
    assert main(["--reader", "coco_peple", *options]) == 2
    assert "did you mean 'coco_people'" in capsys.readouterr().err
    assert main([]) == 2 and main([f"coco_people:{path}?split=val", "--out", str(tmp_path / "sheet.xyz")]) == 2
