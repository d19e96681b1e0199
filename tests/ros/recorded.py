"""Small bags of moving pictures, and what is in a bag."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg

import deformer_core
from deformer_ros.bag_io import BagTypes

BOXES = np.array([[25, 15, 135, 225], [185, 15, 295, 225]], np.float32)
"""Where the walkers are."""
START, STEP = 1_700_000_000_000_000_000, 33_400_000
IMAGE, INFO = "/camera/image_raw", "/camera/camera_info"
TYPES = BagTypes()
# A type that no ROS has, as a robot's own messages are.
TYPES.store.register(get_types_from_msg("float32[] values\nstring name", "robot_msgs/msg/Gripper"))
LATCHED = Qos(
    QosHistory.KEEP_ALL,
    3,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    QosTime(1, 5),
    QosTime(2, 6),
    QosLiveliness.MANUAL_BY_TOPIC,
    QosTime(3, 7),
    True,
)


class Recorded(NamedTuple):
    """A message as it lies in a bag."""

    topic: str
    time: int
    raw: bytes

    def decoded(self, kind: str) -> Any:
        return TYPES.deserialize(self.raw, kind)


def walkers(count: int) -> list[np.ndarray]:
    """(240, 320, 3) RGB pictures: somebody who walks on the spot, and beside them in a mirror."""
    clip = cv2.VideoCapture(str(Path(deformer_core.__file__).parent / "data/demo/clip.mp4"))
    pictures = []
    for index in range(count):
        middle = 618 - 5 * index
        half = clip.read()[1][244:484, middle - 80 : middle + 80, ::-1]
        pictures.append(np.concatenate([half, half[:, ::-1]], 1))
    return pictures


def header(time: int, frame: str = "camera_optical_frame") -> Any:
    stamp = TYPES("builtin_interfaces/msg/Time")(sec=time // 10**9, nanosec=time % 10**9)
    return TYPES("std_msgs/msg/Header")(stamp=stamp, frame_id=frame)


def image(picture: np.ndarray, time: int, **fields: Any) -> Any:
    height, width = picture.shape[:2]
    values = {"height": height, "width": width, "encoding": "rgb8", "step": width * 3, "data": picture.ravel()}
    return TYPES("sensor_msgs/msg/Image")(header=header(time), **{**values, **fields})


def jpeg(picture: np.ndarray, time: int) -> Any:
    data = cv2.imencode(".jpg", picture)[1].ravel()
    return TYPES("sensor_msgs/msg/CompressedImage")(header=header(time), format="jpeg", data=data)


def camera_info(time: int, focal: float = 300.0) -> Any:
    k = np.array([focal, 0, 160, 0, focal, 120, 0, 0, 1.0])
    p = np.insert(k.reshape(3, 3), 3, 0, 1).ravel()
    fields = {"height": 240, "width": 320, "distortion_model": "plumb_bob", "d": np.zeros(5), "k": k, "p": p}
    return TYPES("sensor_msgs/msg/CameraInfo")(header=header(time), **fields)


def gripper(rng: np.random.Generator) -> Any:
    values = rng.normal(size=rng.integers(1, 9)).astype(np.float32)
    return TYPES("robot_msgs/msg/Gripper")(values=values, name="left")


def transform(time: int) -> Any:
    moved = TYPES("geometry_msgs/msg/TransformStamped")(header=header(time, "map"), child_frame_id="base")
    return TYPES("tf2_msgs/msg/TFMessage")(transforms=[moved])


def write_bag(
    path: Path,
    storage: StoragePlugin,
    messages: Sequence[tuple[str, int, Any]],
    compression: CompressionMode = CompressionMode.NONE,
) -> Path:
    """messages: topic, record time, message."""
    writer = Writer(path, version=9, storage_plugin=storage)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    connections: dict[str, Any] = {}
    with writer:
        for topic, time, message in messages:
            if topic not in connections:
                qos = [LATCHED] if topic == "/gripper" else []
                connections[topic] = writer.add_connection(
                    topic, message.__msgtype__, typestore=TYPES.store, offered_qos_profiles=qos
                )
            writer.write(connections[topic], time, TYPES.serialize(message))
    return path


def scene(pictures: Sequence[np.ndarray], rng: np.random.Generator) -> list[tuple[str, int, Any]]:
    """A camera with its calibration, a gripper and transforms, at times of their own; some at the very same."""
    messages: list[tuple[str, int, Any]] = [("/gripper", START - 5, gripper(rng)), ("/tf", START, transform(START))]
    for index, picture in enumerate(pictures):
        stamp = START + index * STEP
        messages += [
            (IMAGE, stamp + 7, image(picture, stamp)),
            (INFO, stamp + 7, camera_info(stamp)),
            ("/gripper", stamp + 8 + int(rng.integers(STEP // 2)), gripper(rng)),
        ]
    return [*messages, ("/tf", START + len(pictures) * STEP, transform(START))]


def topics(path: Path) -> dict[str, tuple]:
    """Type, definition, hash and quality of service by topic."""
    with Reader(path) as reader:
        return {c.topic: (c.msgtype, c.msgdef, c.digest, c.ext) for c in reader.connections}


def read(path: Path) -> list[Recorded]:
    with Reader(path) as reader:
        return [Recorded(c.topic, time, bytes(raw)) for c, time, raw in reader.messages(reader.connections)]


def of(messages: Sequence[Recorded], topic: str) -> list[Recorded]:
    return [message for message in messages if message.topic == topic]


def storage_file(bag: Path) -> Path:
    (file,) = (path for path in bag.iterdir() if path.suffix != ".yaml")
    return file


def original(messages: Sequence[Recorded]) -> list[Recorded]:
    """Without what was added: /tf has a message of its own before and after all images."""
    tf = of(messages, "/tf")
    return [m for m in messages if not m.topic.startswith("/human_mesh/") and m not in tf[1:-1]]


class Stop(BaseException):
    """What nobody catches, as a kill."""


STOP = Stop()


def stop_after(count: int, engine: Any, monkeypatch: Any, error: BaseException = STOP) -> list[int]:
    """Let an engine raise once, after so many calls. Returns the crops of each call, as they come."""
    calls: list[int] = []
    honest = type(engine).__call__

    def call(self: Any, crops: np.ndarray, box: np.ndarray) -> Any:
        calls.append(len(crops))
        if len(calls) == count + 1:
            raise error
        return honest(self, crops, box)

    monkeypatch.setattr(type(engine), "__call__", call)
    return calls


@contextmanager
def smallest_files(limit: int) -> Iterator[None]:
    """No file grows beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
