"""People as RViz markers: per person a mesh, a skeleton and a label, all of a camera in one MarkerArray.

RViz keeps a marker until it is told otherwise: people given up are deleted, and a lifetime takes care of the rest. A
marker's one colour keeps its lighting. Needs visualization_msgs, or what `types` stands in for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.runtime.person import Person
from deformer_core.view.overlay import PALETTE
from deformer_ros.cdr import MarkerTemplate, Marks, pad_text
from deformer_ros.message_types import ROS, MessageTypes

NAMESPACES = ("mesh", "skeleton", "label")
LINE_WIDTH = 0.02
TEXT_HEIGHT = 0.12
LABEL_GAP = 0.15
"""Metres, as the two above."""
MOST_TEMPLATES = 64


@dataclass(frozen=True)
class MarkerStyle:
    """color: RGB in 0..1, None for a colour per person. opacity: of the meshes. lifetime: seconds."""

    color: tuple[float, float, float] | None = None
    opacity: float = 1.0
    lifetime: float = 0.5


class MarkerSerializer:
    """Makes MarkerArray messages of people, as bytes to publish.

    topology, level: of the people's meshes. Messages are tried out, here for a start and then once for every number of
    people and frame: should their bytes not decode to what they should, `note` says so and all markers are made of
    objects from then on.
    """

    def __init__(self, topology: BodyTopology, level: str, style: MarkerStyle, types: MessageTypes = ROS) -> None:
        parents = np.array(topology.joint_parents)
        joints = np.flatnonzero(parents >= 0)
        self._corners = topology.levels[level].faces.ravel()
        self._links = np.stack([joints, parents[joints]], 1).ravel()
        self._style, self._types = style, types
        self._templates: dict[tuple[str, int, int], MarkerTemplate] = {}
        self.note: str | None = None
        """Why the markers are made the slow way, if they are."""
        self._template(types("std_msgs/msg/Header")(), 1, 1)

    @property
    def is_fast(self) -> bool:
        return self.note is None

    def __call__(self, header: Any, people: Sequence[Person], lost: Sequence[int]) -> bytes:
        """The serialized message for a std_msgs/Header: markers of `people`, none any more of the ids `lost`."""
        template = self._template(header, len(people), len(lost)) if self.is_fast else None
        if template is None:
            return self._types.serialize(self.objects(header, people, lost))
        return template.fill(header.stamp, self._marks(people, lost))

    def objects(self, header: Any, people: Sequence[Person], lost: Sequence[int]) -> Any:
        """The same message as a MarkerArray, hundreds of times slower: one Python object a point."""
        markers = self._markers(header.frame_id, len(people), len(lost))
        _set_marks(markers, header.stamp, self._marks(people, lost), self._types)
        return self._types("visualization_msgs/msg/MarkerArray")(markers=markers)

    def _template(self, header: Any, n_people: int, n_lost: int) -> MarkerTemplate | None:
        key = header.frame_id, n_people, n_lost
        if key not in self._templates:
            if len(self._templates) >= MOST_TEMPLATES:
                self._templates.clear()
            try:
                self._templates[key] = self._try_out(header, n_people, n_lost)
            except ValueError as error:
                self.note = (
                    f"markers take more time than they should: rclpy's bytes are laid out in another way ({error})"
                )
                return None
        return self._templates[key]

    def _try_out(self, header: Any, n_people: int, n_lost: int) -> MarkerTemplate:
        """A new template, once it is known to decode to what it should. Errors: `ValueError` if it does not."""
        template = MarkerTemplate(self._markers(header.frame_id, n_people, n_lost), self._types)
        numbers = np.arange(6.0) + 1
        marks = [
            Marks(
                index + 7, (0.5, -1.5, index), (0.25, 0.5, 0.75, 1.0), f"{index}", np.outer(numbers + index, [1, -2, 3])
            )
            for index in range(3 * (n_people + n_lost))
        ]
        expected = self._markers(header.frame_id, n_people, n_lost)
        _set_marks(expected, header.stamp, marks, self._types)
        message = self._types("visualization_msgs/msg/MarkerArray")(markers=expected)
        if not self._types.reads_as(template.fill(header.stamp, marks), message):
            raise ValueError("they decode to another message")
        return template

    def _marks(self, people: Sequence[Person], lost: Sequence[int]) -> list[Marks]:
        """For each person, then for each lost id, one a namespace."""
        marks = []
        for person in people:
            r, g, b = self._style.color or (PALETTE[person.id % len(PALETTE)] / 255).tolist()
            place = person.translation.astype(np.float64)
            surface = np.take(person.vertices + place, self._corners, axis=0)
            bones = np.take(person.joints + place, self._links, axis=0)
            x, _, z = place.tolist()
            top = float(person.vertices[:, 1].min() + place[1]) - LABEL_GAP
            marks += [
                Marks(person.id, color=(r, g, b, self._style.opacity), points=surface),
                Marks(person.id, color=(r, g, b, 1.0), points=bones),
                Marks(person.id, (x, top, z), (1.0, 1.0, 1.0, 1.0), f"{person.id} ({person.score:.2f})"),
            ]
        return marks + [Marks(id) for id in lost for _ in NAMESPACES]

    def _markers(self, frame_id: str, n_people: int, n_lost: int) -> list[Any]:
        """Marker objects without marks; where points or a text will be there is one."""
        Duration, Point = self._types("builtin_interfaces/msg/Duration"), self._types("geometry_msgs/msg/Point")
        Marker: Any = self._types("visualization_msgs/msg/Marker")
        seconds, fraction = divmod(self._style.lifetime, 1)
        lifetime = Duration(sec=int(seconds), nanosec=int(fraction * 1e9))

        def make(namespace: str, action: int) -> Any:
            marker = Marker(ns=namespace, action=action)
            marker.header.frame_id = frame_id
            return marker

        markers = []
        for _ in range(n_people):
            mesh, skeleton, label = (make(namespace, Marker.ADD) for namespace in NAMESPACES)
            mesh.type, skeleton.type, label.type = Marker.TRIANGLE_LIST, Marker.LINE_LIST, Marker.TEXT_VIEW_FACING
            mesh.scale.x = mesh.scale.y = mesh.scale.z = 1.0
            skeleton.scale.x, label.scale.z = LINE_WIDTH, TEXT_HEIGHT
            mesh.points, skeleton.points, label.text = [Point()], [Point()], " "
            for marker in (mesh, skeleton, label):
                marker.pose.orientation.w, marker.lifetime = 1.0, lifetime
            markers += [mesh, skeleton, label]
        return markers + [make(namespace, Marker.DELETE) for _ in range(n_lost) for namespace in NAMESPACES]


def delete_all(header: Any) -> Any:
    """A MarkerArray that takes all markers of its topic away."""
    from visualization_msgs.msg import Marker, MarkerArray

    return MarkerArray(markers=[Marker(header=header, action=Marker.DELETEALL)])


def compare_paths(
    serializer: MarkerSerializer, header: Any, people: Sequence[Person], repeats: int = 20
) -> tuple[float, float]:
    """Median seconds to serialize one message by way of objects, and straight from numpy."""
    from rclpy.serialization import serialize_message

    def median(work: Callable[[], bytes]) -> float:
        times: list[float] = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    serializer(header, people, [])
    slow = median(lambda: serialize_message(serializer.objects(header, people, [])))
    return slow, median(lambda: serializer(header, people, []))


def _set_marks(markers: Sequence[Any], stamp: Any, marks: Sequence[Marks], types: MessageTypes) -> None:
    """What `MarkerTemplate.fill` does, to objects."""
    Point, ColorRGBA = types("geometry_msgs/msg/Point"), types("std_msgs/msg/ColorRGBA")
    for marker, mark in zip(markers, marks):
        marker.header.stamp, marker.id = stamp, mark.id
        position = marker.pose.position
        position.x, position.y, position.z = map(float, mark.position)
        marker.color = ColorRGBA(**dict(zip("rgba", mark.color)))
        marker.text = pad_text(mark.text) if marker.text else ""
        rows: NDArray | Sequence = mark.points if marker.points and mark.points is not None else ()
        marker.points = [Point(x=x, y=y, z=z) for x, y, z in np.asarray(rows, np.float64).reshape(-1, 3).tolist()]
