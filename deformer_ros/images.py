"""Image messages to RGB arrays, without cv_bridge (its Python half breaks with NumPy 2) but with its meanings.

Everything here reads attributes and bytes only: `sensor_msgs` of rclpy and of `rosbags` serve alike.
Encodings: sensor_msgs/image_encodings.hpp; conversions: cv_bridge/src/cv_bridge.cpp.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple, Protocol, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from deformer_core.errors import InputError

Rgb = NDArray[np.uint8]


class ImageMessage(Protocol):
    """sensor_msgs/Image."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: Any


class CompressedMessage(Protocol):
    """sensor_msgs/CompressedImage."""

    format: str
    data: Any


class _Packed(NamedTuple):
    """An encoding whose pixels lie one after the other. code: OpenCV's conversion to RGB, None if it is RGB."""

    channels: int
    depth: int
    code: int | None


_PACKED = {
    "rgb8": _Packed(3, 8, None),
    "bgr8": _Packed(3, 8, cv2.COLOR_BGR2RGB),
    "rgba8": _Packed(4, 8, cv2.COLOR_RGBA2RGB),
    "bgra8": _Packed(4, 8, cv2.COLOR_BGRA2RGB),
    "mono8": _Packed(1, 8, cv2.COLOR_GRAY2RGB),
    "8UC1": _Packed(1, 8, cv2.COLOR_GRAY2RGB),  # as image_view shows them
    "8UC3": _Packed(3, 8, cv2.COLOR_BGR2RGB),
    "rgb16": _Packed(3, 16, None),
    "bgr16": _Packed(3, 16, cv2.COLOR_BGR2RGB),
    "rgba16": _Packed(4, 16, cv2.COLOR_RGBA2RGB),
    "bgra16": _Packed(4, 16, cv2.COLOR_BGRA2RGB),
    "mono16": _Packed(1, 16, cv2.COLOR_GRAY2RGB),
    "yuv422": _Packed(2, 8, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": _Packed(2, 8, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": _Packed(2, 8, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": _Packed(2, 8, cv2.COLOR_YUV2RGB_YUY2),
} | {
    f"bayer_{order}{depth}": _Packed(1, depth, code)
    for depth in (8, 16)
    for order, code in (
        # OpenCV names a mosaic by the second row's second and third pixels.
        ("rggb", cv2.COLOR_BayerBG2RGB),
        ("bggr", cv2.COLOR_BayerRG2RGB),
        ("gbrg", cv2.COLOR_BayerGR2RGB),
        ("grbg", cv2.COLOR_BayerGB2RGB),
    )
}
_PLANAR = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
_DEPTH = ("16UC1", "32FC1")
_NO_COLORS = "the image is of depths ({}), not of colours: remap to the colour image's topic"
SUPPORTED = (*_PACKED, *_PLANAR)

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_JPEG_END, _PNG_END = b"\xff\xd9", b"IEND"


def image_to_rgb(message: ImageMessage | CompressedMessage) -> Rgb:
    """(H, W, 3) uint8 RGB of a sensor_msgs/Image or CompressedImage.

    rgb8 is a view of the message's data (which may be read-only, and whose rows may be padded); anything else is
    converted once. 16 bits are scaled as cv_bridge does, 65535 to 255. The stored orientation is kept, since the
    camera's calibration is that of the stored pixels.

    Raises:
        InputError: an image that is empty, damaged, of depths, or of an encoding that nothing here can convert.
    """
    if hasattr(message, "format"):
        return _decode(cast(CompressedMessage, message))
    if message.width <= 0 or message.height <= 0:
        raise InputError(f"the image has {message.width}x{message.height} pixels: check the camera's driver")
    if message.encoding in _PACKED:
        return _packed(message, _PACKED[message.encoding])
    if message.encoding in _PLANAR:
        return _planar(message, _PLANAR[message.encoding])
    if message.encoding in _DEPTH:
        raise InputError(_NO_COLORS.format(message.encoding))
    return _by_cv_bridge(message)


def _packed(message: ImageMessage, form: _Packed) -> Rgb:
    size = form.depth // 8
    kind: np.dtype = np.dtype(np.uint8 if size == 1 else ">u2" if message.is_bigendian else "<u2")
    if form.channels == 2 and message.width % 2:
        raise InputError(
            f"the image of encoding {message.encoding} has {message.width} columns: there are two per colour"
        )
    rows = _rows(message, message.width * form.channels * size, message.height)
    # A view, also of padded rows and of odd steps.
    pixels: NDArray = np.ndarray(
        (message.height, message.width, form.channels), kind, rows, strides=(message.step, form.channels * size, size)
    )
    if size == 2:
        pixels = np.ascontiguousarray(pixels, np.uint16)  # native order
    if form.code is not None:
        pixels = np.asarray(cv2.cvtColor(pixels[..., 0] if form.channels == 1 else pixels, form.code))
    return _to_8_bits(pixels)


def _planar(message: ImageMessage, code: int) -> Rgb:
    """Semi-planar 4:2:0: a plane of luma, then one of half the rows with the two chromas in turn."""
    if message.width % 2 or message.height % 2:
        raise InputError(
            f"the image of encoding {message.encoding} has {message.width}x{message.height} pixels: both must be even"
        )
    height = message.height * 3 // 2
    rows = _rows(message, message.width, height)
    planes = np.ndarray((height, message.width), np.uint8, rows, strides=(message.step, 1))
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(planes), code), np.uint8)


