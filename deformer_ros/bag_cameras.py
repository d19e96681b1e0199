"""The cameras in a bag: which topics are whose, and what will be written for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from deformer_core.errors import InputError
from deformer_ros.bag_io import BagReader, Connection
from deformer_ros.pipeline import looks_rectified

NODE = "/human_mesh"
"""Where the live node's own topics are."""
IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
INFO = "sensor_msgs/msg/CameraInfo"


class Camera(NamedTuple):
    """One of the bag's cameras. name: prefixes its output topics. info: topic of its calibration."""

    name: str
    image: str
    type: str
    info: str | None
    is_rectified: bool

    @property
    def prefix(self) -> str:
        return f"{NODE}/{self.name}/" if self.name else f"{NODE}/"


def find_cameras(
    reader: BagReader, images: Sequence[str], infos: Sequence[str] = (), rectification: str = "auto"
) -> list[Camera]:
    """The cameras of the given image topics.

    infos: CameraInfo topics in the same order; by default `camera_info` beside each image, where the bag has it.

    Raises:
        InputError: the bag has no such topic, or it is of another type.
    """
    topics = [_absolute(topic) for topic in images]
    if len(set(topics)) < len(topics):
        raise InputError("--image names a topic twice: give each once")
    if infos and len(infos) != len(images):
        raise InputError(f"there are {len(images)} --image and {len(infos)} --camera-info: give one for each, or none")
    types = [_type_of(reader, topic, IMAGES, "image") for topic in topics]
    for topic in infos:
        _type_of(reader, _absolute(topic), (INFO,), "CameraInfo")
    has_info = {connection.topic for connection in reader.connections if connection.msgtype == INFO}
    beside = [f"{_namespace(topic)}/camera_info" for topic in topics]
    given: list[str | None] = [_absolute(topic) for topic in infos]
    known = given or [topic if topic in has_info else None for topic in beside]
    rectified = [
        rectification == "rectified" or (rectification == "auto" and looks_rectified(topic)) for topic in topics
    ]
    return [Camera(*fields) for fields in zip(_names(topics), topics, types, known, rectified)]


def _type_of(reader: BagReader, topic: str, types: Sequence[str], what: str) -> str:
    fitting = sorted({connection.topic for connection in reader.connections if connection.msgtype in types})
    choice = f"its {what} topics are {', '.join(fitting)}" if fitting else f"it has no {what} topic at all"
    found = of_topics(reader, [topic])
    if not found:
        raise InputError(f"the bag {reader.path} has no topic {topic}: {choice}")
    if found[0].msgtype not in types:
        raise InputError(f"the topic {topic} of {reader.path} is of type {found[0].msgtype}: {choice}")
    if not sum(connection.msgcount for connection in found):
        raise InputError(f"the topic {topic} of {reader.path} is empty: {choice}")
    return found[0].msgtype


def check_free(reader: BagReader, cameras: Iterable[Camera]) -> None:
    """Errors: `InputError` if the bag has the output topics already."""
    ours = {f"{NODE}/topology"} | {f"{camera.prefix}{name}" for camera in cameras for name in ("meshes", "markers")}
    if taken := ours & {connection.topic for connection in reader.connections}:
        raise InputError(f"the bag {reader.path} holds {', '.join(sorted(taken))} already: use the bag it was made of")


def of_topics(reader: BagReader, topics: Sequence[str]) -> list[Connection]:
    return [connection for connection in reader.connections if connection.topic in topics]


def _names(topics: Sequence[str]) -> list[str]:
    """A camera's name is its topic's namespace; a single camera has none."""
    if len(topics) == 1:
        return [""]
    names = [_namespace(topic).strip("/").replace("/", "_") for topic in topics]
    if len(set(names)) == len(names) and all(names):
        return names
    return [topic.strip("/").replace("/", "_") for topic in topics]


def _namespace(topic: str) -> str:
    """`/front` of /front/image_raw and of /front/image_raw/compressed."""
    return topic.removesuffix("/compressed").rpartition("/")[0]


def _absolute(topic: str) -> str:
    return f"/{topic.strip('/')}"
