"""The people of many images at once: of several cameras, or of several moments, in one batch of the engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.errors import InputError
from deformer_core.geometry.camera import CropWindow, Intrinsics
from deformer_core.runtime.crops import cut_crop
from deformer_core.runtime.device_crops import Crops, cut_crops
from deformer_core.runtime.engines import Arrays, Engine
from deformer_core.runtime.person import Person
from deformer_core.runtime.placement import place

log = logging.getLogger(__name__)

MAX_CROPS = 64
"""Crops in one call of the engine, at most."""
BEST_KEYPOINTS, LEAST_KEYPOINT_SCORE = 8, 0.25
"""A detected box whose best 8 keypoints score less than this on average is taken for a false alarm: on 250 COCO
photos (training split) this drops a fifth of the false alarms and 2 people in 1000."""


@dataclass
class View:
    """One image and who is in it. image: (H, W, 3) uint8 RGB. boxes: (N, 4) pixels. scores: (N,).

    detected: the boxes are a detector's, and those in which the network sees nobody may be dropped.
    """

    image: NDArray[np.uint8]
    intrinsics: Intrinsics
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    detected: bool


class BatchEstimator:
    """Reconstructs the bodies in any number of images.

    When a GPU has no memory to cut a batch's crops or to run it, it is halved, for good, and a warning says so.
    """

    def __init__(self, engine: Engine, topology: BodyTopology):
        self.engine, self.topology = engine, topology
        self.max_crops = MAX_CROPS

    @property
    def is_reduced(self) -> bool:
        """Whether a batch did not fit into memory."""
        return self.max_crops < MAX_CROPS

    def __call__(self, views: Sequence[View], levels: Sequence[str]) -> list[list[Person]]:
        """For every view its people, in the order of the boxes, numbered from 0.

        levels: mesh levels to return, one below the other in `Person.vertices`; see `split_levels`.

        Raises:
            InputError: the engine's model has no such level, or the GPU has not even memory for one person.
        """
        seen = [(view, CropWindow.from_bbox(box)) for view in views for box in view.boxes]
        if not seen:
            return [[] for _ in views]
        directions = np.stack([window.box(view.intrinsics) for view, window in seen]).astype(np.float32)
        outputs = self._run(seen, directions)
        people, first = [], 0
        for view in views:
            rows = slice(first, first + len(view.boxes))
            first = rows.stop
            part = {name: array[rows] for name, array in outputs.items()}
            people.append(_people(view, part, directions[rows], levels))
        return people

    def _run(self, people: Sequence[tuple[View, CropWindow]], box: NDArray[np.float32]) -> Arrays:
        """The engine's outputs for people of any number of views, those of a view side by side."""
        parts: list[Arrays] = []
        first = 0
        while first < len(people):
            rows = slice(first, first + self.max_crops)
            some = people[rows]
            try:
                parts.append(self.engine(self._cut(some), box[rows]))
                first += len(some)
                continue
            except torch.OutOfMemoryError as error:
                if len(some) == 1:
                    message = "the GPU has no memory even for one person: free some, or set device to cpu"
                    raise InputError(message) from error
            self._shrink(len(some))  # out here, where what the error held on to is free again
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _cut(self, people: Sequence[tuple[View, CropWindow]]) -> Crops:
        """On the engine's GPU, or where it has none by OpenCV, which is faster on a CPU."""
        device, size = self.engine.crop_device, self.engine.image_size
        if device is None:
            return np.stack([cut_crop(view.image, window, view.intrinsics, size) for view, window in people])
        crops = []
        for _, group in groupby(people, key=lambda person: id(person[0])):
            views, windows = zip(*group)
            crops.append(cut_crops(views[0].image, windows, views[0].intrinsics, size, device))
        return torch.cat(crops)

    def _shrink(self, tried: int) -> None:
        self.max_crops = tried // 2
        torch.cuda.empty_cache()
        log.warning("The GPU has no memory for %d people at once: from now on %d at a time", tried, self.max_crops)


def split_levels(person: Person, levels: Sequence[str], topology: BodyTopology) -> dict[str, Person]:
    """A person with several levels' vertices as one person per level."""
    ends = np.cumsum([len(topology.levels[level].vertices) for level in levels])[:-1]
    parts = np.split(person.vertices, ends)
    return {level: replace(person, vertices=part, level=level) for level, part in zip(levels, parts)}


def _people(view: View, outputs: Arrays, box: NDArray[np.float32], levels: Sequence[str]) -> list[Person]:
    if not len(box):
        return []
    if missing := [level for level in levels if f"vertices_{level}" not in outputs]:
        raise InputError(f"the model has no mesh level '{missing[0]}': use a finer one")
    vertices = np.concatenate([outputs[f"vertices_{level}"] for level in levels], 1)
    matrix = np.asarray(view.intrinsics.matrix)
    placed = place(vertices, outputs["joints"], outputs["camera"], box, matrix)
    kept = np.arange(len(box))
    if view.detected:
        best = np.sort(outputs["keypoints"][..., 2], axis=1)[:, -BEST_KEYPOINTS:].mean(1)
        kept = np.flatnonzero(best >= LEAST_KEYPOINT_SCORE)
    return [
        Person(
            id=number,
            box=view.boxes[index].astype(np.float32),
            score=float(view.scores[index]),
            joints=placed.joints[index],
            vertices=placed.vertices[index],
            translation=placed.translation[index],
            camera=outputs["camera"][index],
            keypoints_2d=placed.keypoints_2d[index],
            level=levels[0],
            intrinsics=matrix.astype(np.float32),
        )
        for number, index in enumerate(kept)
    ]
