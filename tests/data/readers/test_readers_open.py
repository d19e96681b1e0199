"""Opening a dataset by name, the joint sets, and the sets of our own making."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import crop
from deformer_core.data.joint_sets import J24, JOINT_SETS, select, to_topology
from deformer_core.data.photos import decode_photo, encoded_size
from deformer_core.data.readers import READERS, open_dataset
from deformer_core.data.rendered import RenderedSamples
from deformer_core.data.sample import collate, pose_labels
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.data.synthetic.shards import shard_path, write_shard
from deformer_core.errors import InputError
from deformer_core.geometry.camera import crop_rotation, project_crop
from tests.conftest import SHARED


def test_joint_sets_are_those_of_the_field(body: BodyTopology) -> None:
    """Published index lists, against the names."""
    assert JOINT_SETS["coco23"] == body.joint_names and JOINT_SETS["coco17"] == body.joint_names[:17]
    coco_in_j24 = [19, 20, 21, 22, 23, 9, 8, 10, 7, 11, 6, 3, 2, 4, 1, 5, 0]
    assert select(J24, JOINT_SETS["coco17"]) == coco_in_j24
    assert select(J24, JOINT_SETS["mpii16"]) == [0, 1, 2, 3, 4, 5, 14, 15, 12, 13, 6, 7, 8, 9, 10, 11]
    assert select(J24, JOINT_SETS["j14"]) == [*range(13), 18]
    assert select(JOINT_SETS["h36m17_spin"], JOINT_SETS["j14"]) == [6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10]
    assert select(JOINT_SETS["h36m17"], JOINT_SETS["j14"]) == [3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10]
    sizes = {"j24": 24, "smpl24": 24, "muco21": 21, "openpose25": 25, "openpose18": 18, "lsp14": 14, "h36m17": 17}
    assert {name: len(JOINT_SETS[name]) for name in sizes} == sizes
    assert all(len(set(names)) == len(names) for names in JOINT_SETS.values())
    with pytest.raises(InputError, match="the joints neck, head are not among"):
        select(JOINT_SETS["coco17"], ("nose", "neck", "head"))


def test_joints_are_placed_by_name(body: BodyTopology) -> None:
    names = JOINT_SETS["openpose25"]
    values, weight = to_topology(np.arange(50).reshape(25, 2), names, body)
    for row, joint in enumerate(body.joint_names):
        assert weight[row] == 1 and values[row, 0] == 2 * names.index(joint)
    assert weight.sum() == 23
    with pytest.raises(InputError, match="3 values were given for the 25 joints"):
        to_topology(np.zeros((3, 2)), names, body)


def test_what_is_unknown_is_named_with_the_nearest(body: BodyTopology, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no reader 'threepdw': did you mean 'threedpw'"):
        open_dataset({"reader": "threepdw", "path": "x"}, body)
    with pytest.raises(InputError, match="no key 'image': did you mean 'images'"):
        open_dataset({"reader": "spin", "path": "x.npz", "image": "y"}, body)
    with pytest.raises(InputError, match="incomplete.*path"):
        open_dataset({"reader": "spin"}, body)
    with pytest.raises(InputError, match="names no reader"):
        open_dataset("file.npz", body)
    with pytest.raises(InputError, match="every must be an integer"):
        open_dataset("human36m:folder?every=often", body)
    for name in set(READERS) - {"recorded"}:
        with pytest.raises(InputError, match="missing_file"):
            open_dataset({"reader": name, "path": str(tmp_path / "missing_file")}, body)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_sizes_are_read_from_the_header(suffix: str, tmp_path: Path) -> None:
    data = cv2.imencode(suffix, np.zeros((30, 50, 3), np.uint8))[1].tobytes()
    assert encoded_size(data, "a") == (50, 30)
    assert decode_photo(data, "a").shape == (30, 50, 3)
    with pytest.raises(InputError, match="a is damaged"):
        decode_photo(data[:15], "a")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, body: BodyTopology) -> Path:
    """Three people as training/render.py stores them, crops at the edges of their full images; their pictures are noise
    with a white dot on the left wrist."""
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("shards")
    rotations, shape, _ = PoseSampler(body).sample(rng, 3)
    records = []
    for row in range(3):
        box = np.array([0.3, -0.2, 0.25], np.float32)
        camera = np.array([0.9, 0.05, -0.1], np.float32)
        full = rotations[row].copy()
        full[0] = crop_rotation(torch.from_numpy(box)[None])[0].numpy() @ rotations[row][0]
        posed = ParametricBody(body)(torch.from_numpy(rotations[row : row + 1]), torch.from_numpy(shape[row : row + 1]))
        uv = project_crop(posed["joints"], torch.from_numpy(camera)[None], torch.from_numpy(box)[None])[0].numpy()
        image = rng.integers(0, 60, (96, 96, 3), dtype=np.uint8)
        x, y = (uv[body.joint_names.index("left_wrist")] + 1) * 48
        cv2.circle(image, (round(x - 0.5), round(y - 0.5)), 3, (255, 255, 255), -1)
        records.append(
            {"index": np.int64(row), "image": image, "box": box, "camera": camera, "rotations": full}
            | {"shape": shape[row], "joints": posed["joints"][0].numpy(), "joints_2d": uv}
            | {"clean": row == 1, "truncated": row == 2}
        )
    write_shard(shard_path(folder, 0), records)
    return folder


def test_synthetic(shards: Path, body: BodyTopology) -> None:
    """The crop of the annotation is the shard's own."""
    samples, people = RenderedSamples(shards), open_dataset(f"synthetic:{shards}", body)
    assert len(people) == 3 and [person.tags["clean"] for person in people] == [0, 1, 0]
    for row in range(3):
        sample = samples[row]
        made = crop(people[row], body, 96)
        assert made.image is not None and sample.image is not None
        np.testing.assert_array_equal(made.image, sample.image)
        for name in ("box", "uv", "joints", "rotations", "shape", "camera"):
            np.testing.assert_allclose(getattr(made, name), getattr(sample, name), atol=2e-5, err_msg=name)
        wrist = people[row].uv[body.joint_names.index("left_wrist")]
        x, y = wrist.astype(int)
        if 3 <= min(x, y) and max(x, y) < 93:
            assert made.image[y, x].min() > 180
        batch = pose_labels(collate([made], body), ParametricBody(body))
        assert float((batch["joints"][0] - torch.from_numpy(sample.joints)).norm(dim=-1).max()) < 1e-4


def test_sequences_travel_to_other_processes(shards: Path, body: BodyTopology) -> None:
    people = pickle.loads(pickle.dumps(open_dataset(f"synthetic:{shards}", body)))
    assert len(people) == 3 and people[-1].source.endswith(":2")
    with pytest.raises(IndexError):
        people[3]


def test_the_real_photos(body: BodyTopology) -> None:
    path = SHARED / "data" / "coco_people" / "coco_people.json"
    if not path.is_file():
        pytest.skip(f"no {path} (set DEFORMER_SHARED)")
    people = open_dataset(f"coco_people:{path}?split=val", body)
    total = len(people) + len(open_dataset(f"coco_people:{path}", body))
    assert total == 4416
    for person in people[:: len(people) // 20]:
        image = person.load_image()
        assert image.shape[:2] == (person.intrinsics.height, person.intrinsics.width)
        assert crop(person, body, 64).uv_weight.sum() >= 8
