"""COCO's person_keypoints_*.json, also with the feet of COCO-WholeBody (`foot_kpts`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.joint_sets import COCO17, FEET
from deformer_core.data.photos import PhotoFile
from deformer_core.data.readers.common import (
    Fields,
    Named,
    Records,
    box_window,
    label,
    merge,
    read_json,
    records_of,
)
from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics


def read(path: Path, topology: BodyTopology, images: Path | None = None, least: int = 6) -> Sequence[Annotation]:
    """images: the folder of `file_name`, by default the file's. least: labelled keypoints of a person that counts."""
    content = read_json(path)
    photos = {record["id"]: record for record in records_of(path, content, "images")}
    people = [
        record
        for record in records_of(path, content, "annotations")
        if not ("iscrowd" in record and record["iscrowd"]) and record.number("num_keypoints") >= max(least, 1)
    ]
    return Records(len(people), partial(_person, people, photos, topology, images or path.parent))


def _person(
    people: Sequence[Fields], photos: Mapping[int, Fields], topology: BodyTopology, images: Path, index: int
) -> Annotation:
    row = people[index]
    if row["image_id"] not in photos:
        raise InputError(f"{row.where}, field 'image_id' is {row['image_id']}, which no record of 'images' has")
    photo = photos[row["image_id"]]
    lens = Intrinsics.from_fov(int(photo.number("width")), int(photo.number("height")))
    sets: list[Named] = [(COCO17, row.array("keypoints", 17, 3))]
    if "foot_kpts" in row:
        sets.append((FEET, row.array("foot_kpts", 6, 3)))
    names, keypoints = merge(*sets)
    keypoints[:, 2] = keypoints[:, 2] > 0
    window = box_window(*row.array("bbox", 4))
    return label(topology, row.where, PhotoFile(images / photo.text("file_name")), window, (names, keypoints), lens)
