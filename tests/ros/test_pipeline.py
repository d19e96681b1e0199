"""Image messages to tracked people, without ROS: messages are anything with the fields."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from deformer_core.runtime.tracker import TrackState
from deformer_ros.parameters import Settings
from deformer_ros.pipeline import Arrival, Pipeline

SETTINGS = Settings(smoothing=0.0, mesh_level="middle")


def header(stamp=1.0, frame_id="camera"):
    return SimpleNamespace(stamp=SimpleNamespace(sec=int(stamp), nanosec=int(stamp % 1 * 1e9)), frame_id=frame_id)


def arrival(picture, stamp=1.0, camera="", info=None, **fields):
    height, width = picture.shape[:2]
    values = {"height": height, "width": width, "encoding": "rgb8", "step": width * 3, "is_bigendian": 0}
    message = SimpleNamespace(header=header(stamp), data=picture.tobytes(), **values)
    vars(message).update(fields)
    return Arrival(camera, message, info, 0.0)


def camera_info(focal=300.0, d=(0.0,) * 5, **fields):
    k = [focal, 0.0, 120.0, 0.0, focal, 170.0, 0.0, 0.0, 1.0]
    p = [250.0, 0.0, 120.0, 0.0, 0.0, 250.0, 170.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    values = {"height": 340, "width": 240, "binning_x": 0, "binning_y": 0, "roi": roi, "distortion_model": "plumb_bob"}
    return SimpleNamespace(header=header(), k=k, d=list(d), p=p, **{**values, **fields})


@pytest.fixture
def pipeline(load):
    return Pipeline(load(SETTINGS), SETTINGS, {"": False})


def people_of(outcome, level="middle"):
    return [track.person for track in outcome.tracks[level]]


def test_cameras_share_a_batch_and_keep_their_own_ids(load, picture, engine, monkeypatch):
    crops = []
    call = type(engine).__call__
    monkeypatch.setattr(type(engine), "__call__", lambda self, c, box: (crops.append(len(c)), call(self, c, box))[1])
    model = load(SETTINGS)
    del crops[:]
    dim = picture - picture // 8
    both = Pipeline(model, SETTINGS, {"front": False, "rear": False})
    front, rear = both([arrival(picture, camera="front"), arrival(dim, camera="rear")])
    assert crops == [4]
    assert [track.id for track in front.tracks["middle"]] == [track.id for track in rear.tracks["middle"]] == [1, 2]
    for outcome, image in ((front, picture), (rear, dim)):
        (alone,) = Pipeline(model, SETTINGS, {"": False})([arrival(image)])
        for one, other in zip(people_of(alone), people_of(outcome)):
            np.testing.assert_allclose(one.vertices, other.vertices, atol=1e-4)
            np.testing.assert_allclose(one.translation, other.translation, atol=1e-4)


def test_images_of_one_camera_in_one_call_are_those_of_several_calls(load, picture):
    pictures = [np.roll(picture, shift, axis=1) for shift in (0, 2, 5)]
    arrivals = [arrival(picture, 1 + index / 10) for index, picture in enumerate(pictures)]
    settings, model = replace(SETTINGS, smoothing=0.8), load(SETTINGS)
    together = Pipeline(model, settings, {"": False})(arrivals)
    one_by_one = Pipeline(model, settings, {"": False})
    for outcome, alone in zip(together, (one_by_one([arrived])[0] for arrived in arrivals)):
        assert [t.state for t in outcome.tracks["middle"]] == [t.state for t in alone.tracks["middle"]]
        for one, other in zip(people_of(alone), people_of(outcome)):
            np.testing.assert_allclose(one.vertices, other.vertices, atol=1e-4)


def test_all_levels_show_the_same_body(load, picture, body):
    settings = replace(SETTINGS, mesh_level="full", marker_level="middle", smoothing=0.5)
    pipeline = Pipeline(load(settings), settings, {"": False})
    for stamp in (1.0, 1.1):
        (outcome,) = pipeline([arrival(picture, stamp)])
    for full, middle in zip(people_of(outcome, "full"), people_of(outcome, "middle")):
        assert full.id == middle.id and (full.level, middle.level) == ("full", "middle")
        raised = body.upsample["full"].apply(middle.vertices)
        np.testing.assert_allclose(raised, full.vertices, atol=2e-3)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"encoding": "rgb12"}, "encoding 'rgb12' cannot be converted"),
        ({"step": 3}, "step is 3 bytes"),
        ({"width": 0}, "0x340 pixels"),
        ({"data": b""}, "holds 0 bytes"),
    ],
)
def test_an_unusable_image_is_a_sentence_and_hurts_no_other(load, picture, fields, words):
    pipeline = Pipeline(load(SETTINGS), SETTINGS, {"front": False, "rear": False})
    bad, good = pipeline([arrival(picture, camera="front", **fields), arrival(picture, camera="rear")])
    assert words in bad.problem and not bad.tracks
    assert not good.problem and len(good.tracks["middle"]) == 2


def test_a_corrupt_jpeg_is_a_sentence(pipeline):
    message = SimpleNamespace(header=header(), format="rgb8; jpeg compressed bgr8", data=b"\xff\xd8\xff\xe0 no more")
    (outcome,) = pipeline([Arrival("", message, None, 0.0)])
    assert "jpeg" in outcome.problem and "cut off" in outcome.problem


def test_what_the_camera_info_says_is_used(pipeline, picture, load):
    (assumed,) = pipeline([arrival(picture)])
    assert not assumed.is_calibrated and "55 degrees" in assumed.calibration
    (known,) = pipeline([arrival(picture, info=camera_info())])
    assert known.is_calibrated and known.calibration == "calibrated"
    assert people_of(known)[0].intrinsics[0, 0] == 300
    (changed,) = pipeline([arrival(picture, info=camera_info(310.0))])
    assert people_of(changed)[0].intrinsics[0, 0] == 310
    (uncalibrated,) = pipeline([arrival(picture, info=camera_info(0.0))])
    assert not uncalibrated.is_calibrated and "not calibrated" in uncalibrated.calibration
    rectified = Pipeline(load(SETTINGS), SETTINGS, {"": True})
    (outcome,) = rectified([arrival(picture, info=camera_info())])
    assert people_of(outcome)[0].intrinsics[0, 0] == 250


def test_a_distorted_image_is_undistorted(pipeline, picture):
    (outcome,) = pipeline([arrival(picture, info=camera_info(d=(-0.3, 0.1, 0.0, 0.0, 0.0)))])
    assert outcome.picture.shape == picture.shape and (outcome.picture != picture).any()


def test_a_new_frame_id_starts_anew_and_says_so(pipeline, picture):
    pipeline([arrival(picture, 1.0)])
    (outcome,) = pipeline([arrival(picture, 1.1, header=header(1.1, "other"))])
    assert "from 'camera' to 'other'" in outcome.notes["frame"]
    states = [(track.id, track.state) for track in outcome.tracks["middle"]]
    assert states == [(3, TrackState.NEW), (4, TrackState.NEW), (1, TrackState.LOST), (2, TrackState.LOST)]


def test_a_stamp_that_jumps_back_says_so(pipeline, picture):
    pipeline([arrival(picture, 100.0)])
    (outcome,) = pipeline([arrival(picture, 5.0)])
    assert "jumped back by 95.000 s" in outcome.notes["stamp"]
    assert [t.id for t in outcome.tracks["middle"] if t.state == TrackState.LOST] == [1, 2]
    assert "no frame id" in pipeline([arrival(picture, header=header(6.0, ""))])[0].notes["no frame"]
    assert "no stamp" in pipeline([arrival(picture, header=header(0.0))])[0].notes["no stamp"]


def test_why_nobody_is_there(pipeline, picture, detector):
    detector.scores = np.array([0.25, 0.2], np.float32)
    (faint,) = pipeline([arrival(picture)])
    assert faint.reason == "nobody: the best candidate scores 0.25, detection_threshold is 0.40"
    detector.scores = np.zeros(2, np.float32)
    (empty,) = pipeline([arrival(picture)])
    assert empty.reason == "nobody in the image"
    (black,) = pipeline([arrival(picture // 50)])
    assert black.reason == "nobody: the image is almost black"


def test_a_known_person_is_followed_through_weak_detections(pipeline, picture, detector):
    detector.scores = np.array([0.35, 0.35], np.float32)
    assert not pipeline([arrival(picture, 1.0)])[0].tracks["middle"]
    detector.scores = np.array([0.9, 0.35], np.float32)
    assert [t.id for t in pipeline([arrival(picture, 1.1)])[0].tracks["middle"]] == [1]
    detector.scores = np.array([0.35, 0.35], np.float32)
    assert [t.id for t in pipeline([arrival(picture, 1.2)])[0].tracks["middle"]] == [1]


def test_another_mesh_level_while_it_runs(pipeline, picture, body):
    pipeline([arrival(picture, 1.0)])
    pipeline.settings = replace(SETTINGS, mesh_level="coarse")
    (outcome,) = pipeline([arrival(picture, 1.1)])
    assert people_of(outcome, "coarse")[0].vertices.shape == body.levels["coarse"].vertices.shape
    assert all(track.state == TrackState.NEW for track in outcome.tracks["coarse"])
