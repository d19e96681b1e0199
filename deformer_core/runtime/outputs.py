"""Files made of the people found: pictures or videos, glTF meshes, numpy archives. Written whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.errors import InputError
from deformer_core.runtime.gltf import encode_glb
from deformer_core.runtime.media import Frame, Source
from deformer_core.runtime.person import Person
from deformer_core.view.overlay import draw_overlay, draw_side_view, draw_skeleton, side_bounds

MAX_PICTURE_SIDE = 3840
"""Pixels; larger images are drawn on at this size."""

Picture = NDArray[np.uint8]
Draw = Callable[[Picture, list[Person]], Picture]


class Output(Protocol):
    """What grows by frames and ends as files in the staging folder it was opened with."""

    def add(self, frame: Frame, people: list[Person]) -> None: ...

    def finish(self) -> None: ...


class Outputs:
    """All outputs of one input, a context: they are made in a hidden folder and moved to their place by `commit`.

    Leaving the context without that, by an error or Ctrl-C, leaves nothing behind.

    kinds: of `KINDS`. The files are named `folder/stem...`.

    Raises:
        InputError: an unknown kind, or the folder cannot be written.
    """

    def __init__(self, kinds: list[str], source: Source, stem: str, folder: Path, body: BodyTopology):
        check_kinds(kinds)
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._staging = tempfile.TemporaryDirectory(prefix=".", dir=folder, ignore_cleanup_errors=True)
        except OSError as error:
            raise self._cannot_write(error) from error
        base = Path(self._staging.name) / stem
        self._outputs = [KINDS[kind](source, base, body) for kind in kinds]

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *error: object) -> None:
        self._outputs.clear()
        self._staging.cleanup()

    def add(self, frame: Frame, people: list[Person]) -> None:
        """Take in one frame. Errors: `InputError` if the disk is full."""
        try:
            for output in self._outputs:
                output.add(frame, people)
        except OSError as error:
            raise self._cannot_write(error) from error

    def commit(self) -> list[Path]:
        """Finish the files and put them in their place, over older ones. Returns the files and folders made."""
        try:
            for output in self._outputs:
                output.finish()
            staging = Path(self._staging.name)
            made = [self._folder / path.name for path in sorted(staging.iterdir())]
            for file in sorted(path for path in staging.rglob("*") if path.is_file()):
                target = self._folder / file.relative_to(staging)
                target.parent.mkdir(exist_ok=True)
                os.replace(file, target)
            return made
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> InputError:
        reason = error.strerror or error
        return InputError(f"cannot write to the folder {self._folder} ({reason}): choose another or free space")


def check_kinds(kinds: list[str]) -> None:
    """Errors: `InputError` for one that is not in `KINDS`."""
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"cannot save '{kind}': use one or more of {','.join(KINDS)}")


class PictureOutput:
    """A picture of a photo."""

    def __init__(self, path: Path, draw: Draw):
        self._path, self._draw = path, draw

    def add(self, frame: Frame, people: list[Person]) -> None:
        picture = self._draw(*fit_picture(frame.image, people))
        good, data = cv2.imencode(self._path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        assert good
        self._path.write_bytes(data.tobytes())

    def finish(self) -> None:
        """Nothing is left to do."""


class VideoOutput:
    """A video with one picture a frame, in time with the input: a slow webcam's pictures are repeated."""

    def __init__(self, path: Path, draw: Draw, fps: float):
        self._path, self._draw, self._fps = path, draw, fps
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._written = 0

    def add(self, frame: Frame, people: list[Person]) -> None:
        picture = self._draw(*fit_picture(frame.image, people))
        if self._writer is None:
            height, width = (side - side % 2 for side in picture.shape[:2])  # the codec halves the colours' resolution
            self._size = (width, height)
            self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, self._size)
            if not self._writer.isOpened():
                raise InputError(f"cannot write a video of {width}x{height} pixels to {self._path}: save npz instead")
        encoded = cv2.cvtColor(picture[: self._size[1], : self._size[0]], cv2.COLOR_RGB2BGR)
        while self._written <= round(frame.time * self._fps):
            self._writer.write(encoded)
            self._written += 1

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.release()


class GlbOutput:
    """A glTF file for a photo, a folder of numbered ones for a video; frames without people are left out."""

    def __init__(self, path: Path, is_video: bool, body: BodyTopology):
        self._path, self._is_video, self._body = path, is_video, body

    def add(self, frame: Frame, people: list[Person]) -> None:
        if not people:
            return
        path = self._path
        if self._is_video:
            path = self._path.with_name(f"{self._path.stem}_glb") / f"{frame.index:06d}.glb"
            path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_glb(people, _faces(people, self._body)))

    def finish(self) -> None:
        """Nothing is left to do."""


