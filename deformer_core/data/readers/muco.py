"""MuCo-3DHP in the json of Pose2Mesh: MuCo-3DHP.json, and smpl_param.json beside it where there is one.

`images`: file_name, width, height, f, c; `annotations`: image_id, bbox, keypoints_img (21 x 2 pixels) and keypoints_cam
(21 x 3 mm, in the camera); smpl_param.json: an annotation's id to pose and shape. The pictures are pasted together of
several people; the nearest alone is taken, since the others may be hidden behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.joint_sets import JOINT_SETS
from deformer_core.data.photos import PhotoFile
from deformer_core.data.readers.common import (
    Fields,
    Records,
    add_joints,
    add_smpl,
    box_window,
    label,
    read_json,
    records_of,
    with_weight,
)
from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics

NAMES = JOINT_SETS["muco21"]
PELVIS = NAMES.index("pelvis")


def read(path: Path, topology: BodyTopology, images: Path | None = None) -> Sequence[Annotation]:
    """images: the folder of `file_name`, by default the file's."""
    content = read_json(path)
    photos = {record["id"]: record for record in records_of(path, content, "images")}
    nearest: dict[int, tuple[float, Fields]] = {}
    for record in records_of(path, content, "annotations"):
        photo, depth = record["image_id"], float(record.array("keypoints_cam", len(NAMES), 3)[PELVIS, 2])
        if photo not in photos:
            raise InputError(f"{record.where}, field 'image_id' is {photo}, which no record of 'images' has")
        if photo not in nearest or depth < nearest[photo][0]:
            nearest[photo] = (depth, record)
    people = [(record, photos[photo]) for photo, (_, record) in nearest.items()]
    file = path.with_name("smpl_param.json")
    fits = Fields(str(file), read_json(file) if file.is_file() else {})
    return Records(len(people), partial(_person, people, fits, topology, images or path.parent))


def _person(
    people: Sequence[tuple[Fields, Fields]], fits: Fields, topology: BodyTopology, images: Path, index: int
) -> Annotation:
    row, photo = people[index]
    seen = row.array("keypoints_cam", len(NAMES), 3) / 1000
    uv = row.array("keypoints_img", len(NAMES), 2)
    visible = row.array("keypoints_vis", len(NAMES)) if "keypoints_vis" in row else 1.0
    (fx, fy), (cx, cy) = photo.array("f", 2), photo.array("c", 2)
    lens = Intrinsics(fx, fy, cx, cy, int(photo.number("width")), int(photo.number("height")))
    window = box_window(*row.array("bbox", 4))
    photo_file = PhotoFile(images / photo.text("file_name"))
    person = label(topology, row.where, photo_file, window, (NAMES, with_weight(uv, visible)), lens)
    person = add_joints(person, topology, (NAMES, with_weight(seen)), in_camera=True)
    if str(row["id"]) in fits:
        fit = fits.within("", row["id"])
        person = add_smpl(person, fit.array("pose", 72), fit.array("shape", 10))
    return person
