"""What RViz is told: equal bytes and objects, places, deletions, and how much faster the bytes are."""


import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy's serialization")
from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from deformer_core.body.topology import BodyTopology
from deformer_core.runtime.person import Person
from deformer_ros import markers as markers_module
from deformer_ros.markers import MarkerSerializer, MarkerStyle, delete_all

HEADER = Header(frame_id="camera_color_optical_frame", stamp=Time(sec=1700000000, nanosec=123456789))


def make_person(body: BodyTopology, rng: np.random.Generator, id: int, level: str = "coarse") -> Person:
    vertices = body.levels[level].vertices + rng.normal(0, 0.01, body.levels[level].vertices.shape).astype(np.float32)
    return Person(
        id=id,
        box=np.zeros(4, np.float32),
        score=0.875,
        joints=body.levels[level].joint_regressor.apply(vertices),
        vertices=vertices,
        translation=rng.normal([0, 0, 4], 0.5).astype(np.float32),
        camera=np.ones(3, np.float32),
        keypoints_2d=np.zeros((23, 2), np.float32),
        level=level,
        intrinsics=np.eye(3, dtype=np.float32),
    )


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("lost", [[], [9], [4, 5]])
def test_bytes_equal_objects(count: int, lost: list[int], body: BodyTopology, rng: np.random.Generator) -> None:
    serializer = MarkerSerializer(body, "coarse", MarkerStyle(opacity=0.5, lifetime=0.25))
    for frame in ("abc", HEADER.frame_id):
        header = Header(frame_id=frame, stamp=HEADER.stamp)
        people = [make_person(body, rng, id) for id in range(1, count + 1)]
        got = deserialize_message(serializer(header, people, lost), MarkerArray)
        # By way of bytes, so that single-precision colours are compared as such.
        objects = serialize_message(serializer.objects(header, people, lost))
        assert got == deserialize_message(objects, MarkerArray)
    assert serializer.is_fast


def test_what_is_drawn(body: BodyTopology, rng: np.random.Generator) -> None:
    person = make_person(body, rng, 7)
    serializer = MarkerSerializer(body, "coarse", MarkerStyle(color=(1.0, 0.5, 0.0), opacity=0.5, lifetime=0.5))
    mesh, skeleton, label = deserialize_message(serializer(HEADER, [person], []), MarkerArray).markers
    for marker, namespace in ((mesh, "mesh"), (skeleton, "skeleton"), (label, "label")):
        assert marker.header == HEADER and (marker.ns, marker.id, marker.action) == (namespace, 7, Marker.ADD)
        assert marker.lifetime.nanosec == 500_000_000 and not marker.frame_locked and not marker.colors
        assert marker.pose.orientation.w == 1
    assert (mesh.color.r, mesh.color.g, mesh.color.a) == (1.0, 0.5, 0.5)
    corners = np.array([[p.x, p.y, p.z] for p in mesh.points])
    faces = body.levels["coarse"].faces.ravel()
    np.testing.assert_allclose(corners, (person.vertices + person.translation)[faces], atol=1e-6)
    ends = np.array([[p.x, p.y, p.z] for p in skeleton.points]).reshape(-1, 2, 3)
    assert len(ends) == 22 and mesh.type == Marker.TRIANGLE_LIST and skeleton.type == Marker.LINE_LIST
    joints = person.joints + person.translation
    for joint, (start, end) in zip(range(1, 23), ends):
        np.testing.assert_allclose([start, end], joints[[joint, body.joint_parents[joint]]], atol=1e-6)
    assert label.text.strip() == "7 (0.88)" and label.type == Marker.TEXT_VIEW_FACING
    assert label.pose.position.y < corners[:, 1].min()  # y points down: above the head


def test_people_have_colours_of_their_own(body: BodyTopology, rng: np.random.Generator) -> None:
    people = [make_person(body, rng, id) for id in (1, 2)]
    made = deserialize_message(MarkerSerializer(body, "coarse", MarkerStyle())(HEADER, people, []), MarkerArray).markers
    assert made[0].color != made[3].color and made[0].color == made[1].color


def test_lost_people_are_deleted(body: BodyTopology) -> None:
    made = deserialize_message(MarkerSerializer(body, "coarse", MarkerStyle())(HEADER, [], [3, 8]), MarkerArray).markers
    assert [(m.ns, m.id) for m in made] == [(ns, id) for id in (3, 8) for ns in ("mesh", "skeleton", "label")]
    assert all(m.action == Marker.DELETE and not m.points and m.header == HEADER for m in made)
    (everything,) = delete_all(HEADER).markers
    assert everything.action == Marker.DELETEALL and everything.header == HEADER


def test_another_layout_is_noticed_and_objects_are_sent(
    body: BodyTopology, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an rclpy whose bytes were laid out in another way."""
    person = make_person(body, rng, 1)
    expected = deserialize_message(MarkerSerializer(body, "coarse", MarkerStyle())(HEADER, [person], []), MarkerArray)
    honest = markers_module.MarkerTemplate.fill
    monkeypatch.setattr(markers_module.MarkerTemplate, "fill", lambda *args: honest(*args)[:-40] + bytes(40))
    serializer = MarkerSerializer(body, "coarse", MarkerStyle())
    assert deserialize_message(serializer(HEADER, [person], []), MarkerArray) == expected
    assert not serializer.is_fast and serializer.note is not None and "rclpy" in serializer.note


def test_templates_do_not_pile_up(body: BodyTopology) -> None:
    """A frame id that changes with every image costs time, not memory."""
    serializer = MarkerSerializer(body, "coarse", MarkerStyle())
    for index in range(200):
        serializer(Header(frame_id=f"frame_{index}"), [], [1])
    assert len(serializer._templates) <= markers_module.MOST_TEMPLATES
