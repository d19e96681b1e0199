"""What a camera's calibration says about one of its images: pinhole intrinsics and lens distortion.

REP-104: K, D and P hold for the full image at calibration resolution; roi and binning say which part of it was sent,
and how small. Distorted images are undistorted whole before anything looks at them (`Rectifier`), and everything
that is published then refers to the undistorted image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from deformer_core.geometry.camera import Intrinsics

PERSPECTIVE_MODELS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14)}
"""Models of OpenCV's main calibration, and how many coefficients each may have."""
FISHEYE_MODELS = ("equidistant", "fisheye")
NEGLIGIBLE = 0.5
"""Pixels. Distortion that moves no pixel farther is left alone."""
MOST_ZOOM_OUT = 0.5
"""The undistorted image shows at least half the size of things at the centre of the distorted one."""
_SAME_SIZE = 1
"""Pixels by which the sizes of image and calibration may differ: drivers round roi and binning differently."""
_ITERATIONS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-9)


class CameraInfoMessage(Protocol):
    """sensor_msgs/CameraInfo."""

    header: Any
    height: int
    width: int
    distortion_model: str
    d: Sequence[float]
    k: Sequence[float]
    p: Sequence[float]
    binning_x: int
    binning_y: int
    roi: Any


class Distortion(NamedTuple):
    """Coefficients in OpenCV's order, and whether they are those of its fisheye model."""

    coefficients: tuple[float, ...]
    is_fisheye: bool


class CameraModel(NamedTuple):
    """intrinsics: of the image as it came. distortion: None where there is none to speak of. note: one sentence for
    the user where the calibration could not be taken as it is. is_calibrated: False for an assumed field of view."""

    intrinsics: Intrinsics
    distortion: Distortion | None
    note: str | None
    is_calibrated: bool


def effective_intrinsics(
    info: CameraInfoMessage | None, image_width: int, image_height: int, rectified: bool, default_fov_deg: float
) -> CameraModel:
    """The camera of an image of the given size in pixels.

    info: the camera's last calibration, None if none has come. rectified: the image is an `image_rect`, so P holds
    and there is no distortion. default_fov_deg: diagonal field of view to assume without a calibration.
    """
    matrix, note = (None, "no CameraInfo has come") if info is None else _matrix(info, rectified)
    if info is None or matrix is None:
        intrinsics = Intrinsics.from_fov(image_width, image_height, default_fov_deg)
        note = f"{note}: a diagonal field of view of {default_fov_deg:g} degrees is assumed, distances are rough"
        return CameraModel(intrinsics, None, note, False)
    intrinsics, note = _of_image(info, matrix, image_width, image_height, note)
    if rectified:
        return CameraModel(intrinsics, None, note, True)
    distortion, problem = _distortion(info)
    if distortion is not None and _largest_shift(intrinsics, distortion) < NEGLIGIBLE:
        distortion = None
    return CameraModel(intrinsics, distortion, "; ".join(filter(None, (note, problem))) or None, True)


def _matrix(info: CameraInfoMessage, rectified: bool) -> tuple[NDArray | None, str | None]:
    """K or P's left half at calibration resolution, or why there is none; a note where K stands in for P."""
    k = np.array(info.k, np.float64).reshape(3, 3)
    p = np.array(info.p, np.float64).reshape(3, 4)[:, :3]
    if rectified and _is_camera(p):
        return p, None
    if not _is_camera(k):
        return None, f"the CameraInfo of '{info.header.frame_id}' is not calibrated (K is zero)"
    return k, "CameraInfo has no P: K is used for the rectified image" if rectified else None


def _is_camera(matrix: NDArray) -> bool:
    return bool(np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0)


def _of_image(
    info: CameraInfoMessage, matrix: NDArray, width: int, height: int, note: str | None
) -> tuple[Intrinsics, str | None]:
    """Intrinsics after roi, binning and, where the image has yet another size, scaling."""
    binning_x, binning_y = max(info.binning_x, 1), max(info.binning_y, 1)
    fx, cx = matrix[0, 0] / binning_x, (matrix[0, 2] - info.roi.x_offset) / binning_x
    fy, cy = matrix[1, 1] / binning_y, (matrix[1, 2] - info.roi.y_offset) / binning_y
    sent_width = (info.roi.width or info.width) / binning_x
    sent_height = (info.roi.height or info.height) / binning_y
    differs = abs(sent_width - width) > _SAME_SIZE or abs(sent_height - height) > _SAME_SIZE
    if differs and sent_width > 0 and sent_height > 0:
        scale_x, scale_y = width / sent_width, height / sent_height
        fx, cx, fy, cy = fx * scale_x, cx * scale_x, fy * scale_y, cy * scale_y
        scaled = f"the image has {width}x{height} pixels, its CameraInfo {sent_width:g}x{sent_height:g}: K is scaled"
        if not math.isclose(scale_x, scale_y, rel_tol=0.02):
            scaled += ", which is wrong if the image was cut"
        note = f"{note}; {scaled}" if note else scaled
    return Intrinsics(float(fx), float(fy), float(cx), float(cy), width, height), note


