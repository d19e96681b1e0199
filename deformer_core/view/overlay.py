"""Bodies drawn over the image they were found in, and seen from the side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from deformer_core.view.raster import Raster, render, vertex_normals

Picture = NDArray[np.uint8]
"""(H, W, 3) RGB."""

PALETTE = np.array(
    [
        (101, 173, 222),
        (240, 150, 110),
        (134, 196, 130),
        (200, 152, 216),
        (240, 200, 96),
        (104, 200, 196),
        (236, 140, 164),
        (170, 180, 200),
    ],
    np.float32,
)
"""RGB of the people, by `id` modulo the length."""

SUPERSAMPLING = 2
LIGHT = np.array([-0.35, -0.65, -0.68])
"""Towards the light, in the camera's frame: above, a little to the left, behind the camera."""


class Body(Protocol):
    """What drawing needs of a person."""

    @property
    def id(self) -> int: ...
    @property
    def vertices(self) -> np.ndarray:
        """(V, 3) metres, full camera's axes, origin at the pelvis."""

    @property
    def translation(self) -> np.ndarray:
        """(3,) metres, the pelvis in the full camera."""

    @property
    def intrinsics(self) -> np.ndarray:
        """(3, 3) pixels."""


def draw_overlay(image: Picture, people: Sequence[Body], faces: np.ndarray, alpha: float = 0.9) -> Picture:
    """The image with every body drawn where it stands, nearer ones before farther ones.

    image: (H, W, 3) uint8 RGB, not changed. faces: (F, 3) of the people's mesh level. alpha: opacity of the bodies.
    """
    picture = image.copy()
    if people:
        vertices = [person.vertices + person.translation for person in people]
        size = (image.shape[1], image.shape[0])
        _draw_scene(picture, vertices, faces, people[0].intrinsics, size, _colors(people), alpha)
    return picture


def draw_side_view(
    people: Sequence[Body],
    faces: np.ndarray,
    size: tuple[int, int] = (1280, 640),
    bounds: np.ndarray | None = None,
) -> Picture:
    """The same bodies seen from the image's right, so that errors of depth show.

    The camera is turned 90 degrees about the vertical through the middle of the group and stands far away; the
    photo's camera is to the left. The line is the level of the lowest foot, with metres from that camera.
    bounds: what to show, by default the `side_bounds` of these people.
    """
    width, height = size
    picture = np.linspace(250, 226, height)[:, None, None].repeat(width, 1).repeat(3, 2).astype(np.uint8)
    if not people:
        return picture
    low, high = side_bounds(people) if bounds is None else bounds
    extent = np.maximum(high - low, 0.1)
    foot = np.array([(low[0] + high[0]) / 2, high[1], (low[2] + high[2]) / 2])
    scale = min(0.9 * width / extent[0], 0.8 * height / extent[1])
    distance = 20 * float(extent.max())
    focal, ground = scale * distance, round(0.9 * height)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, ground], [0, 0, 1]])
    _draw_ground(picture, ground, width / 2 - scale * foot[0], scale)
    shifted = [_turn_to_side(person.vertices + person.translation) - foot + (0, 0, distance) for person in people]
    _draw_scene(picture, shifted, faces, intrinsics, size, _colors(people), 1.0)
    return picture


def side_bounds(people: Sequence[Body]) -> np.ndarray:
    """(2, 3) smallest and largest coordinates of the people in the side view's axes, metres."""
    points = np.concatenate([_turn_to_side(person.vertices + person.translation) for person in people])
    return np.stack([points.min(0), points.max(0)])


