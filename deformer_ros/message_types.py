"""Message classes and their bytes: those of rclpy on a robot, those of rosbags where there is no ROS (`bag_io`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol


class MessageTypes(Protocol):
    """Makes messages, and turns them into bytes and back."""

    def __call__(self, name: str) -> Callable[..., Any]:
        """The constructor of a type such as std_msgs/msg/Header; fields that it is not given have their defaults."""

    def serialize(self, message: Any) -> bytes:
        """The message in CDR, little-endian, with its encapsulation header."""

    def reads_as(self, raw: bytes, message: Any) -> bool:
        """Whether the bytes decode to this message."""


class RosTypes:
    """Those of rclpy and the installed interface packages, imported when first asked for."""

    def __call__(self, name: str) -> Callable[..., Any]:
        return _ros_type(name)

    def serialize(self, message: Any) -> bytes:
        from rclpy.serialization import serialize_message

        return bytes(serialize_message(message))

    def reads_as(self, raw: bytes, message: Any) -> bool:
        from rclpy.serialization import deserialize_message

        return bool(deserialize_message(raw, type(message)) == message)


ROS = RosTypes()


@cache
def _ros_type(name: str) -> Callable[..., Any]:
    package, _, kind = name.split("/")
    made: Callable[..., Any] = getattr(importlib.import_module(f"{package}.msg"), kind)
    return made
