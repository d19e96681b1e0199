"""People and bodies through this package's messages and back."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy's serialization")
pytest.importorskip("deformer_ros.msg", reason="needs this package's messages: run `make ros`")
from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header

from deformer_core.body.topology import LEVELS, BodyTopology
from deformer_core.runtime.person import Person
from deformer_core.runtime.placement import project
from deformer_core.runtime.tracker import Track, TrackState
from deformer_ros import msg
from deformer_ros.body_frames import BodyFrames
from deformer_ros.human_messages import BodyTransforms, human_mesh_array, mesh_topology, track_from_message

HEADER = Header(frame_id="camera_optical", stamp=Time(sec=12, nanosec=34))


def make_track(body: BodyTopology, rng: np.random.Generator, id: int) -> Track:
    vertices = body.levels["coarse"].vertices + rng.normal(0, 0.01, (615, 3)).astype(np.float32)
    joints = body.levels["coarse"].joint_regressor.apply(vertices)
    translation = rng.normal([0, 0, 4], 0.5).astype(np.float32)
    intrinsics = np.array([[600, 0, 320], [0, 610, 240], [0, 0, 1]], np.float32)
    person = Person(
        id=id,
        box=rng.random(4, np.float32),
        score=0.875,
        joints=joints,
        vertices=vertices,
        translation=translation,
        camera=np.zeros(3, np.float32),
        keypoints_2d=project(joints + translation, intrinsics),
        level="coarse",
        intrinsics=intrinsics,
    )
    return Track(id, TrackState(id % 3), person)


def test_people_come_back_as_they_were(body: BodyTopology, rng: np.random.Generator) -> None:
    tracks = [make_track(body, rng, id) for id in (3, 4, 2**32 - 1)]
    poses = BodyFrames(body, "coarse")(np.stack([track.person.vertices for track in tracks]))
    made = human_mesh_array(HEADER, tracks, poses.quaternions(), body)
    sent = deserialize_message(serialize_message(made), msg.HumanMeshArray)
    assert sent.header == HEADER and all(human.header == HEADER for human in sent.humans)
    for track, human, bones in zip(tracks, sent.humans, poses.quaternions()):
        back = track_from_message(human)
        assert (back.id, back.state) == (track.id, track.state)
        for name, value in vars(track.person).items():
            np.testing.assert_array_equal(getattr(back.person, name), value, err_msg=name)
        np.testing.assert_allclose(np.reshape(human.joint_rotations, (-1, 4)), bones, atol=1e-6)
        assert human.topology == f"anny-{body.content_hash}"


def test_nobody_is_an_empty_array(body: BodyTopology) -> None:
    made = human_mesh_array(HEADER, [], np.zeros((0, 22, 4)), body)
    assert deserialize_message(serialize_message(made), msg.HumanMeshArray).humans == []


@pytest.mark.parametrize("level", LEVELS)
def test_topology(level: str, body: BodyTopology) -> None:
    sent = deserialize_message(serialize_message(mesh_topology(body, level)), msg.MeshTopology)
    mesh = body.levels[level]
    np.testing.assert_array_equal(np.reshape(sent.triangles, (-1, 3)), mesh.faces)
    np.testing.assert_array_equal(np.reshape(sent.template_vertices, (-1, 3)), mesh.vertices)
    np.testing.assert_array_equal(sent.vertex_parts, mesh.parts)
    assert tuple(sent.joint_names) == body.joint_names and tuple(sent.joint_parents) == body.joint_parents
    assert tuple(sent.bone_names) == body.rig.bone_names and tuple(sent.bone_parents) == body.rig.bone_parents
    assert tuple(sent.part_names) == body.part_names and sent.level == level


def test_transforms_are_one_tree(body: BodyTopology, rng: np.random.Generator) -> None:
    tracks, frames = [make_track(body, rng, id) for id in (1, 5)], BodyFrames(body, "coarse")
    poses = frames(np.stack([track.person.vertices for track in tracks]))
    places = np.stack([track.person.translation for track in tracks])
    positions, turns = frames.transforms(poses, places)
    make = BodyTransforms(frames)
    make(HEADER, [1, "left_5"], 0 * positions, 0 * turns)
    sent = make(HEADER, [1, "left_5"], positions, turns)
    known = {HEADER.frame_id}
    for transform in sent:
        assert transform.header.stamp == HEADER.stamp and transform.header.frame_id in known
        assert transform.child_frame_id not in known
        known.add(transform.child_frame_id)
        turn = transform.transform.rotation
        assert abs(np.linalg.norm([turn.x, turn.y, turn.z, turn.w]) - 1) < 1e-9
    assert len(sent) == 2 * 23 and {"body_1", "body_left_5", "left_hip_1", "head_left_5"} <= known
    place = sent[0].transform.translation
    np.testing.assert_allclose([place.x, place.y, place.z], places[0], atol=1e-6)
