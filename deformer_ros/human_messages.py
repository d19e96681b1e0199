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


def transforms(
    header: Any,
    ids: Sequence[int | str],
    frames: BodyFrames,
    positions: NDArray,
    quaternions: NDArray,
    types: MessageTypes = ROS,
) -> list[Any]:
    """geometry_msgs/TransformStamped of all frames of all people, parents first, named `<frame>_<id>`.

    header: of the image; its frame is the bodies' parent. ids: one a person, unique among all that send to the same
    /tf. positions, quaternions: (P, F, 3) and (P, F, 4) of `BodyFrames.transforms`.
    """
    Quaternion, Vector3 = types("geometry_msgs/msg/Quaternion"), types("geometry_msgs/msg/Vector3")
    Transform, TransformStamped = types("geometry_msgs/msg/Transform"), types("geometry_msgs/msg/TransformStamped")
    Header = types("std_msgs/msg/Header")
    sent = []
    for id, places, turns in zip(ids, positions.tolist(), quaternions.tolist()):
        names = [f"{name}_{id}" for name in frames.names]
        headers = [Header(stamp=header.stamp, frame_id=name) for name in names]
        for name, parent, (x, y, z), (qx, qy, qz, qw) in zip(names, frames.parents, places, turns):
            place = Transform(translation=Vector3(x=x, y=y, z=z), rotation=Quaternion(x=qx, y=qy, z=qz, w=qw))
            own = header if parent < 0 else headers[parent]
            sent.append(TransformStamped(header=own, child_frame_id=name, transform=place))
    return sent


def _array(code: str, values: ArrayLike) -> array:
    filled = array(code)
    filled.frombytes(np.ascontiguousarray(values, np.dtype(code)).tobytes())
    return filled


def _points(values: Any) -> NDArray[np.float32]:
    return np.asarray(values, np.float32).reshape(-1, 3)
