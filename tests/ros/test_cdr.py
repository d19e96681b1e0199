"""Filled templates against rclpy's own serialization, whatever the frame's name does to the alignment."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy's serialization")
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point
from rclpy.serialization import deserialize_message
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from deformer_ros.cdr import MarkerTemplate, Marks, pad_text


def make(frame: str, has_points: bool, has_text: bool, namespace: str) -> Marker:
    marker = Marker(header=Header(frame_id=frame), ns=namespace, type=Marker.TRIANGLE_LIST)
    marker.text = "t" if has_text else ""
    marker.points = [Point()] if has_points else []
    marker.scale.x, marker.pose.orientation.w, marker.lifetime.sec, marker.frame_locked = 0.3, 1.0, 2, True
    return marker


def with_marks(marker: Marker, stamp: Time, marks: Marks) -> Marker:
    marker.header.stamp, marker.id, marker.color = stamp, marks.id, ColorRGBA(**dict(zip("rgba", marks.color)))
    marker.pose.position = Point(**dict(zip("xyz", marks.position)))
    marker.text = pad_text(marks.text) if marker.text else ""
    rows = marks.points if marker.points and marks.points is not None else np.zeros((0, 3))
    marker.points = [Point(x=x, y=y, z=z) for x, y, z in rows.tolist()]
    return marker


@pytest.mark.parametrize("length", [*range(9), 26])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_filled_templates_decode_to_their_marks(length: int, count: int, rng: np.random.Generator) -> None:
    kinds = [(bool(rng.integers(2)), bool(rng.integers(2)), "n" * int(rng.integers(9))) for _ in range(count)]
    frame = "camera_color_optical_frame"[:length]
    template = MarkerTemplate([make(frame, *kind) for kind in kinds])
    for _ in range(3):
        stamp = Time(sec=int(rng.integers(-(2**31), 2**31)), nanosec=int(rng.integers(10**9)))
        marks = [
            Marks(
                int(rng.integers(-(2**31), 2**31)),
                tuple(rng.normal(size=3).tolist()),
                tuple(rng.random(4, np.float32).tolist()),
                "label"[: int(rng.integers(6))],
                rng.normal(size=(int(rng.integers(1, 50)), 3)),
            )
            for _ in kinds
        ]
        expected = MarkerArray(
            markers=[with_marks(make(frame, *kind), stamp, mark) for kind, mark in zip(kinds, marks)]
        )
        assert deserialize_message(template.fill(stamp, marks), MarkerArray) == expected


def test_a_template_is_not_used_up(rng: np.random.Generator) -> None:
    """A message of many points leaves nothing behind in the next one of few."""
    template = MarkerTemplate([make("camera", True, True, "mesh")])
    few = Marks(3, points=rng.normal(size=(3, 3)).astype(np.float32))
    first = template.fill(Time(sec=1), [few])
    template.fill(Time(sec=2), [Marks(4, text="other", points=rng.normal(size=(999, 3)))])
    assert template.fill(Time(sec=1), [few]) == first and isinstance(first, bytes)


def test_single_precision_and_strided_points_are_taken(rng: np.random.Generator) -> None:
    template = MarkerTemplate([make("camera", True, False, "mesh")])
    points = rng.normal(size=(7, 6)).astype(np.float32)[:, ::2]
    decoded = deserialize_message(template.fill(Time(), [Marks(0, points=points)]), MarkerArray)
    np.testing.assert_array_equal([[p.x, p.y, p.z] for p in decoded.markers[0].points], points.astype(np.float64))


def test_texts_have_one_length() -> None:
    assert pad_text("12 (0.90)") == "   12 (0.90)    " and len(pad_text("x" * 50)) == len(pad_text("")) == 16
