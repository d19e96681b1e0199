"""Marker messages as bytes straight from numpy: what `publisher.publish` sends without serializing.

An ordinary path makes a geometry_msgs/Point object of every corner of every triangle, tens of thousands an image.
Here rclpy serializes a small message of the same markers once, with marks in the fields that change. The marks'
places are remembered, and from then on numbers are written there and blocks of numpy's memory put in. Points have 24
bytes, a multiple of every alignment of CDR, so their number moves nothing else out of line.

References: OMG DDS-XTypes 1.3, 7.4 (CDR version 1); visualization_msgs/Marker for the order of the fields.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deformer_ros.message_types import ROS, MessageTypes

ENCAPSULATION = 4
"""Bytes before the message; alignment counts from behind them."""
TEXT_LENGTH = 16
"""Bytes of the text of a marker that has one; shorter ones are padded with blanks on both sides."""

# Bit patterns that no other field of the markers holds.
_STAMP = (0x5EED1234, 0x1EAF5EED)
_ID = 0x5EED1D1D
_POSITION = tuple(struct.unpack("<3d", bytes(range(0x91, 0xA9))))
_COLOR = tuple(struct.unpack("<4f", bytes(range(0x31, 0x41))))
_POINT = tuple(struct.unpack("<3d", bytes(range(0xC1, 0xD9))))
_TEXT = "~" * TEXT_LENGTH


class Marks(NamedTuple):
    """What changes from image to image in one marker."""

    id: int
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    color: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    text: str = ""
    """ASCII; for markers that have a text in the template only."""
    points: NDArray | None = None
    """(N, 3), N > 0; for markers that have points in the template only."""


class _Places(NamedTuple):
    """Offsets in the template's bytes; -1 for what the marker does not have."""

    stamp: int
    id: int
    position: int
    color: int
    text: int
    number: int
    points: int


class MarkerTemplate:
    """The bytes of a MarkerArray with the given markers, to be filled in.

    markers: visualization_msgs/Marker objects, which are changed. Those with any text get texts, those with any point
    get points.

    Raises:
        ValueError: the bytes are not laid out as expected.
    """

    def __init__(self, markers: Sequence[Any], types: MessageTypes = ROS) -> None:
        Point = types("geometry_msgs/msg/Point")
        for marker in markers:
            marker.header.stamp.sec, marker.header.stamp.nanosec = _STAMP
            marker.id = _ID
            position, color = marker.pose.position, marker.color
            position.x, position.y, position.z = _POSITION
            color.r, color.g, color.b, color.a = _COLOR
            marker.text = _TEXT if marker.text else ""
            marker.points = [Point(x=_POINT[0], y=_POINT[1], z=_POINT[2])] if marker.points else []
        raw = types.serialize(types("visualization_msgs/msg/MarkerArray")(markers=list(markers)))
        self._places: list[_Places] = []
        end = 0
        for marker in markers:
            self._places.append(_find(raw, end, bool(marker.text), bool(marker.points)))
            end = max(self._places[-1])
        self._raw = raw

    def fill(self, stamp: Any, marks: Sequence[Marks]) -> bytes:
        """The message for a builtin_interfaces/Time, with one `Marks` a marker."""
        raw = bytearray(self._raw)
        pieces: list[Any] = []
        start = 0
        view = memoryview(raw)
        for places, mark in zip(self._places, marks):
            struct.pack_into("<iI", raw, places.stamp, stamp.sec, stamp.nanosec)
            struct.pack_into("<i", raw, places.id, mark.id)
            struct.pack_into("<3d", raw, places.position, *mark.position)
            struct.pack_into("<4f", raw, places.color, *mark.color)
            if places.text >= 0:
                raw[places.text : places.text + TEXT_LENGTH] = pad_text(mark.text).encode("ascii")
            if places.points >= 0 and mark.points is not None:
                struct.pack_into("<I", raw, places.number, len(mark.points))
                block = np.ascontiguousarray(mark.points, "<f8")
                pieces += [view[start : places.points], block.data.cast("B")]
                start = places.points + 24
        return b"".join([*pieces, view[start:]])


def pad_text(text: str) -> str:
    """The text as it is sent, `TEXT_LENGTH` long and in the middle."""
    return text[:TEXT_LENGTH].center(TEXT_LENGTH)


def _find(raw: bytes, start: int, has_text: bool, has_points: bool) -> _Places:
    """The places of one marker's fields, in the order of visualization_msgs/Marker."""
    stamp = raw.index(struct.pack("<iI", *_STAMP), start)
    id = raw.index(struct.pack("<i", _ID), stamp)
    position = raw.index(struct.pack("<3d", *_POSITION), id)
    color = raw.index(struct.pack("<4f", *_COLOR), position)
    # The colour is followed by lifetime (8 bytes), frame_locked (1 byte) and the number of points.
    number = points = text = -1
    if has_points:
        number = _align(color + 16 + 8 + 1, 4)
        points = raw.index(struct.pack("<3d", *_POINT), color)
        if raw[number : number + 4] != struct.pack("<I", 1) or points != _align(number + 4, 8):
            raise ValueError("the number of points is not where it should be")
    if has_text:
        text = raw.index(_TEXT.encode("ascii"), color)
    return _Places(stamp, id, position, color, text, number, points)


def _align(offset: int, size: int) -> int:
    return offset + (ENCAPSULATION - offset) % size
