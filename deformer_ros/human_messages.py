"""People to and from this package's messages, and body frames to transforms.

Long arrays go through `array.array`, which is what rclpy's messages hold: assigning anything else to a float32[]
field checks number by number.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.runtime.person import Person
from deformer_core.runtime.placement import project
from deformer_core.runtime.tracker import Track, TrackState
from deformer_ros.body_frames import BodyFrames
from deformer_ros.message_types import ROS, MessageTypes


def topology_name(topology: BodyTopology) -> str:
    """What ties a HumanMesh to its MeshTopology."""
    return f"{topology.name}-{topology.content_hash}"


def human_mesh_array(
    header: Any, tracks: Sequence[Track], quaternions: NDArray, topology: BodyTopology, types: MessageTypes = ROS
) -> Any:
    """deformer_ros/HumanMeshArray of tracks.

    header: std_msgs/Header of the image. quaternions: (P, R, 4) x, y, z, w of `body_frames.BonePoses`.
    """
    name = topology_name(topology)
    humans = [_human_mesh(header, track, bones, name, types) for track, bones in zip(tracks, quaternions)]
    return types("deformer_ros/msg/HumanMeshArray")(header=header, humans=humans)


def _human_mesh(header: Any, track: Track, bones: NDArray, topology: str, types: MessageTypes) -> Any:
    person = track.person
    return types("deformer_ros/msg/HumanMesh")(
        header=header,
        id=track.id,
        tracking_state=int(track.state),
        confidence=float(person.score),
        box=np.asarray(person.box, np.float32),
        topology=topology,
        level=person.level,
        vertices=_array("f", person.vertices),
        joints=_array("f", person.joints),
        joint_rotations=_array("f", bones),
        translation=np.asarray(person.translation, np.float32),
        intrinsics=np.asarray(person.intrinsics, np.float32).ravel(),
    )


def track_from_message(message: Any) -> Track:
    """The track of a deformer_ros/HumanMesh. What is not sent (the crop's camera) is zero."""
    intrinsics = np.asarray(message.intrinsics, np.float32).reshape(3, 3)
    joints, translation = _points(message.joints), np.asarray(message.translation, np.float32)
    person = Person(
        id=message.id,
        box=np.asarray(message.box, np.float32),
        score=message.confidence,
        joints=joints,
        vertices=_points(message.vertices),
        translation=translation,
        camera=np.zeros(3, np.float32),
        keypoints_2d=project(joints + translation, intrinsics),
        level=message.level,
        intrinsics=intrinsics,
    )
    return Track(message.id, TrackState(message.tracking_state), person)


def mesh_topology(topology: BodyTopology, level: str, types: MessageTypes = ROS) -> Any:
    """deformer_ros/MeshTopology of one mesh level of a body."""
    mesh = topology.levels[level]
    return types("deformer_ros/msg/MeshTopology")(
        name=topology_name(topology),
        level=level,
        triangles=_array("I", mesh.faces),
        template_vertices=_array("f", mesh.vertices),
        joint_names=list(topology.joint_names),
        joint_parents=_array("i", topology.joint_parents),
        bone_names=list(topology.rig.bone_names),
        bone_parents=_array("i", topology.rig.bone_parents),
        part_names=list(topology.part_names),
        vertex_parts=_array("B", mesh.parts),
    )


class BodyTransforms:
    """Transforms of all frames of all people, parents first, named `<frame>_<id>`.

    Making messages takes longer than filling them, so those of the last call are filled anew while the people are the
    same: serialize them before the next.
    """

    def __init__(self, frames: BodyFrames, types: MessageTypes = ROS) -> None:
        self._frames, self._types = frames, types
        self._key: tuple[str, tuple[int | str, ...]] = "", ()
        self._messages: list[Any] = []

    def __call__(
        self, header: Any, ids: Sequence[int | str], positions: NDArray, quaternions: NDArray
    ) -> list[Any]:
        """geometry_msgs/TransformStamped under the stamp of an image's header, whose frame is the bodies' parent.

        ids: one a person, unique among all that send to the same /tf. positions, quaternions: (P, F, 3) and (P, F, 4)
        of `BodyFrames.transforms`.
        """
        key = header.frame_id, tuple(ids)
        if key != self._key:
            self._key, self._messages = key, self._make(*key)
        values = np.concatenate([positions, quaternions], -1).reshape(-1, 7).tolist()
        for message, (x, y, z, qx, qy, qz, qw) in zip(self._messages, values):
            place, turn = message.transform.translation, message.transform.rotation
            message.header.stamp = header.stamp
            place.x, place.y, place.z = x, y, z
            turn.x, turn.y, turn.z, turn.w = qx, qy, qz, qw
        return self._messages

    def _make(self, frame_id: str, ids: Sequence[int | str]) -> list[Any]:
        Header, TransformStamped = self._types("std_msgs/msg/Header"), self._types("geometry_msgs/msg/TransformStamped")
        made = []
        for id in ids:
            names = [f"{name}_{id}" for name in self._frames.names]
            for name, parent in zip(names, self._frames.parents):
                own = Header(frame_id=frame_id if parent < 0 else names[parent])
                made.append(TransformStamped(header=own, child_frame_id=name))
        return made


def _array(code: str, values: ArrayLike) -> array:
    filled = array(code)
    filled.frombytes(np.ascontiguousarray(values, np.dtype(code)).tobytes())
    return filled


def _points(values: Any) -> NDArray[np.float32]:
    return np.asarray(values, np.float32).reshape(-1, 3)
