import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deformer_core.body.topology import BodyTopology
from deformer_core.data.keypoints2d import KeypointPhotos, read_people
from deformer_core.errors import InputError
from tests.conftest import SHARED

LEFT_WRIST, RIGHT_WRIST = 9, 10
COCO = ["nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
        "right_ankle"]  # fmt: skip


def photo(name: str, split: str, people: list[dict[str, Any]]) -> dict[str, Any]:
    return {"file": f"images/{name}", "our_split": split, "width": 200, "height": 160, "people": people}


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    """A photo with a white dot where the left wrist is, a red one for the right, and people not to be read."""
    keypoints = [[0.0, 0.0, 0]] * 17
    keypoints[LEFT_WRIST], keypoints[RIGHT_WRIST] = [120.5, 60.5, 2], [90.5, 100.5, 1]
    person = {"bbox_xywh": [80, 40, 50, 80], "keypoints": keypoints, "usable": True}
    image = np.zeros((160, 200, 3), np.uint8)
    image[59:62, 119:122], image[99:102, 89:92] = 255, (0, 0, 255)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), image)
    photos = [photo("a.png", "train", [person | {"usable": False}, person]), photo("b.png", "val", [person])]
    (tmp_path / "people.json").write_text(json.dumps(photos))
    return tmp_path / "people.json"


def test_labels_lie_on_the_picture(listing: Path, body: BodyTopology) -> None:
    assert list(body.joint_names[:17]) == COCO
    people = read_people(listing, "train")
    assert len(people) == 1 and people[0].side == 80 and people[0].name == "a.png:1"
    samples = KeypointPhotos(people, body, size=64, views=4)
    assert len(samples) == 4
    for view in range(4):
        sample = samples[view]
        assert sample.image is not None and sample.image.shape == (64, 64, 3)
        assert sample.uv_weight.sum() == 2 and sample.joints is None and sample.camera is None
        mirrored = view % 2 == 1
        white, red = (RIGHT_WRIST, LEFT_WRIST) if mirrored else (LEFT_WRIST, RIGHT_WRIST)
        for joint, color in ((white, (255, 255, 255)), (red, (255, 0, 0))):
            x, y = ((sample.uv[joint] + 1) / 2 * 64).astype(int)
            assert np.abs(sample.image[y, x].astype(int) - color).max() < 120, (view, joint)
    assert np.abs(samples[0].uv[LEFT_WRIST] - [15.5 / 50, -19.5 / 50]).max() < 1e-6
    np.testing.assert_allclose(samples[1].box, samples[0].box * [-1, 1, 1])
    assert not np.allclose(samples[2].uv, samples[0].uv)
    np.testing.assert_array_equal(samples[3].image, KeypointPhotos(people, body, 64, 4)[3].image)


def test_missing_things_are_named(listing: Path, body: BodyTopology, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="b.png"):
        KeypointPhotos(read_people(listing, "val"), body, 64)[0]
    with pytest.raises(InputError, match="'test'"):
        read_people(listing, "test")
    with pytest.raises(InputError, match="none.json"):
        read_people(tmp_path / "none.json", "train")
    photos = json.loads(listing.read_text())
    del photos[1]["people"][0]["keypoints"]
    listing.write_text(json.dumps(photos))
    with pytest.raises(InputError, match="record 1.*keypoints"):
        read_people(listing, "val")


def test_the_real_list(body: BodyTopology) -> None:
    path = SHARED / "data" / "coco_people" / "coco_people.json"
    if not path.is_file():
        pytest.skip(f"no {path} (set DEFORMER_SHARED)")
    train, val = read_people(path, "train"), read_people(path, "val")
    assert len(train) + len(val) == 4416
    assert not {person.photo for person in train} & {person.photo for person in val}
    sample = KeypointPhotos(val, body, 256)[0]
    known = sample.uv_weight > 0
    assert known.sum() >= 8 and np.abs(sample.uv[known]).max() < 1
