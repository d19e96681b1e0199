"""The demonstration recording of the package pose2sim (BSD-3): one person before four calibrated, synchronised cameras.

A folder holds `calibration/Calib*.toml` (pose2sim's own, OpenCV's conventions) or `calibration/*.qca.txt` (Qualisys)
and one video a camera in `videos/`.
"""

from __future__ import annotations

import importlib.util
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics

DEMO = Path("Demo_SinglePerson")
GET = (
    "pip download --no-deps pose2sim==0.10.49, unzip the wheel, and give its Pose2Sim/Demo_SinglePerson as "
    "--pose2sim DIR"
)


@dataclass(frozen=True)
class CalibratedCamera:
    """intrinsics: of the video's frames; distortion: (4,) OpenCV's k1, k2, p1, p2; world_to_camera: (3, 4), metres."""

    name: str
    intrinsics: Intrinsics
    distortion: NDArray[np.float64]
    world_to_camera: NDArray[np.float64]

    def undistort(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image as a pinhole camera of the same intrinsics would have taken it."""
        import cv2

        # OpenCV counts from the middle of the first pixel, we from its edge.
        matrix = self.intrinsics.matrix.copy()
        matrix[:2, 2] -= 0.5
        return cv2.undistort(image, matrix, self.distortion)  # type: ignore[return-value]


@dataclass(frozen=True)
class Recording:
    """Cameras and their videos, in the same order."""

    folder: Path
    cameras: tuple[CalibratedCamera, ...]
    videos: tuple[Path, ...]
    count: int
    """Frames of the shortest video."""

    def frames(self, every: int = 1) -> Iterator[list[NDArray[np.uint8]]]:
        """One undistorted RGB image a camera, of every `every`-th moment."""
        import cv2

        captures = [cv2.VideoCapture(str(path)) for path in self.videos]
        try:
            for index in range(self.count):
                read = [capture.read() for capture in captures]
                for path, (good, _) in zip(self.videos, read):
                    if not good:
                        raise InputError(f"{path} breaks off at frame {index} of {self.count}: unpack it again")
                if index % every == 0:
                    yield [
                        camera.undistort(np.ascontiguousarray(image[..., ::-1]))
                        for camera, (_, image) in zip(self.cameras, read)
                    ]
        finally:
            for capture in captures:
                capture.release()


def find_demo(folder: Path | None) -> Path:
    """The given folder, or that of the installed package. Errors: `InputError` says how to get it."""
    if folder is None:
        package = importlib.util.find_spec("Pose2Sim")
        if package is None or not package.submodule_search_locations:
            raise InputError(f"the recording of pose2sim is not here: {GET}")
        folder = Path(package.submodule_search_locations[0]) / DEMO
    if not (folder / "calibration").is_dir() or not (folder / "videos").is_dir():
        raise InputError(f"{folder} has no folders calibration and videos: {GET}")
    return folder


def open_recording(folder: Path) -> Recording:
    """Errors: `InputError` for a calibration or a video that is missing or cannot be read, named."""
    import cv2

    calibrated = read_calibration(folder / "calibration")
    videos = sorted(path for path in (folder / "videos").iterdir() if path.suffix.lower() in (".mp4", ".avi", ".mov"))
    if len(videos) != len(calibrated):
        raise InputError(f"{folder} has {len(videos)} videos for {len(calibrated)} calibrated cameras: one each")
    cameras, counts = [], []
    for camera, video in zip(calibrated, videos):
        capture = cv2.VideoCapture(str(video))
        width, height = (round(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        counts.append(round(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        capture.release()
        if min(width, height, counts[-1]) < 1:
            raise InputError(f"{video} cannot be read as a video: unpack it again")
        fitted = fit(camera.intrinsics, width, height)
        cameras.append(CalibratedCamera(camera.name, fitted, camera.distortion, camera.world_to_camera))
    return Recording(folder, tuple(cameras), tuple(videos), min(counts))


def fit(intrinsics: Intrinsics, width: int, height: int) -> Intrinsics:
    """Intrinsics of a video whose frames were scaled to fit into another size, with bars where the shape differs.

    Two of the demo's videos are so: 1088 x 1920 pixels scaled to 1080 x 1906, with 7 black rows above and below.
    """
    scale = min(width / intrinsics.width, height / intrinsics.height)
    left, top = (width - scale * intrinsics.width) / 2, (height - scale * intrinsics.height) / 2
    return Intrinsics(
        scale * intrinsics.fx,
        scale * intrinsics.fy,
        scale * intrinsics.cx + left,
        scale * intrinsics.cy + top,
        width,
        height,
    )


def read_calibration(folder: Path) -> list[CalibratedCamera]:
    """All cameras of the folder's one calibration, sorted by name. Errors: `InputError` naming the file."""
    files = sorted(folder.glob("*.toml")) or sorted(folder.glob("*.qca.txt"))
    if not files:
        raise InputError(f"{folder} holds no calibration (*.toml or *.qca.txt): {GET}")
    try:
        cameras = _read_toml(files[0]) if files[0].suffix == ".toml" else _read_qca(files[0])
    except (OSError, ElementTree.ParseError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"calibration {files[0]} cannot be read ({error!r}): unpack it again") from error
    return sorted(cameras, key=lambda camera: camera.name)


def _read_qca(path: Path) -> list[CalibratedCamera]:
    """Qualisys: lengths of the image in 64ths of a pixel, the pose camera to world in millimetres, the camera's axes
    x right, y up, z backward.

    The radial distortion is dimensionless, as OpenCV's: the chessboard photos that lie beside the file give the same
    values (k1 -0.05, k2 0.15) when they are calibrated anew.
    """
    cameras = []
    for entry in ElementTree.parse(path).getroot().iter("camera"):
        field, lens, pose = (_attributes(entry, name) for name in ("fov_video", "intrinsic", "transform"))
        width, height = field["right"] - field["left"] + 1, field["bottom"] - field["top"] + 1
        intrinsics = Intrinsics(
            lens["focalLengthU"] / 64,
            lens["focalLengthV"] / 64,
            lens["centerPointU"] / 64 - field["left"],
            lens["centerPointV"] / 64 - field["top"],
            round(width),
            round(height),
        )
        names = ("radialDistortion1", "radialDistortion2", "tangentalDistortion1", "tangentalDistortion2")
        # The file's columns are r11 r12 r13, ...; so its matrix is the world to the camera's axes.
        turn = np.array([[pose[f"r{row}{column}"] for column in (1, 2, 3)] for row in (1, 2, 3)])
        turn = np.diag([1.0, -1.0, -1.0]) @ turn
        center = np.array([pose["x"], pose["y"], pose["z"]]) / 1000
        matrix = np.column_stack([turn, -turn @ center])
        cameras.append(CalibratedCamera(entry.attrib["serial"], intrinsics, np.array([lens[n] for n in names]), matrix))
    return cameras


def _attributes(entry: ElementTree.Element, name: str) -> dict[str, float]:
    found = entry.find(name)
    if found is None:
        raise ValueError(f"camera {entry.get('serial')} has no <{name}>")
    return {key: float(value) for key, value in found.attrib.items()}


def _read_toml(path: Path) -> list[CalibratedCamera]:
    """pose2sim's: one table a camera with size, matrix, distortions, rotation (Rodrigues) and translation (m)."""
    import cv2

    cameras = []
    for name, table in _load_toml(path).items():
        if name == "metadata":
            continue
        matrix = np.array(table["matrix"], float)
        width, height = (round(float(value)) for value in table["size"])
        intrinsics = Intrinsics(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], width, height)
        turn = cv2.Rodrigues(np.array(table["rotation"], float))[0]
        pose = np.column_stack([turn, np.array(table["translation"], float)])
        distortion = np.array([*table["distortions"], 0, 0, 0, 0][:4], float)
        cameras.append(CalibratedCamera(str(table.get("name", name)), intrinsics, distortion, pose))
    if not all(math.isfinite(camera.intrinsics.fx) for camera in cameras):
        raise ValueError("a focal length is not finite")
    return cameras


def _load_toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError as error:  # before Python 3.11
        raise InputError(f"{path} needs Python 3.11 to be read: delete it to use the *.qca.txt beside it") from error
    return tomllib.loads(path.read_text(encoding="utf-8"))
