"""Photos with COCO-17 keypoints as samples with 2D labels alone.

Reads the list of `coco_people.json`: a photo an entry, with `file` (relative to the json), `our_split` and
`people`, each with `bbox_xywh`, `keypoints` (17 x (x, y, v), v = 0 for not labelled) and `usable`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.data.augment import jitter_window, mirror_sample
from deformer_core.data.sample import Sample
from deformer_core.errors import InputError
from deformer_core.geometry.camera import CropWindow, Intrinsics

NUM_KEYPOINTS = 17
JITTER = (0.15, 0.04)
"""Of the windows of further views: scale, and shift in sides."""


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


def read_people(path: Path, split: str) -> list[LabelledPerson]:
    """The usable people of a split ("train", "val"), in the file's order.

    Errors: `InputError` naming the file, and the record and field where one is wrong.
    """
    try:
        photos = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give the path of a coco_people.json.") from error
    people = []
    for number, photo in enumerate(photos):
        try:
            if photo["our_split"] != split:
                continue
            entries = [(place, person) for place, person in enumerate(photo["people"]) if person["usable"]]
            people += [_read_person(path.parent / photo["file"], place, person) for place, person in entries]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: record {number} has a missing or wrong field ({error}).") from error
    if not people:
        raise InputError(f"{path} has no usable people in split '{split}': the splits are 'train' and 'val'.")
    return people


def _read_person(photo: Path, place: int, person: dict[str, Any]) -> LabelledPerson:
    x, y, width, height = (float(value) for value in person["bbox_xywh"])
    keypoints = np.array(person["keypoints"], np.float32).reshape(NUM_KEYPOINTS, 3)
    box = np.array([x, y, x + width, y + height], np.float32)
    return LabelledPerson(photo, box, keypoints, f"{photo.name}:{place}")


class KeypointPhotos:
    """People of photos as a sequence of samples: every person `views` times.

    View 0 is the plain crop (margin 1.25, assumed 55 degree lens), odd views are mirrored, views from 2 on have
    their window changed a little, always in the same way. All views of a person lie together.
    """

    def __init__(
        self, people: list[LabelledPerson], topology: BodyTopology, size: int, views: int = 1, margin: float = 1.25
    ) -> None:
        self.people, self.topology, self.size, self.views, self.margin = people, topology, size, views, margin

    def __len__(self) -> int:
        return len(self.people) * self.views

    def __getitem__(self, index: int) -> Sample:
        person, view = self.people[index // self.views], index % self.views
        image = read_photo(person.photo)
        window = CropWindow.from_bbox(person.box, self.margin)
        if view >= 2:
            window = jitter_window(np.random.default_rng(index), window, *JITTER)
        joints = len(self.topology.joint_names)
        uv, weight = np.zeros((joints, 2), np.float32), np.zeros(joints, np.float32)
        center = np.array([window.center_x, window.center_y], np.float32)
        uv[:NUM_KEYPOINTS] = (person.keypoints[:, :2] - center) / (window.side / 2)
        weight[:NUM_KEYPOINTS] = person.keypoints[:, 2] > 0
        sample = Sample(
            source=person.name,
            box=window.box(Intrinsics.from_fov(image.shape[1], image.shape[0])).astype(np.float32),
            uv=uv * weight[:, None],
            uv_weight=weight,
            image=cut_window(image, window, self.size),
        )
        return mirror_sample(sample, self.topology) if view % 2 else sample


def read_photo(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB. Errors: `InputError` if it is not a readable image."""
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{path} is missing or not an image: check the folder beside the json.")
    return np.ascontiguousarray(image[..., ::-1])


def cut_window(image: NDArray[np.uint8], window: CropWindow, size: int) -> NDArray[np.uint8]:
    """(size, size, 3), black outside the image; averaged where pixels of the image are smaller."""
    import cv2

    shrink = max(1, int(window.side // size))
    crop = cv2.warpAffine(image, window.affine(size * shrink), (size * shrink, size * shrink), flags=cv2.INTER_LINEAR)
    return crop if shrink == 1 else cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
