"""Files: read back by other means, whole or not there."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from known_scene import BOXES, INTRINSICS, TRANSLATIONS

from deformer_core.errors import InputError
from deformer_core.runtime import outputs as module
from deformer_core.runtime.gltf import encode_glb
from deformer_core.runtime.media import Frame, read_photo
from deformer_core.runtime.outputs import KINDS, Outputs, fit_picture
from deformer_core.runtime.person import Person
from deformer_core.runtime.placement import project


class Source:
    """An input that is not opened."""

    def __init__(self, is_video=False, suffix=".jpg"):
        self.name, self.stem, self.suffix = "some/input", "input", suffix
        self.is_video, self.fps, self.count = is_video, 25.0, None


@pytest.fixture
def people(body):
    level = body.levels["coarse"]
    joints = level.joint_regressor.apply(level.vertices)
    return [
        Person(
            id=index,
            box=BOXES[index],
            score=0.9 - 0.2 * index,
            joints=joints,
            vertices=level.vertices + np.float32(0.001 * index),
            translation=TRANSLATIONS[index],
            camera=np.array([0.8, 0.1, 0.2], np.float32),
            keypoints_2d=project(joints + TRANSLATIONS[index], INTRINSICS).astype(np.float32),
            level="coarse",
            intrinsics=INTRINSICS.astype(np.float32),
        )
        for index in range(2)
    ]


def parse_glb(data):
    """The JSON part and all accessors as arrays, by the specification."""
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    document = json.loads(data[20 : 20 + size])
    binary_size, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert kind == b"BIN\0" and binary_size % 4 == 0
    binary = data[28 + size :]
    assert len(binary) == binary_size == document["buffers"][0]["byteLength"]
    arrays = []
    for accessor in document["accessors"]:
        view = document["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0 and view["byteOffset"] + view["byteLength"] <= binary_size
        part = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        kind = {5126: np.float32, 5123: np.uint16, 5125: np.uint32}[accessor["componentType"]]
        array = np.frombuffer(part, kind).reshape(-1, {"SCALAR": 1, "VEC3": 3}[accessor["type"]])
        assert len(array) == accessor["count"]
        np.testing.assert_array_equal(array.min(0), accessor["min"])
        np.testing.assert_array_equal(array.max(0), accessor["max"])
        arrays.append(array)
    return document, arrays


def test_glb(people, body):
    level = body.levels["coarse"]
    document, arrays = parse_glb(encode_glb(people, level.faces))
    assert document["asset"]["version"] == "2.0" and document["scenes"][0]["nodes"] == [0, 1]
    for node, person in zip(document["nodes"], people):
        (primitive,) = document["meshes"][node["mesh"]]["primitives"]
        points, normals = (arrays[primitive["attributes"][name]] for name in ("POSITION", "NORMAL"))
        faces = arrays[primitive["indices"]].reshape(-1, 3)
        np.testing.assert_array_equal(faces, level.faces)
        world = points + node["translation"]
        np.testing.assert_allclose(world * [1, -1, -1], person.vertices + person.translation, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
        a, b, c = (points[faces[:, k]].astype(float) for k in range(3))
        volume = np.einsum("fk,fk->", a, np.cross(b, c)) / 6
        assert 0.03 < volume < 0.2  # cubic metres, positive: faces look outwards
        assert np.einsum("fk,fk->f", np.cross(b - a, c - a), normals[faces[:, 0]]).mean() > 0
    colors = [tuple(m["pbrMetallicRoughness"]["baseColorFactor"]) for m in document["materials"]]
    assert len(set(colors)) == 2


def test_photo_outputs(people, photo, body, tmp_path):
    with Outputs(list(KINDS), Source(), "input", tmp_path, body) as outputs:
        outputs.add(Frame(photo), people)
        assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
        written = outputs.commit()
    names = ["input.glb", "input.npz", "input_overlay.jpg", "input_side.jpg", "input_skeleton.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names == sorted(path.name for path in written)
    assert read_photo(tmp_path / "input_overlay.jpg").shape == photo.shape
    parse_glb((tmp_path / "input.glb").read_bytes())


def test_npz(people, photo, body, tmp_path):
    with Outputs(["npz"], Source(is_video=True), "input", tmp_path, body) as outputs:
        for index, present in enumerate(([0, 1], [], [1])):
            outputs.add(Frame(photo, index, index / 25), [people[number] for number in present])
        (path,) = outputs.commit()
    with np.load(path) as archive:
        content = dict(archive)
    assert content["frame"].tolist() == [0, 0, 2] and content["id"].tolist() == [0, 1, 1]
    rows = [people[0], people[1], people[1]]
    for name in ("box", "score", "vertices", "joints", "translation", "camera", "keypoints_2d", "intrinsics"):
        np.testing.assert_array_equal(content[name], np.stack([np.float32(getattr(row, name)) for row in rows]))
        assert content[name].dtype == np.float32
    np.testing.assert_array_equal(content["faces"], body.levels["coarse"].faces)
    assert tuple(content["joint_names"]) == body.joint_names and str(content["level"]) == "coarse"


def test_video_outputs(people, body, tmp_path):
    picture = np.full((121, 163, 3), 90, np.uint8)  # odd sides
    with Outputs(["overlay", "side", "glb"], Source(is_video=True), "clip", tmp_path, body) as outputs:
        for index in range(6):
            outputs.add(Frame(picture, index, index / 25), people if index % 2 else [])
        written = outputs.commit()
    assert sorted(path.name for path in written) == ["clip_glb", "clip_overlay.mp4", "clip_side.mp4"]
    assert sorted(path.name for path in (tmp_path / "clip_glb").iterdir()) == ["000001.glb", "000003.glb", "000005.glb"]
    capture = cv2.VideoCapture(str(tmp_path / "clip_overlay.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 6 and capture.get(cv2.CAP_PROP_FPS) == 25
    assert capture.read()[1].shape == (120, 162, 3)


def test_a_slow_camera_keeps_its_time(people, photo, body, tmp_path):
    """Frames at 0, 0.2 and 0.4 s make a video of 11 frames at 25 frames a second."""
    with Outputs(["overlay"], Source(is_video=True), "cam", tmp_path, body) as outputs:
        for index in range(3):
            outputs.add(Frame(photo, index, index / 5), people)
        outputs.commit()
    assert cv2.VideoCapture(str(tmp_path / "cam_overlay.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 11


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError, RuntimeError])
@pytest.mark.parametrize("is_video", [False, True])
def test_nothing_is_left_of_a_broken_run(people, photo, body, tmp_path, error, is_video):
    (tmp_path / "input.npz").write_bytes(b"older")
    with pytest.raises(error), Outputs(list(KINDS), Source(is_video), "input", tmp_path, body) as outputs:
        outputs.add(Frame(photo), people)
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["input.npz"]
    assert (tmp_path / "input.npz").read_bytes() == b"older"


def test_bad_places_and_kinds(body, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write to the folder .*file"):
        Outputs(["npz"], Source(), "input", tmp_path / "file", body)
    with pytest.raises(InputError, match="cannot save 'stl'"):
        Outputs(["npz", "stl"], Source(), "input", tmp_path, body)


def test_large_pictures_are_drawn_smaller(people, monkeypatch):
    monkeypatch.setattr(module, "MAX_PICTURE_SIDE", 240)
    small, moved = fit_picture(np.zeros((360, 480, 3), np.uint8), people)
    assert small.shape == (180, 240, 3)
    for before, after in zip(people, moved):
        np.testing.assert_allclose(after.keypoints_2d, before.keypoints_2d / 2)
        projected = project(before.joints + before.translation, after.intrinsics)
        np.testing.assert_allclose(projected, after.keypoints_2d, atol=1e-3)
    assert fit_picture(small, people)[1] is people


def test_png_stays_png(people, photo, body, tmp_path):
    with Outputs(["overlay"], Source(suffix=".png"), "input", tmp_path, body) as outputs:
        outputs.add(Frame(photo), [replace(person) for person in people])
        assert outputs.commit() == [Path(tmp_path) / "input_overlay.png"]
