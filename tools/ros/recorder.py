"""Records topics into a bag without rosbag2: serialized messages as they come, written by rosbags."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from types import TracebackType

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import Connection, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.interfaces import Qos as BagQos
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

MESSAGES = Path(__file__).parents[2] / "msg"
_FOREVER = QosTime(2147483647, 4294967295)


def typestore() -> Typestore:
    """Jazzy's messages and this package's."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for file in MESSAGES.glob("*.msg"):
        store.register(get_types_from_msg(file.read_text(), f"deformer_ros/msg/{file.stem}"))
    return store


class Recorder:
    """Writes what a node hears into a new bag, with the time of arrival.

    topics: to message types as `package/msg/Name`. latched: those of them that are sent once and kept.
    """

    def __init__(self, node: Node, path: Path, topics: dict[str, str], latched: tuple[str, ...] = ()):
        self._node, self._topics, self._latched = node, topics, latched
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)

    def __enter__(self) -> Recorder:
        self._writer.open()
        store = typestore()
        for topic, kind in self._topics.items():
            is_latched = topic in self._latched
            qos = _bag_qos(is_latched)
            connection = self._writer.add_connection(topic, kind, typestore=store, offered_qos_profiles=[qos])
            self._subscribe(connection, kind, is_latched)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def _subscribe(self, connection: Connection, kind: str, is_latched: bool) -> None:
        package, _, name = kind.partition("/msg/")
        profile = QoSProfile(
            depth=1 if is_latched else 100,
            reliability=ReliabilityPolicy.RELIABLE if is_latched else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if is_latched else DurabilityPolicy.VOLATILE,
        )
        self._node.create_subscription(
            getattr(import_module(f"{package}.msg"), name),
            connection.topic,
            lambda raw: self._writer.write(connection, time.time_ns(), raw),
            profile,
            raw=True,
        )


def _bag_qos(is_latched: bool) -> BagQos:
    return BagQos(
        QosHistory.KEEP_LAST,
        1 if is_latched else 10,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if is_latched else QosDurability.VOLATILE,
        _FOREVER,
        _FOREVER,
        QosLiveliness.AUTOMATIC,
        _FOREVER,
        False,
    )
