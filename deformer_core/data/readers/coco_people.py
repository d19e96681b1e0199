"""Our list of photos with COCO-17 keypoints, coco_people.json.

A photo an entry, with `file` (relative to the json), `our_split` and `people`, each with `bbox_xywh`, `keypoints`
(17 x (x, y, v), v = 0 for not labelled) and `usable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.joint_sets import COCO17
from deformer_core.data.photos import PhotoFile
from deformer_core.data.readers.common import Fields, Records, label, read_json, with_weight
from deformer_core.errors import InputError
from deformer_core.geometry.camera import CropWindow

NUM_KEYPOINTS = len(COCO17)
MARGIN = 1.25


@dataclass(frozen=True)
class LabelledPerson:
    """box: (4,) xyxy, keypoints: (17, 3), pixels of the photo."""

    photo: Path
    box: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    name: str

    @property
    def side(self) -> float:
        """The longer side of the box, pixels: what PCK thresholds are shares of."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))

    def annotation(self, topology: BodyTopology) -> Annotation:
        """With a lens assumed; errors: `InputError` if there is no photo."""
        window = CropWindow.from_bbox(self.box, MARGIN)
        labels = (COCO17, with_weight(self.keypoints[:, :2], self.keypoints[:, 2] > 0))
        square = (window.center_x, window.center_y, window.side)
        return label(topology, self.name, PhotoFile(self.photo), square, labels)


def read(path: Path, topology: BodyTopology, split: str = "train") -> Sequence[Annotation]:
    """split: "train" or "val"."""
    people = read_people(path, split)
    return Records(len(people), partial(_person, people, topology))


def _person(people: Sequence[LabelledPerson], topology: BodyTopology, index: int) -> Annotation:
    return people[index].annotation(topology)


def read_people(path: Path, split: str) -> list[LabelledPerson]:
    """The usable people of a split ("train", "val"), in the file's order.

    Errors: `InputError` naming the file, and the record and field where one is wrong.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path} is not a list of photos: give the path of a coco_people.json")
    people = []
    for number, entry in enumerate(content):
        photo = Fields(f"{path}: record {number}", entry)
        if photo.text("our_split") != split:
            continue
        for place, listed in enumerate(photo["people"]):
            person = Fields(f"{photo.where}, person {place}", listed)
            if person["usable"]:
                x, y, width, height = person.array("bbox_xywh", 4)
                box = np.array([x, y, x + width, y + height], np.float32)
                keypoints = person.array("keypoints", NUM_KEYPOINTS, 3).astype(np.float32)
                file = path.parent / photo.text("file")
                people.append(LabelledPerson(file, box, keypoints, f"{file.name}:{place}"))
    if not people:
        raise InputError(f"{path} has no usable people in split '{split}': the splits are 'train' and 'val'.")
    return people