def draw_skeleton(image: Picture, keypoints: np.ndarray, parents: Sequence[int], person: int = 0) -> Picture:
    """The image with one person's joints and the bones between them.

    keypoints: (J, 2) pixels. parents: (J,) index of each joint's parent, -1 for the root. person: chooses the colour.
    """
    picture = image.copy()
    color = tuple(int(channel) for channel in PALETTE[person % len(PALETTE)])
    thickness = max(1, round(max(image.shape[:2]) / 400))
    limit = 4 * max(image.shape[:2])  # OpenCV takes coordinates of 16 bits after its fixed-point shift
    points = np.clip(np.nan_to_num(keypoints), -limit, limit).round().astype(int)
    for child, parent in enumerate(parents):
        if parent >= 0:
            cv2.line(picture, points[child].tolist(), points[parent].tolist(), color, thickness, cv2.LINE_AA)
    for point in points.tolist():
        cv2.circle(picture, point, 2 * thickness, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(picture, point, 2 * thickness, color, thickness, cv2.LINE_AA)
    return picture


def _colors(people: Sequence[Body]) -> np.ndarray:
    return PALETTE[[person.id % len(PALETTE) for person in people]]


def _turn_to_side(points: np.ndarray) -> np.ndarray:
    """Camera coordinates to those of a camera that looks along -x: its right is our forward."""
    return points[:, [2, 1, 0]] * (1, 1, -1)


def _draw_ground(picture: Picture, row: int, origin: float, scale: float) -> None:
    """A line at `row` with ticks at whole metres from the photo's camera, which projects to column `origin`."""
    width = picture.shape[1]
    step = next((step for step in (1, 2, 5, 10, 20) if step * scale >= 60), 50)
    picture[row:] = (picture[row:] * 0.94).astype(np.uint8)
    cv2.line(picture, (0, row), (width, row), (150, 150, 150), 1, cv2.LINE_AA)
    first = int(np.ceil(-origin / scale / step)) * step
    for metre in range(first, int((width - origin) / scale) + 1, step):
        column = round(origin + metre * scale)
        cv2.line(picture, (column, row), (column, row + 6), (150, 150, 150), 1)
        place = (column + 3, row + 18)
        cv2.putText(picture, f"{metre} m", place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (120, 120, 120), 1, cv2.LINE_AA)


def _draw_scene(
    picture: Picture,
    vertices: list[np.ndarray],
    faces: np.ndarray,
    intrinsics: np.ndarray,
    size: tuple[int, int],
    colors: np.ndarray,
    alpha: float,
) -> None:
    """Blend bodies given in the camera's coordinates into the picture. colors: (N, 3) RGB, one a body."""
    offsets = np.cumsum([0] + [len(body) for body in vertices[:-1]])
    all_faces = np.concatenate([faces + offset for offset in offsets])
    all_vertices = np.concatenate(vertices)
    zoom = np.diag([SUPERSAMPLING, SUPERSAMPLING, 1.0])
    large = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
    raster = render(all_vertices, all_faces, zoom @ intrinsics, large)
    seen = raster.face >= 0
    if not seen.any():
        return
    normals = raster.interpolate(np.concatenate([vertex_normals(body, faces) for body in vertices]), all_faces)
    person = raster.face // len(faces)
    shaded = np.zeros((*seen.shape, 4), np.float32)
    shaded[seen] = _shade(normals[seen], colors[person[seen]])
    shaded[_outlines(raster, person), :3] *= 0.55
    _blend(picture, shaded, raster.x, raster.y, alpha)


def _shade(normals: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """(N, 4) colour and coverage 1: soft diffuse light, a weak highlight, darker towards the silhouette."""
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    normals = np.where(normals[:, 2:] > 0, -normals, normals)
    towards_light = normals @ (LIGHT / np.linalg.norm(LIGHT)).astype(np.float32)
    facing = -normals[:, 2:]
    diffuse = 0.5 + 0.5 * towards_light[:, None]
    highlight = 70 * np.clip(towards_light, 0, 1)[:, None] ** 24
    lit = colors * (0.42 + 0.66 * diffuse) * (0.72 + 0.28 * facing) + highlight
    return np.concatenate([np.clip(lit, 0, 255), np.ones((len(lit), 1), np.float32)], axis=1)


def _outlines(raster: Raster, person: np.ndarray) -> np.ndarray:
    """Body pixels that end one: another person or nothing is beside them, or the same body at least 8 cm behind."""
    depth = np.where(raster.face >= 0, raster.depth, 1e6)
    outline = np.zeros(person.shape, bool)
    for axis in (0, 1):
        here = [slice(None)] * 2
        there = [slice(None)] * 2
        here[axis], there[axis] = slice(None, -1), slice(1, None)
        one, other = tuple(here), tuple(there)
        step = depth[other] - depth[one]
        edge = (person[one] != person[other]) | (np.abs(step) > 0.08)
        outline[one] |= edge & (step > 0)
        outline[other] |= edge & (step < 0)
    return outline & (raster.face >= 0)


def _blend(picture: Picture, shaded: np.ndarray, x: int, y: int, alpha: float) -> None:
    """Average the supersampled (h, w, 4) colours and coverage at (x, y) into the picture's pixels."""
    left, top = x % SUPERSAMPLING, y % SUPERSAMPLING
    bottom, right = -(top + shaded.shape[0]) % SUPERSAMPLING, -(left + shaded.shape[1]) % SUPERSAMPLING
    padded = np.pad(shaded, ((top, bottom), (left, right), (0, 0)))
    height, width = padded.shape[0] // SUPERSAMPLING, padded.shape[1] // SUPERSAMPLING
    small = cv2.resize(padded, (width, height), interpolation=cv2.INTER_AREA)
    rows = slice(y // SUPERSAMPLING, y // SUPERSAMPLING + height)
    columns = slice(x // SUPERSAMPLING, x // SUPERSAMPLING + width)
    area = picture[rows, columns]
    blended = area * (1 - alpha * small[..., 3:]) + alpha * small[..., :3]
    picture[rows, columns] = np.clip(blended + 0.5, 0, 255).astype(np.uint8)
