"""Photos with COCO-17 keypoints as samples with 2D labels alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation, CropChange, crop
from deformer_core.data.augment import jitter_window
from deformer_core.data.photos import read_photo
from deformer_core.data.readers.coco_people import NUM_KEYPOINTS, LabelledPerson, read_people
from deformer_core.data.sample import Sample
from deformer_core.geometry.camera import CropWindow

__all__ = ["NUM_KEYPOINTS", "KeypointPhotos", "LabelledPerson", "read_people", "read_photo"]

JITTER = (0.15, 0.04)
"""Of the windows of further views: scale, and shift in sides."""


class KeypointPhotos:
    """People of photos as a sequence of samples: every person `views` times.

    View 0 is the plain crop (margin 1.25, assumed 55 degree lens), odd views are mirrored, views from 2 on have
    their window changed a little, always in the same way. All views of a person lie together.
    """

    def __init__(self, people: Sequence[LabelledPerson], topology: BodyTopology, size: int, views: int = 1) -> None:
        self.people, self.topology, self.size, self.views = people, topology, size, views

    def __len__(self) -> int:
        return len(self.people) * self.views

    def __getitem__(self, index: int) -> Sample:
        person = self.people[index // self.views].annotation(self.topology)
        return crop(person, self.topology, self.size, _change(person, index, index % self.views))


def _change(person: Annotation, index: int, view: int) -> CropChange:
    mirror = view % 2 == 1
    if view < 2:
        return CropChange(mirror=mirror)
    plain = CropWindow(0, 0, person.side)
    window = jitter_window(np.random.default_rng(index), plain, *JITTER)
    shift = (window.center_x / window.side, window.center_y / window.side)
    return CropChange(mirror=mirror, scale=window.side / plain.side, shift=shift)
