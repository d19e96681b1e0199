"""Every encoding against a picture whose colours are known, and every way a message can be broken."""

import array
import sys
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from deformer_core.errors import InputError
from deformer_ros.images import SUPPORTED, image_to_rgb

HEIGHT, WIDTH = 24, 32


@pytest.fixture
def picture(rng: np.random.Generator) -> np.ndarray:
    """Smooth, so that subsampled colours can be compared, and different in all channels and corners."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / 32.0
    phase = rng.uniform(0, 1, 3)
    waves = [np.sin(x + 3 * p) * 50 + (1 - 2 * p) * 40 * y + base for p, base in zip(phase, (90, 120, 160))]
    return np.clip(np.stack(waves, -1), 0, 255).astype(np.uint8)


def message(encoding: str, rows: np.ndarray, padding: int = 0, big: bool = False, width: int = WIDTH) -> Any:
    """rows: (H, row) bytes or 16-bit numbers, of the whole image."""
    data = rows.astype(">u2" if big else "<u2") if rows.dtype == np.uint16 else rows
    raw = data.reshape(len(rows), -1).view(np.uint8)
    padded = np.pad(raw, ((0, 0), (0, padding)), constant_values=0xEE)
    return SimpleNamespace(
        height=HEIGHT, width=width, encoding=encoding, is_bigendian=big, step=padded.shape[1], data=padded.tobytes()
    )


def luma_chroma(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) Y, U, V of ITU-R BT.601 in video range, written out."""
    r, g, b = np.moveaxis(picture.astype(np.float64), -1, 0)
    y = 16 + (65.738 * r + 129.057 * g + 25.064 * b) / 256
    u = 128 + (-37.945 * r - 74.494 * g + 112.439 * b) / 256
    v = 128 + (112.439 * r - 94.154 * g - 18.285 * b) / 256
    return np.stack([y, u, v], -1)


def encode(encoding: str, picture: np.ndarray) -> np.ndarray:
    """The picture as a camera would send it, made without OpenCV's conversions."""
    if encoding.endswith("16"):
        return encode(encoding[:-2] + "8", picture).astype(np.uint16) * 257
    opaque = np.full((HEIGHT, WIDTH, 1), 200, np.uint8)
    gray = np.repeat(picture.mean(-1, keepdims=True).astype(np.uint8), 3, -1)
    order = {"rgb8": picture, "rgba8": np.dstack([picture, opaque]), "mono8": gray[..., 0], "8UC1": gray[..., 0]}
    order |= {"bgr8": picture[..., ::-1], "8UC3": picture[..., ::-1]}
    order["bgra8"] = np.dstack([picture[..., ::-1], opaque])
    if encoding in order:
        return np.ascontiguousarray(order[encoding]).reshape(HEIGHT, -1)
    if encoding.startswith("bayer"):
        mosaic = np.empty((HEIGHT, WIDTH), np.uint8)
        for index, color in enumerate(encoding[6:10]):
            top, left = divmod(index, 2)
            mosaic[top::2, left::2] = picture[top::2, left::2, "rgb".index(color)]
        return mosaic
    y, u, v = np.moveaxis(np.round(luma_chroma(picture)).astype(np.uint8), -1, 0)
    if encoding in ("nv12", "nv21"):
        chroma = [u[::2, ::2], v[::2, ::2]][:: 1 if encoding == "nv12" else -1]
        return np.vstack([y, np.stack(chroma, -1).reshape(HEIGHT // 2, WIDTH)])
    pairs = [u[:, ::2], y[:, ::2], v[:, ::2], y[:, 1::2]]
    if encoding in ("yuv422_yuy2", "yuyv"):
        pairs = [y[:, ::2], u[:, ::2], y[:, 1::2], v[:, ::2]]
    return np.stack(pairs, -1).reshape(HEIGHT, -1)


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("encoding", SUPPORTED)
def test_every_encoding_gives_the_picture(encoding: str, padding: int, picture: np.ndarray) -> None:
    got = image_to_rgb(message(encoding, encode(encoding, picture), padding))
    expected = picture
    if encoding.startswith(("mono", "8UC1")):
        expected = np.repeat(picture.mean(-1, keepdims=True).astype(np.uint8), 3, -1)
    assert got.shape == (HEIGHT, WIDTH, 3) and got.dtype == np.uint8
    difference = np.abs(got.astype(int) - expected)
    subsampled = encoding.startswith(("yuv", "uyvy", "yuyv", "nv", "bayer"))
    inner = difference[2:-2, 2:-2] if subsampled else difference
    assert inner.max() <= (8 if subsampled else 0)


@pytest.mark.parametrize("encoding", [name for name in SUPPORTED if name.endswith("16")])
def test_both_byte_orders_agree(encoding: str, picture: np.ndarray) -> None:
    rows = encode(encoding, picture)
    little, big = (image_to_rgb(message(encoding, rows, 3, big)) for big in (False, True))
    np.testing.assert_array_equal(little, big)


def test_16_bits_scale_as_cv_bridge_does() -> None:
    rows = np.full((HEIGHT, WIDTH), 30000, np.uint16)
    assert (image_to_rgb(message("mono16", rows)) == round(30000 * 255 / 65535)).all()


@pytest.mark.parametrize("padding", [0, 5])
def test_rgb8_is_a_view(padding: int, picture: np.ndarray) -> None:
    raw = message("rgb8", encode("rgb8", picture), padding)
    raw.data = np.frombuffer(raw.data, np.uint8)
    assert np.shares_memory(image_to_rgb(raw), raw.data)


def test_a_last_row_without_its_padding_is_enough(picture: np.ndarray) -> None:
    raw = message("rgb8", encode("rgb8", picture), 10)
    raw.data = raw.data[:-10]
    np.testing.assert_array_equal(image_to_rgb(raw), picture)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0}, "0x24 pixels"),
        ({"height": 0}, "32x0 pixels"),
        ({"step": 95}, "step is 95 bytes, but 32 pixels of encoding rgb8 take 96"),
        ({"step": 0}, "step is 0 bytes"),
        ({"height": 4000}, "holds 2304 bytes, but 32x4000 pixels"),
        ({"width": 2**31, "step": 3 * 2**31}, "holds 2304 bytes"),
        ({"data": b""}, "holds 0 bytes"),
        ({"encoding": "16UC1"}, "of depths"),
        ({"encoding": "32FC1"}, "of depths"),
        ({"encoding": "yuv999"}, "'yuv999' cannot be converted: send one of rgb8, bgr8"),
        ({"encoding": ""}, "'' cannot be converted"),
        ({"encoding": "yuv422", "width": 31}, "31 columns"),
        ({"encoding": "nv12", "height": 23}, "both must be even"),
    ],
)
def test_broken_images_are_said(changes: dict[str, Any], words: str, picture: np.ndarray) -> None:
    raw = message("rgb8", encode("rgb8", picture))
    with pytest.raises(InputError, match=words):
        image_to_rgb(SimpleNamespace(**vars(raw) | changes))


