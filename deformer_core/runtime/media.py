"""Inputs of the command line: photos, folders of photos, videos and webcams, as streams of RGB frames."""

from __future__ import annotations

import os
import re
import signal
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from deformer_core.errors import InputError

PHOTO_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".jpe",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".jp2",
    ".avif",
}
MIN_SIDE = 8
"""Pixels; smaller images hold nobody that could be measured."""
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_QUIET = 0
"""OpenCV's log level without its own error lines: ours name the file."""


@dataclass
class Frame:
    """image: (H, W, 3) uint8 RGB. index: 0 for a photo. time: seconds since the first frame."""

    image: NDArray[np.uint8]
    index: int = 0
    time: float = 0.0


class Source(Protocol):
    """One input. `stem` and `suffix` name its outputs; `count` is None when the number of frames is unknown."""

    name: str
    stem: str
    suffix: str
    is_video: bool
    fps: float

    @property
    def count(self) -> int | None: ...

    def frames(self) -> Iterator[Frame]:
        """Errors: `InputError` that names the file; for a video that breaks off, after its last good frame."""


def find_sources(path: str) -> list[Source]:
    """What one argument of the command line stands for: a photo, a video, a folder of photos, or `webcam:0` / `0`.

    Raises:
        InputError: there is no such file, the folder holds no photo, or the file is no photo and no video.
    """
    camera = re.fullmatch(r"(?:webcam:)?(\d+)", path)
    file = Path(path)
    if camera and not file.exists():
        return [Webcam(int(camera[1]))]
    if file.is_dir():
        photos = sorted(item for item in file.iterdir() if item.suffix.lower() in PHOTO_SUFFIXES)
        if not photos:
            kinds = ", ".join(sorted(PHOTO_SUFFIXES))
            raise InputError(f"folder {path} holds no photo: give a folder of {kinds} files")
        return [Photo(photo) for photo in photos]
    try:
        size = file.stat().st_size
    except OSError as error:
        raise InputError(f"cannot open {path} ({error.strerror}): check the path") from error
    if size == 0:
        raise InputError(f"{path} is empty (0 bytes): copy or download it again")
    if file.suffix.lower() in PHOTO_SUFFIXES or cv2.haveImageReader(path):
        return [Photo(file)]
    return [Video(file)]


class Photo:
    """One image file. EXIF orientation is applied, 16 bits and floats are scaled to 8, alpha is dropped."""

    is_video = False
    fps = 0.0
    count = 1

    def __init__(self, path: Path):
        self.path, self.name, self.stem, self.suffix = path, str(path), path.stem, path.suffix.lower()

    def frames(self) -> Iterator[Frame]:
        yield Frame(read_photo(self.path))


class Video:
    """A video file, opened once here to see that it can be read."""

    is_video = True
    suffix = ".mp4"

    def __init__(self, path: Path):
        self.path, self.name, self.stem = path, str(path), path.stem
        capture = self._open()
        fps, count = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        self.fps = fps if 0 < fps < 1000 else 25.0
        self.count = count if count > 0 else None

    def frames(self) -> Iterator[Frame]:
        capture = self._open()
        index = 0
        try:
            for index, image in enumerate(_read_all(capture), 1):
                yield Frame(image, index - 1, (index - 1) / self.fps)
        finally:
            capture.release()
        if index == 0:
            raise InputError(f"video {self.name} holds no frame that can be decoded: convert it to mp4 first")
        if self.count and index < 0.9 * self.count - 2:  # containers' counts are estimates
            raise InputError(
                f"video {self.name} breaks off after {index} of {self.count} frames: copy or download it again"
            )

    def _open(self) -> cv2.VideoCapture:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        level = cv2.utils.logging.setLogLevel(_QUIET)
        try:
            capture = cv2.VideoCapture(self.name)
        finally:
            cv2.utils.logging.setLogLevel(level)
        if not capture.isOpened() or self._is_text():
            raise InputError(
                f"{self.name} is neither an image nor a video that can be read: check that it is complete, "
                "or convert it to jpg or mp4"
            )
        return capture

    def _is_text(self) -> bool:
        """FFmpeg takes some text files for videos of a terminal; a real container has zero bytes in its header."""
        with self.path.open("rb") as file:
            return b"\0" not in file.read(4096)


