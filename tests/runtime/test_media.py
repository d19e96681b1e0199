"""Inputs of every kind, good and bad, as real files."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from deformer_core.errors import InputError
from deformer_core.runtime.media import Photo, Video, Webcam, find_sources, read_photo


@pytest.fixture
def picture(rng):
    """A smooth (60, 80, 3) RGB picture without symmetry, which survives JPEG."""
    coarse = rng.integers(30, 225, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_CUBIC)


def write(path, image, *options):
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image, *options)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff", ".ppm"])
def test_formats(tmp_path, picture, suffix):
    read = read_photo(write(tmp_path / f"a{suffix}", picture))
    assert read.dtype == np.uint8 and read.shape == picture.shape
    assert np.abs(read.astype(int) - picture).mean() < 4


def test_16_bit_gray_alpha_and_float(tmp_path, picture):
    bright = picture.astype(np.uint16) * 257
    bright[0, 0] = 65535
    np.testing.assert_allclose(read_photo(write(tmp_path / "deep.png", bright))[1:], picture[1:], atol=1)
    camera12 = picture.astype(np.uint16) * 16
    camera12[0, 0] = 4095
    np.testing.assert_allclose(read_photo(write(tmp_path / "12bit.tiff", camera12))[1:], picture[1:], atol=1)
    gray = read_photo(write(tmp_path / "gray.png", picture[..., 0]))
    np.testing.assert_array_equal(gray, picture[..., :1].repeat(3, 2))
    alpha = np.dstack([picture[..., ::-1], np.full((60, 80), 128, np.uint8)])
    np.testing.assert_array_equal(read_photo(write(tmp_path / "alpha.png", alpha)), picture)
    unit = read_photo(write(tmp_path / "float.tiff", (picture / 255).astype(np.float32)))
    np.testing.assert_allclose(unit, picture, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, picture, orientation):
    """Meanings of the EXIF standard: where the stored row 0 and column 0 are in the picture as seen."""
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[::-1].swapaxes(0, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a[:, ::-1].swapaxes(0, 1),
    }[orientation]
    stored = write(tmp_path / "a.jpg", picture).read_bytes()
    entry = struct.pack(">2sHIHHHIHH", b"MM", 42, 8, 1, 0x0112, 3, 1, orientation, 0) + bytes(4)
    exif = b"Exif\0\0" + entry
    (tmp_path / "b.jpg").write_bytes(stored[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + stored[2:])
    read = read_photo(tmp_path / "b.jpg").astype(int)
    assert read.shape == upright(picture).shape
    assert np.abs(read - upright(picture)).mean() < 4


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.97])
def test_cut_off_photos_are_told(tmp_path, picture, suffix, kept):
    path = write(tmp_path / f"cut{suffix}", picture)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match="cut"):
        read_photo(path)


def test_a_thumbnails_end_does_not_count(tmp_path, picture):
    """A JPEG that is cut off, but holds a whole smaller one in its EXIF segment."""
    stored = write(tmp_path / "a.jpg", picture).read_bytes()
    thumbnail = cv2.imencode(".jpg", picture[::4, ::4])[1].tobytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    whole = stored[:2] + segment + stored[2:]
    (tmp_path / "whole.jpg").write_bytes(whole + b"maker's notes after the end")
    assert read_photo(tmp_path / "whole.jpg").shape == picture.shape
    (tmp_path / "cut.jpg").write_bytes(whole[:-100])
    with pytest.raises(InputError, match="cut off"):
        read_photo(tmp_path / "cut.jpg")


def test_a_damaged_png_is_told(tmp_path, picture):
    data = bytearray(write(tmp_path / "a.png", picture).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match="a.png"):
        read_photo(tmp_path / "a.png")


def test_other_bad_photos(tmp_path, picture):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("this is no photo")
    write(tmp_path / "tiny.png", picture[:1, :1])
    for name, words in (
        ("empty.jpg", "0 bytes"),
        ("text.jpg", "not an image"),
        ("tiny.png", "1x1"),
        ("no.jpg", "open"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            read_photo(tmp_path / name)
        assert name in str(caught.value)


def test_an_absurdly_large_header_is_told(tmp_path):
    """A PNG that claims 60000 x 60000 pixels: more than OpenCV decodes."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(InputError, match="bomb.png"):
        read_photo(tmp_path / "bomb.png")


@pytest.fixture
def clip(tmp_path, picture):
    """A video of 12 frames at 24 frames a second that get brighter."""
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 24.0, (80, 60))
    for index in range(12):
        writer.write((picture[..., ::-1] * (0.3 + index / 20)).clip(0, 255).astype(np.uint8))
    writer.release()
    return path


def test_video(clip, picture):
    (source,) = find_sources(str(clip))
    assert isinstance(source, Video) and source.count == 12 and source.fps == pytest.approx(24)
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(12))
    assert frames[6].time == pytest.approx(0.25)
    assert np.abs(frames[11].image - (picture * 0.85)).mean() < 8
    assert frames[11].image.mean() > frames[0].image.mean() + 40


@pytest.mark.parametrize("kept", [0, 0.02, 0.7])
def test_cut_off_videos_are_told(clip, kept):
    data = clip.read_bytes()
    clip.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match="clip.mp4"):
        for source in find_sources(str(clip)):
            list(source.frames())


def test_a_video_that_breaks_off_gives_its_frames_first(tmp_path, picture):
    path = tmp_path / "long.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (80, 60))
    for _ in range(40):
        writer.write(picture)
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    (source,) = find_sources(str(path))
    if source.count is None or source.count < 40:
        pytest.skip("this FFmpeg build counts the frames that are there")
    frames = []
    with pytest.raises(InputError, match="breaks off"):
        for frame in source.frames():
            frames.append(frame)
    assert 10 < len(frames) < 30


def test_folders_and_webcams(tmp_path, picture):
    for name in ("b.png", "a.JPG", "c.webp"):
        write(tmp_path / name, picture)
    (tmp_path / "notes.txt").write_text("not a photo")
    sources = find_sources(str(tmp_path))
    assert [source.stem for source in sources] == ["a", "b", "c"] and all(isinstance(s, Photo) for s in sources)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no photo"):
        find_sources(str(tmp_path / "none"))
    for text in ("webcam:1", "1"):
        (source,) = find_sources(text)
        assert isinstance(source, Webcam) and source.name == "webcam:1"
    with pytest.raises(InputError, match="webcam:99"):
        list(Webcam(99).frames())


def test_content_decides_where_the_name_does_not(tmp_path, picture, clip):
    photo = write(tmp_path / "a.png", picture).rename(tmp_path / "photo")
    assert isinstance(find_sources(str(photo))[0], Photo)
    assert isinstance(find_sources(str(clip.rename(tmp_path / "clip")))[0], Video)
    for name in ("data.bin", "notes.txt", "data.dat"):
        (tmp_path / name).write_bytes(b"neither " * 100)
        with pytest.raises(InputError, match="neither an image nor a video"):
            find_sources(str(tmp_path / name))
    with pytest.raises(InputError, match="cannot open"):
        find_sources(str(tmp_path / "absent.mp4"))
