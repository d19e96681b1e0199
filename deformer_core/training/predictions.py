"""A model run over crops, and the same of their mirror images; what every figure of the evaluation is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.geometry.camera import FLIP, project_crop
from deformer_core.training.lifting import LiftingMLP
from deformer_core.training.metrics import FloatArray, joint_errors
from deformer_core.training.progress import progress

BATCH = 16
Crop = tuple[NDArray[np.uint8], NDArray[np.float32]]
"""(S, S, 3) RGB and its box (3,)."""
Model = Callable[[NDArray[np.uint8], NDArray[np.float32]], dict[str, NDArray[np.float32]]]
"""Crops (B, S, S, 3) and boxes (B, 3) to arrays by name, as `runtime.engines` gives them."""


@dataclass(frozen=True)
class Predictions:
    """box, camera (N, 3); joints (N, J, 3), vertices (N, V, 3) of one level, metres; uv (N, J, 2); keypoints
    (N, 17, 3)."""

    box: NDArray[np.float32]
    camera: NDArray[np.float32]
    joints: NDArray[np.float32]
    vertices: NDArray[np.float32]
    uv: NDArray[np.float32]
    keypoints: NDArray[np.float32]

    def of(self, rows: NDArray[np.integer]) -> Predictions:
        """Some people alone."""
        return Predictions(*(getattr(self, field.name)[rows] for field in fields(self)))


def together(parts: Sequence[Predictions]) -> Predictions:
    """The people of all parts, one after the other."""
    return Predictions(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Predictions)))


def predict(model: Model, crops: Iterable[Crop], total: int, level: str = "coarse") -> Predictions:
    """Run crops with their boxes through a model, in batches."""
    parts: list[Predictions] = []
    with progress(0, total, "people") as bar:
        for images, box in batches(crops):
            out = model(images, box)
            points = (torch.from_numpy(out["joints"]), torch.from_numpy(out["camera"]), torch.from_numpy(box))
            uv = project_crop(*points).numpy()
            vertices = out[f"vertices_{level}"]
            parts.append(Predictions(box, out["camera"], out["joints"], vertices, uv, out["keypoints"]))
            bar.update(len(box))
    return together(parts)


def batches(crops: Iterable[Crop]) -> Iterator[Crop]:
    """Stacks of up to `BATCH` crops and boxes."""
    held: list[Crop] = []
    for crop in crops:
        held.append(crop)
        if len(held) == BATCH:
            yield np.stack([image for image, _ in held]), np.stack([box for _, box in held])
            held = []
    if held:
        yield np.stack([image for image, _ in held]), np.stack([box for _, box in held])


def mirrored(crops: Iterable[Crop]) -> Iterator[Crop]:
    """The crops as seen in a mirror beside the camera."""
    for image, box in crops:
        yield np.ascontiguousarray(image[:, ::-1]), box * FLIP


def flip_error(joints: FloatArray, of_mirrored: FloatArray, joint_mirror: Sequence[int]) -> FloatArray:
    """How far the prediction for a mirrored image is from the mirrored prediction: mean over joints, (N,) mm.

    joints, of_mirrored: (N, J, 3) millimetres. A model that treats left and right alike has 0.
    """
    return joint_errors(of_mirrored[:, list(joint_mirror)] * FLIP, joints).mean(-1)


def lift(model: LiftingMLP, found: Predictions) -> Predictions:
    """The baseline on the same crops and keypoints."""
    with torch.no_grad():
        where = torch.from_numpy(found.box)
        out = model(torch.from_numpy(found.keypoints), where)
        joints = model.regressor @ out["vertices_coarse"]
        uv = project_crop(joints, out["camera"], where)
    made = (out["camera"].numpy(), joints.numpy(), out["vertices_coarse"].numpy(), uv.numpy())
    return Predictions(found.box, *made, found.keypoints)
