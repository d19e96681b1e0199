"""People of a batch as pictures: the crop, the predicted body over it, and predicted and true body from the side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.geometry.camera import crop_rotation, full_translation

FloatArray = NDArray[np.float32]
Picture = NDArray[np.uint8]
SIZE = 256
"""Pixels a panel; crops of other sizes are scaled to it."""
_PREDICTED, _TRUE = 0, 2
"""Colours of `view.overlay.PALETTE`."""


@dataclass(frozen=True)
class Seen:
    """A body as `view.overlay.Body`, in the full camera of a crop that is `SIZE` pixels a side."""

    id: int
    vertices: FloatArray
    translation: FloatArray
    intrinsics: FloatArray


def see(vertices: FloatArray, camera: FloatArray, box: FloatArray, color: int = _PREDICTED) -> Seen:
    """vertices: (V, 3) model space; camera, box: (3,), see `geometry.camera`."""
    where = torch.from_numpy(np.asarray(box, np.float32))[None]
    turn = crop_rotation(where)[0].numpy()
    translation = full_translation(torch.from_numpy(np.asarray(camera, np.float32))[None], where)[0].numpy()
    focal = SIZE / 2 / box[2]
    principal = SIZE / 2 - focal * box[:2]
    matrix = np.array([[focal, 0, principal[0]], [0, focal, principal[1]], [0, 0, 1]], np.float32)
    return Seen(color, vertices @ turn.T, translation, matrix)


def draw_person(
    image: Picture | None,
    box: FloatArray,
    vertices: FloatArray,
    camera: FloatArray,
    faces: NDArray[np.integer],
    true_vertices: FloatArray | None = None,
) -> Picture:
    """One row of `SIZE` pixel panels: the crop, with the prediction, the prediction's and the truth's side.

    image: (S, S, 3) RGB, grey without one. vertices, true_vertices: (V, 3) metres, model space. The side views are seen
    from the image's right, in one scale; the truth stands where the prediction does, since its camera may be unknown.
    Returns (SIZE, 3 or 4 * SIZE, 3) RGB.
    """
    import cv2

    from deformer_core.view.overlay import draw_overlay, draw_side_view, side_bounds

    shown = np.full((SIZE, SIZE, 3), 128, np.uint8)
    if image is not None:
        shown = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    people = [see(vertices, camera, box)]
    if true_vertices is not None:
        people.append(see(true_vertices, camera, box, _TRUE))
    ends = np.stack([side_bounds([person]) for person in people])
    bounds = np.stack([ends[:, 0].min(0), ends[:, 1].max(0)])
    sides = [draw_side_view([person], faces, (SIZE, SIZE), bounds) for person in people]
    return np.hstack([shown, draw_overlay(shown, people[:1], faces), *sides])
