"""One call from an image to the people in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deformer_core.body.topology import LEVELS, BodyTopology
from deformer_core.checkpoint import read_checkpoint_info
from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics
from deformer_core.runtime.batch import BatchEstimator, View
from deformer_core.runtime.engines import Engine, make_engine
from deformer_core.runtime.media import MIN_SIDE
from deformer_core.runtime.person import Person

Detector = Callable[[NDArray[np.uint8]], tuple[NDArray, NDArray]]
"""RGB image to boxes (N, 4) x0, y0, x1, y1 in pixels and scores (N,)."""


class Estimator:
    """Finds the people in an image and reconstructs their bodies, all in one batch.

    engine: see `engines`. topology: the body of the engine's model. detector: called when no boxes are given;
    by default `detector.PersonDetector`, made at the first such call.
    """

    def __init__(self, engine: Engine, topology: BodyTopology, detector: Detector | None = None):
        self.engine, self.topology, self._detector = engine, topology, detector
        self._batch = BatchEstimator(engine, topology)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "small",
        engine: str = "auto",
        device: str = "auto",
        detector: Detector | None = None,
        threads: int | None = None,
        mirrored: bool = False,
    ) -> Estimator:
        """From shipped weights by name, or a checkpoint file. Errors: `InputError`, as `engines.make_engine`."""
        topology = read_checkpoint_info(name_or_path).body()
        return cls(make_engine(name_or_path, engine, device, threads, mirrored), topology, detector)

    def __call__(
        self,
        image: NDArray[np.uint8],
        intrinsics: Intrinsics | ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        level: str = "full",
    ) -> list[Person]:
        """The people of one image, by falling score; [] when there is nobody.

        image: (H, W, 3) uint8 RGB. intrinsics: `Intrinsics` or (3, 3) in pixels; without, a diagonal field of view
        of 55 degrees is assumed, and distances scale with the error of that. boxes: (N, 4) x0, y0, x1, y1 in pixels
        instead of the detector's; they may reach out of the image. level: mesh level of `Person.vertices`.

        Raises:
            InputError: an image, intrinsics, box or level that cannot be used.
        """
        image = _check_image(image)
        if level not in LEVELS:
            raise InputError(f"unknown mesh level '{level}': use one of {', '.join(LEVELS)}")
        camera = _check_intrinsics(intrinsics, image)
        if boxes is None:
            found, scores = self._detect(image)
        else:
            found = _check_boxes(boxes, image)
            scores = np.ones(len(found), np.float32)
        if not len(found):
            return []
        order = np.argsort(-scores, kind="stable")
        view = View(image, camera, found[order], scores[order], detected=boxes is None)
        return self._batch([view], [level])[0]

    def _detect(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self._detector is None:
            from deformer_core.runtime.detector import PersonDetector

            self._detector = PersonDetector()
        boxes, scores = self._detector(image)
        return np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(scores, np.float32).reshape(-1)


def _check_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        shape = getattr(image, "shape", ())
        kind = getattr(image, "dtype", type(image).__name__)
        raise InputError(f"the image is {kind} {tuple(shape)}: give a uint8 RGB array of shape (height, width, 3)")
    if min(image.shape[:2]) < MIN_SIDE:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise InputError(f"the image has {size} pixels: at least {MIN_SIDE}x{MIN_SIDE} are needed")
    return image


def _check_intrinsics(intrinsics: Intrinsics | ArrayLike | None, image: NDArray[np.uint8]) -> Intrinsics:
    height, width = image.shape[:2]
    if intrinsics is None:
        return Intrinsics.from_fov(width, height)
    matrix = np.asarray(intrinsics.matrix if isinstance(intrinsics, Intrinsics) else intrinsics, np.float64)
    if matrix.shape != (3, 3):
        raise InputError(f"the intrinsics have shape {matrix.shape}: give fx, fy, cx, cy or a 3x3 matrix in pixels")
    fx, fy, cx, cy = matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
    if not np.isfinite(matrix).all() or fx <= 0 or fy <= 0:
        raise InputError(
            f"the intrinsics fx={fx:g}, fy={fy:g}, cx={cx:g}, cy={cy:g} cannot be: give finite numbers of pixels, "
            "the focal lengths positive"
        )
    if not np.allclose(matrix, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]):
        raise InputError("the intrinsics have skew or a last row other than 0, 0, 1: undistort the image first")
    return Intrinsics(float(fx), float(fy), float(cx), float(cy), width, height)


def _check_boxes(boxes: ArrayLike, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    array = np.asarray(boxes, np.float32)
    if array.size == 0:
        return np.zeros((0, 4), np.float32)
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"the boxes have shape {array.shape}: give x0, y0, x1, y1 in pixels for each person")
    height, width = image.shape[:2]
    for index, (x0, y0, x1, y1) in enumerate(array.tolist()):
        name = f"box {index} ({x0:g}, {y0:g}, {x1:g}, {y1:g})"
        if not np.isfinite([x0, y0, x1, y1]).all() or x1 - x0 < 1 or y1 - y0 < 1:
            raise InputError(f"{name} is empty: give x0, y0, x1, y1 in pixels with x0 < x1 and y0 < y1")
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise InputError(f"{name} lies outside the image of {width}x{height} pixels: give boxes of this image")
    return array
