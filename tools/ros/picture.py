"""A picture of what RViz is sent: the markers of a bag in 3D, seen from beside the camera.

    python tools/ros/picture.py BAG OUT.png

Draws from the MarkerArray alone (triangles, lines, texts and their colours), so what it shows is what was published.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from recorder import typestore
from rosbags.highlevel import AnyReader

from deformer_core.errors import InputError
from deformer_core.view.raster import render, vertex_normals

SIZE = (1280, 640)
BACKGROUND, GRID = (48, 48, 48), (96, 96, 96)
AXES = ((230, 60, 60), (60, 200, 60), (80, 120, 255))
YAW, PITCH = np.radians(35), np.radians(14)
TRIANGLES, LINES, TEXT = 11, 5, 9
"""Marker.TRIANGLE_LIST, LINE_LIST, TEXT_VIEW_FACING."""


class View:
    """A pinhole camera that looks at a point of the optical frame from the side and above."""

    def __init__(self, target: NDArray, distance: float) -> None:
        cos, sin = np.cos(YAW), np.sin(YAW)
        turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        cos, sin = np.cos(PITCH), np.sin(PITCH)
        self._turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]).T @ turn
        self._shift = np.array([0, 0, distance]) - self._turn @ target
        focal = SIZE[1]
        self.intrinsics = np.array([[focal, 0, SIZE[0] / 2], [0, focal, SIZE[1] / 2], [0, 0, 1.0]])

    def __call__(self, points: NDArray) -> NDArray:
        """Points of the optical frame in this camera."""
        return points @ self._turn.T + self._shift

    def lines(self, picture: NDArray, points: NDArray, color: tuple[int, ...], width: int = 1) -> None:
        """points: (2 N, 3), a line between each two; those that come near the camera are left out."""
        seen = self(points).reshape(-1, 2, 3)
        for ends in seen[(seen[..., 2] > 0.2).all(1)]:
            pixels = (ends @ self.intrinsics.T)[:, :2] / ends[:, 2:]
            (a, b) = np.round(pixels * 8).astype(int)
            cv2.line(picture, a.tolist(), b.tolist(), color, width, cv2.LINE_AA, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bag", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    draw(options.bag, options.out)


def draw(bag: Path, out: Path) -> None:
    """Errors: `InputError` if the bag has no mesh markers, or the picture cannot be written."""
    picture = np.full((SIZE[1], SIZE[0], 3), BACKGROUND, np.uint8)
    markers = fullest(bag)
    meshes = [marker for marker in markers if marker.type == TRIANGLES]
    everything = np.concatenate([points_of(marker) for marker in meshes])
    low, high = everything.min(0), everything.max(0)
    floor = high[1]
    view = View((low + high) / 2, 1.6 + 0.75 * float(np.linalg.norm(high - low)))
    draw_floor(view, picture, floor, high[2] + 1)
    view.lines(picture, np.array([[0, 0, 0], [0, 0, 0.4]]), AXES[2], 3)
    view.lines(picture, np.array([[0, 0, 0], [0.4, 0, 0]]), AXES[0], 3)
    view.lines(picture, np.array([[0, 0, 0], [0, 0.4, 0]]), AXES[1], 3)
    for marker in sorted(meshes, key=lambda marker: -view(points_of(marker))[:, 2].mean()):
        draw_mesh(view, picture, marker)
    for marker in markers:
        if marker.type == LINES:
            # RViz hides bones in the flesh; here they stand beside it.
            view.lines(picture, points_of(marker) + [0.9, 0, 0], color_of(marker), 3)
        elif marker.type == TEXT:
            draw_text(view, picture, marker)
    if not cv2.imwrite(str(out), picture[..., ::-1]):
        raise InputError(f"{out} could not be written; give the path of a .png or .jpg file.")


def fullest(bag: Path) -> list[Any]:
    """The markers of the message with the most of them, the middle one of several."""
    found: list[list[Any]] = []
    with AnyReader([bag], default_typestore=typestore()) as reader:
        for connection, _, raw in reader.messages():
            if connection.msgtype == "visualization_msgs/msg/MarkerArray":
                markers = reader.deserialize(raw, connection.msgtype).markers
                found.append([marker for marker in markers if len(marker.points) or marker.text])
    most = max(map(len, found), default=0)
    if not most:
        raise InputError(f"{bag} holds no markers of people.")
    full = [markers for markers in found if len(markers) == most]
    return full[len(full) // 2]


def points_of(marker: Any) -> NDArray:
    return np.array([(point.x, point.y, point.z) for point in marker.points])


def color_of(marker: Any) -> tuple[int, ...]:
    return tuple(round(255 * value) for value in (marker.color.r, marker.color.g, marker.color.b))


def draw_floor(view: View, picture: NDArray, height: float, depth: float) -> None:
    """A grid of a metre a cell, level with the lowest foot."""
    steps = np.arange(-4, 5)
    along = [[(x, height, 0), (x, height, depth)] for x in steps]
    across = [[(-4, height, z), (4, height, z)] for z in np.arange(0, depth)]
    view.lines(picture, np.array([*along, *across], float).reshape(-1, 3), GRID)


def draw_mesh(view: View, picture: NDArray, marker: Any) -> None:
    """Shaded by where its surface looks, as RViz does."""
    corners = view(points_of(marker))
    # A list of triangles has every vertex several times; shared ones make the shading smooth.
    vertices, shared = np.unique(corners.round(6), axis=0, return_inverse=True)
    faces = shared.reshape(-1, 3)
    seen = render(vertices, faces, view.intrinsics, SIZE)
    light = np.abs(seen.interpolate(vertex_normals(vertices, faces), faces) @ [0.3, -0.5, -0.8])
    part = picture[seen.y : seen.y + seen.face.shape[0], seen.x : seen.x + seen.face.shape[1]]
    shade = (0.25 + 0.75 * np.clip(light, 0, 1))[..., None] * color_of(marker)
    part[seen.face >= 0] = shade[seen.face >= 0].astype(np.uint8)


def draw_text(view: View, picture: NDArray, marker: Any) -> None:
    place = marker.pose.position
    seen = view(np.array([place.x, place.y, place.z]))
    x, y = (view.intrinsics @ seen)[:2] / seen[2]
    text = marker.text.strip()
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 2)
    cv2.putText(
        picture, text, (round(x - width / 2), round(y)), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2, cv2.LINE_AA
    )


if __name__ == "__main__":
    main()