def _distortion(info: CameraInfoMessage) -> tuple[Distortion | None, str | None]:
    """The lens, or None and, where it should not be passed over, why."""
    coefficients = tuple(float(value) for value in info.d)
    if not any(coefficients):
        return None, None
    model = info.distortion_model
    if not all(map(math.isfinite, coefficients)):
        return None, "the distortion coefficients are not finite: the image is taken as undistorted"
    if model in FISHEYE_MODELS and len(coefficients) == 4:
        return Distortion(coefficients, True), None
    if len(coefficients) in PERSPECTIVE_MODELS.get(model, ()):
        return Distortion(coefficients, False), None
    return None, (
        f"the distortion model '{model}' with {len(coefficients)} coefficients is not known: the image is taken as "
        "undistorted; send image_rect instead"
    )


def undistort_points(points: NDArray, intrinsics: Intrinsics, distortion: Distortion) -> NDArray[np.float64]:
    """Directions (N, 2) on the plane z = 1 of pixels (N, 2) of the distorted image; NaN where there is none."""
    pixels = np.asarray(points, np.float64)[:, None]
    coefficients = np.array(distortion.coefficients)
    if distortion.is_fisheye:
        found = cv2.fisheye.undistortPoints(pixels, intrinsics.matrix, coefficients)
    else:
        found = cv2.undistortPointsIter(pixels, intrinsics.matrix, coefficients, np.eye(3), np.eye(3), _ITERATIONS)
    directions = np.asarray(found, np.float64)[:, 0]
    # Iterative solutions: far outside of what was calibrated they give nonsense, which does not lead back.
    lost = np.abs(distort_points(directions, intrinsics, distortion) - pixels[:, 0]).max(1) > 1
    return np.where(lost[:, None], np.nan, directions)


def distort_points(directions: NDArray, intrinsics: Intrinsics, distortion: Distortion) -> NDArray[np.float64]:
    """Pixels (N, 2) of the distorted image that show directions (N, 2) on the plane z = 1."""
    coefficients = np.array(distortion.coefficients)
    if distortion.is_fisheye:
        pixels = cv2.fisheye.distortPoints(directions[:, None], intrinsics.matrix, coefficients)
    else:
        rays = np.insert(directions, 2, 1, axis=1)
        pixels = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), intrinsics.matrix, coefficients)[0]
    return np.asarray(pixels, np.float64)[:, 0]


def _largest_shift(intrinsics: Intrinsics, distortion: Distortion) -> float:
    """Pixels by which distortion moves anything in the image, on a grid; infinite where it cannot be told."""
    grid = np.stack(np.meshgrid(np.linspace(0, intrinsics.width, 9), np.linspace(0, intrinsics.height, 9)), -1)
    pixels = grid.reshape(-1, 2)
    centre, focal = _centre(intrinsics), np.array([intrinsics.fx, intrinsics.fy])
    straight = undistort_points(pixels, intrinsics, distortion) * focal + centre
    return float(np.nan_to_num(np.linalg.norm(straight - pixels, axis=1), nan=np.inf).max())


class Rectifier:
    """Undistorts the images of one camera; the maps are made once.

    The undistorted image has the same size and optical axis. It is zoomed out as far as needed to keep the middles of
    the distorted image's edges, but not beyond `MOST_ZOOM_OUT`: a fisheye's outermost part is lost.
    """

    intrinsics: Intrinsics
    """Of the undistorted image."""

    def __init__(self, intrinsics: Intrinsics, distortion: Distortion) -> None:
        self.source, self.distortion = intrinsics, distortion
        zoom = _zoom(intrinsics, distortion)
        self.intrinsics = replace(intrinsics, fx=intrinsics.fx * zoom, fy=intrinsics.fy * zoom)
        size = intrinsics.width, intrinsics.height
        make = cv2.fisheye.initUndistortRectifyMap if distortion.is_fisheye else cv2.initUndistortRectifyMap
        coefficients = np.array(distortion.coefficients)
        self._maps = make(intrinsics.matrix, coefficients, np.eye(3), self.intrinsics.matrix, size, cv2.CV_16SC2)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """image: (H, W, 3) uint8 of the size that the intrinsics say. Black where the camera did not look."""
        return np.asarray(cv2.remap(image, *self._maps, cv2.INTER_LINEAR), np.uint8)


def _zoom(intrinsics: Intrinsics, distortion: Distortion) -> float:
    """Factor on the focal length that keeps the middles of the four edges in the image, at most 1."""
    centre = _centre(intrinsics)
    low, high = -centre, np.array([intrinsics.width, intrinsics.height]) - centre
    if (low >= 0).any() or (high <= 0).any():
        return 1.0  # the principal point of a roi may lie outside it
    edges = np.array([[0, centre[1]], [intrinsics.width, centre[1]], [centre[0], 0], [centre[0], intrinsics.height]])
    reach = undistort_points(edges, intrinsics, distortion)[[0, 1, 2, 3], [0, 0, 1, 1]]
    reach = reach * np.array([intrinsics.fx, intrinsics.fx, intrinsics.fy, intrinsics.fy])
    room = np.array([low[0], high[0], low[1], high[1]])
    ratios = np.nan_to_num(room / reach, nan=0.0)
    return float(np.clip(ratios.min(), MOST_ZOOM_OUT, 1.0))


def _centre(intrinsics: Intrinsics) -> NDArray[np.float64]:
    return np.array([intrinsics.cx, intrinsics.cy])