class NpzOutput:
    """All people of all frames stacked, one row each, in one numpy archive.

    frame, id (N,) int64; box (N, 4) pixels; score (N,); vertices (N, V, 3) and joints (N, J, 3) metres, full
    camera's axes, origin at the pelvis; translation (N, 3) metres, the pelvis in the camera; camera (N, 3) s, tx, ty
    of the crop; keypoints_2d (N, J, 2) pixels; intrinsics (N, 3, 3) pixels; and once: faces (F, 3), joint_names
    (J,), level.
    """

    def __init__(self, path: Path, body: BodyTopology):
        self._path, self._body = path, body
        self._columns: dict[str, Column] = {}
        self._level = ""

    def add(self, frame: Frame, people: list[Person]) -> None:
        for person in people:
            self._level = person.level
            row = {field.name: np.asarray(getattr(person, field.name)) for field in dataclasses.fields(person)}
            del row["level"]
            for name, value in {"frame": np.asarray(frame.index), **row}.items():
                if name not in self._columns:
                    self._columns[name] = Column(value, self._path.parent)
                self._columns[name].append(value)

    def finish(self) -> None:
        if not self._columns:
            return
        once = {
            "faces": self._body.levels[self._level].faces,
            "joint_names": np.array(self._body.joint_names),
            "level": np.array(self._level),
        }
        with zipfile.ZipFile(self._path, "w") as archive:
            for name, column in self._columns.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    column.write(member)
            for name, value in once.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, value)


class Column:
    """Rows of one array, in a nameless file on the disk: hours of video do not fit the memory."""

    def __init__(self, row: NDArray, folder: Path):
        self._dtype = np.dtype("<f4") if np.issubdtype(row.dtype, np.floating) else np.dtype("<i8")
        self._shape, self._rows = row.shape, 0
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)

    def append(self, row: NDArray) -> None:
        self._file.write(np.ascontiguousarray(row, self._dtype).tobytes())
        self._rows += 1

    def write(self, member: IO[bytes]) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._rows, *self._shape)}
        np.lib.format.write_array_header_1_0(member, header)
        self._file.seek(0)
        shutil.copyfileobj(self._file, member)


def fit_picture(image: Picture, people: list[Person]) -> tuple[Picture, list[Person]]:
    """The image at most `MAX_PICTURE_SIDE` long, and the people with pixels to match."""
    longest = max(image.shape[:2])
    if longest <= MAX_PICTURE_SIDE:
        return image, people
    size = [max(1, round(side * MAX_PICTURE_SIDE / longest)) for side in image.shape[1::-1]]
    zoom = np.array([size[0] / image.shape[1], size[1] / image.shape[0], 1], np.float32)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), [
        dataclasses.replace(p, intrinsics=zoom[:, None] * p.intrinsics, keypoints_2d=p.keypoints_2d * zoom[:2])
        for p in people
    ]


def _faces(people: list[Person], body: BodyTopology) -> NDArray[np.int32]:
    return body.levels[people[0].level if people else "full"].faces


def _overlay(body: BodyTopology) -> Draw:
    return lambda image, people: draw_overlay(image, people, _faces(people, body))


def _skeleton(body: BodyTopology) -> Draw:
    def draw(image: Picture, people: list[Person]) -> Picture:
        for person in people:
            image = draw_skeleton(image, person.keypoints_2d, body.joint_parents, person.id)
        return image

    return draw


def _side(body: BodyTopology) -> Draw:
    """The side view; over a video its frame only grows, so that the picture stays calm."""
    bounds: NDArray | None = None

    def draw(_: Picture, people: list[Person]) -> Picture:
        nonlocal bounds
        if people:
            now = side_bounds(people)
            bounds = now if bounds is None else np.stack([np.minimum(bounds[0], now[0]), np.maximum(bounds[1], now[1])])
        return draw_side_view(people, _faces(people, body), bounds=bounds)

    return draw


def _picture(name: str, make: Callable[[BodyTopology], Draw]) -> Callable[[Source, Path, BodyTopology], Output]:
    def open_output(source: Source, base: Path, body: BodyTopology) -> Output:
        suffix = ".mp4" if source.is_video else ".png" if source.suffix == ".png" else ".jpg"
        path = base.with_name(f"{base.name}_{name}{suffix}")
        return VideoOutput(path, make(body), source.fps) if source.is_video else PictureOutput(path, make(body))

    return open_output


KINDS: dict[str, Callable[[Source, Path, BodyTopology], Output]] = {
    "overlay": _picture("overlay", _overlay),
    "side": _picture("side", _side),
    "skeleton": _picture("skeleton", _skeleton),
    "glb": lambda source, base, body: GlbOutput(base.with_name(f"{base.name}.glb"), source.is_video, body),
    "npz": lambda source, base, body: NpzOutput(base.with_name(f"{base.name}.npz"), body),
}
"""What can be saved, and how to open it: (source, folder/stem, body)."""