class Webcam:
    """A camera of this computer. Its stream ends well on Ctrl-C, so that what was recorded is kept."""

    is_video = True
    suffix = ".mp4"
    fps = 30.0
    count = None

    def __init__(self, index: int):
        self.index, self.name, self.stem = index, f"webcam:{index}", f"webcam{index}"

    def frames(self) -> Iterator[Frame]:
        level = cv2.utils.logging.setLogLevel(_QUIET)
        capture = cv2.VideoCapture(self.index)
        cv2.utils.logging.setLogLevel(level)
        if not capture.isOpened():
            raise InputError(f"cannot open {self.name}: check that the camera is plugged in and not in use")
        stopped = False

        def stop(*_: object) -> None:
            nonlocal stopped
            stopped = True

        previous = signal.signal(signal.SIGINT, stop)
        start = time.monotonic()
        try:
            for index, image in enumerate(_read_all(capture)):
                yield Frame(image, index, time.monotonic() - start)
                if stopped:
                    break
        finally:
            signal.signal(signal.SIGINT, previous)
            capture.release()


def _read_all(capture: cv2.VideoCapture) -> Iterator[NDArray[np.uint8]]:
    while True:
        good, image = capture.read()
        if not good:
            return
        yield _to_rgb8(image)


def read_photo(path: Path) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) uint8 RGB.

    Raises:
        InputError: the file cannot be read, is no image, is cut off, or is smaller than 8 pixels.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot open {path} ({error.strerror}): check the path") from error
    if not data:
        raise InputError(f"{path} is empty (0 bytes): copy or download it again")
    if _is_cut_off(data):
        raise InputError(f"{path} is cut off before its end: copy or download it again")
    level = cv2.utils.logging.setLogLevel(_QUIET)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise InputError(f"{path} cannot be decoded ({error.err}): save it smaller or in another format") from error
    finally:
        cv2.utils.logging.setLogLevel(level)
    if image is None:
        raise InputError(f"{path} is not an image that can be read, or is damaged: save it again as jpg or png")
    if min(image.shape[:2]) < MIN_SIDE:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise InputError(f"{path} has {size} pixels: at least {MIN_SIDE}x{MIN_SIDE} are needed")
    return _to_rgb8(image)


def _to_rgb8(image: NDArray) -> NDArray[np.uint8]:
    """BGR of any depth to RGB of 8 bits, in strips and in place where possible: pictures may have gigabytes."""
    if image.dtype == np.uint8:
        result = image
    else:
        result = np.empty(image.shape, np.uint8)
    scale = _scale_to_8_bits(image)
    for top in range(0, len(image), 256):
        strip = image[top : top + 256]
        if image.dtype != np.uint8:
            strip = np.clip(np.nan_to_num(strip) * scale + 0.5, 0, 255).astype(np.uint8)
        result[top : top + 256] = cv2.cvtColor(strip, cv2.COLOR_BGR2RGB)
    return result


def _scale_to_8_bits(image: NDArray) -> float:
    """Factor to 0..255: integers by the bits in use (cameras store 10 or 12 in 16), floats by 1 or their maximum."""
    if image.dtype == np.uint8:
        return 1.0
    brightest = float(np.nanmax(image))
    if np.issubdtype(image.dtype, np.integer):
        return 255 / (2 ** max(int(brightest).bit_length(), 8) - 1)
    return 255 / max(brightest, 1.0) if np.isfinite(brightest) else 255.0


def _is_cut_off(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end, which decoders may fill with grey without a word."""
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_end(data) is None
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return not _png_is_whole(data)
    return False


def _jpeg_end(data: bytes) -> int | None:
    """Position of the end marker of a JPEG, walked segment by segment: a thumbnail's own end does not count."""
    position = 2
    while True:
        marker = _JPEG_MARKER.search(data, position)
        if marker is None:
            return None
        if marker[0] == b"\xff\xd9":
            return marker.start()
        length = int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        position = marker.end() + length


def _png_is_whole(data: bytes) -> bool:
    """Whether all chunks up to IEND are there with their checksums."""
    position = 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind, end = data[position + 4 : position + 8], position + 8 + length
        if zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if kind == b"IEND":
            return True
        position = end + 4
    return False