def _rows(message: ImageMessage, row: int, height: int) -> NDArray[np.uint8]:
    """The message's bytes, once they are known to hold `height` rows of `row` bytes."""
    data = _bytes(message.data)
    if message.step < row:
        raise InputError(
            f"the image's step is {message.step} bytes, but {message.width} pixels of encoding {message.encoding} take "
            f"{row}: check the camera's driver"
        )
    needed = message.step * (height - 1) + row
    if data.size < needed:
        raise InputError(
            f"the image holds {data.size} bytes, but {message.width}x{message.height} pixels of encoding "
            f"{message.encoding} with a step of {message.step} take {needed}: check the camera's driver"
        )
    return data


def _decode(message: CompressedMessage) -> Rgb:
    """JPEG or PNG (or what else OpenCV reads). `format` is as compressed_image_transport writes it."""
    data, form = _bytes(message.data), message.format.lower()
    if "depth" in form:
        raise InputError(_NO_COLORS.format(message.format))
    if _is_cut_off(data.tobytes()):
        raise InputError(f"the compressed image ({message.format}, {data.size} bytes) is cut off: check the network")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error:
        image = None
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"the compressed image ({message.format}, {data.size} bytes) cannot be decoded: "
            "it is damaged, or neither jpeg nor png"
        )
    # Files hold what OpenCV takes for BGR, unless the sender says that it stored RGB in BGR's place.
    return _to_8_bits(np.asarray(image if "compressed rgb" in form else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)))


def _is_cut_off(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end, which decoders may fill with grey without a word."""
    if data.startswith(_JPEG):
        return data.rfind(_JPEG_END) < 0
    return data.startswith(_PNG) and data.rfind(_PNG_END) < 0


def _by_cv_bridge(message: ImageMessage) -> Rgb:
    """Rarer encodings, where a cv_bridge is installed and works."""
    try:
        return importlib.import_module("cv_bridge").CvBridge().imgmsg_to_cv2(message, "rgb8")
    except Exception as error:  # built for another NumPy it raises anything; its own errors are not ValueErrors
        raise InputError(
            f"the image's encoding '{message.encoding}' cannot be converted: send one of {', '.join(SUPPORTED)}"
        ) from error


def _to_8_bits(pixels: NDArray) -> Rgb:
    return pixels if pixels.dtype == np.uint8 else np.asarray(cv2.convertScaleAbs(pixels, alpha=255 / 65535), np.uint8)


def _bytes(data: Any) -> NDArray[np.uint8]:
    """A view of bytes, array.array or numpy data."""
    return np.frombuffer(data, np.uint8) if len(data) else np.zeros(0, np.uint8)
