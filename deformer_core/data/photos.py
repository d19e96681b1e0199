"""Image files as arrays, in the orientation in which their pixels are stored: that is what labels count in."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deformer_core.errors import InputError

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)
"""JPEG markers within the range of the frame headers that are none."""


class Photo(Protocol):
    """An image that is not read yet."""

    def load(self) -> NDArray[np.uint8]:
        """(H, W, 3) RGB. Errors: `InputError`."""

    def size(self) -> tuple[int, int]:
        """Width and height. Errors: `InputError`."""


@dataclass(frozen=True)
class PhotoFile:
    """One in a file of its own."""

    path: Path

    def load(self) -> NDArray[np.uint8]:
        return read_photo(self.path)

    def size(self) -> tuple[int, int]:
        return encoded_size(_read_bytes(self.path), str(self.path))


def read_photo(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB. Errors: `InputError` if it is not a readable image."""
    return decode_photo(_read_bytes(path), str(path))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the image {path} is missing or cannot be read ({error.strerror}): check the folder of the images"
        ) from error


def decode_photo(data: bytes, name: str) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of an encoded image; name: for the error."""
    import cv2

    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise InputError(f"{name} is damaged or not an image: fetch it again")
    return np.ascontiguousarray(image[..., ::-1])


def encoded_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height of an encoded image; JPEG (ITU T.81) and PNG are not decoded for it."""
    if data.startswith(_PNG) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    if data.startswith(_JPEG):
        place = len(_JPEG)
        while place + 9 <= len(data) and data[place] == 0xFF:
            marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
            if 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
                height, width = struct.unpack(">HH", data[place + 5 : place + 9])
                return width, height
            place += 2 + length
    image = decode_photo(data, name)
    return image.shape[1], image.shape[0]