def compressed(data: bytes, form: str) -> Any:
    return SimpleNamespace(format=form, data=data)


def file_of(suffix: str, rgb: np.ndarray) -> bytes:
    return cv2.imencode(suffix, np.ascontiguousarray(rgb[..., ::-1]))[1].tobytes()


@pytest.mark.parametrize(
    ("suffix", "form", "tolerance"),
    [
        (".png", "png", 0),
        (".png", "rgb8; png compressed bgr8", 0),
        (".jpg", "jpeg", 12),
        (".jpg", "bgr8; jpeg compressed bgr8", 12),
        (".jpg", "rgb8; jpeg compressed ", 12),
    ],
)
def test_compressed_images(suffix: str, form: str, tolerance: int, picture: np.ndarray) -> None:
    got = image_to_rgb(compressed(file_of(suffix, picture), form))
    assert np.abs(got.astype(int) - picture).max() <= tolerance


def test_compressed_rgb_is_not_turned_again(picture: np.ndarray) -> None:
    """A sender that compressed RGB as if it were BGR says so."""
    data = file_of(".png", picture[..., ::-1])
    np.testing.assert_array_equal(image_to_rgb(compressed(data, "rgb8; png compressed rgb8")), picture)


def test_compressed_gray_and_16_bits(picture: np.ndarray) -> None:
    gray = picture[..., 0]
    for pixels in (gray, gray.astype(np.uint16) * 257):
        data = cv2.imencode(".png", pixels)[1].tobytes()
        np.testing.assert_array_equal(image_to_rgb(compressed(data, "mono16; png compressed ")), np.dstack([gray] * 3))


def test_stored_orientation_is_kept(picture: np.ndarray) -> None:
    """A calibration is one of the stored pixels, whatever Exif says of how to hold the picture."""
    data = file_of(".jpg", picture)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (WIDTH, HEIGHT)
    assert image_to_rgb(compressed(turned, "jpeg")).shape[:2] == (HEIGHT, WIDTH)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.98])
def test_cut_off_files_are_said(suffix: str, share: float, picture: np.ndarray) -> None:
    data = file_of(suffix, picture)
    with pytest.raises(InputError, match="cut off|cannot be decoded"):
        image_to_rgb(compressed(data[: int(len(data) * share)], suffix[1:]))


def test_other_bytes_are_said(rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="cannot be decoded"):
        image_to_rgb(compressed(rng.bytes(999), "jpeg"))
    with pytest.raises(InputError, match="of depths"):
        image_to_rgb(compressed(b"\0" * 20, "16UC1; compressedDepth png"))


def test_real_messages(picture: np.ndarray) -> None:
    messages = pytest.importorskip("sensor_msgs.msg", reason="needs ROS 2's sensor_msgs")
    data = array.array("B", encode("bgr8", picture).tobytes())
    image = messages.Image(height=HEIGHT, width=WIDTH, encoding="bgr8", step=3 * WIDTH, data=data)
    np.testing.assert_array_equal(image_to_rgb(image), picture)
    file = messages.CompressedImage(format="png", data=array.array("B", file_of(".png", picture)))
    np.testing.assert_array_equal(image_to_rgb(file), picture)


def test_damaged_files_never_crash(picture: np.ndarray, rng: np.random.Generator) -> None:
    for suffix in (".jpg", ".png"):
        data = np.frombuffer(file_of(suffix, picture), np.uint8)
        for _ in range(50):
            damaged = data.copy()
            damaged[rng.integers(len(data), size=3)] = rng.integers(256, size=3)
            try:
                assert image_to_rgb(compressed(damaged.tobytes(), suffix[1:])).dtype == np.uint8
            except InputError as error:
                assert "compressed image" in str(error)


def test_rare_encodings_go_through_cv_bridge_where_it_is(picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """cv_bridge comes with a ROS install only: a module with its interface stands in."""

    class CvBridge:
        def imgmsg_to_cv2(self, raw: Any, desired_encoding: str) -> np.ndarray:
            if raw.encoding != "nv24":
                raise RuntimeError("Unrecognized image encoding")
            assert desired_encoding == "rgb8"
            return picture

    monkeypatch.setitem(sys.modules, "cv_bridge", SimpleNamespace(CvBridge=CvBridge))
    raw = message("nv24", encode("rgb8", picture))
    assert image_to_rgb(raw) is picture
    raw.encoding = "other"
    with pytest.raises(InputError, match="'other' cannot be converted"):
        image_to_rgb(raw)
