"""The npz files of HMR2 (4D-Humans).

Fields: imgname, center (N, 2), scale (N,) or (N, 2) in pixels, extra_keypoints_2d (N, 19, 3) in the first 19 of J24,
body_keypoints_2d (N, 25, 3) in OpenPose's order, the same with `_3d` (N, ., 4) in metres, body_pose (N, 72) with the
root's first, betas (N, 10), has_body_pose and has_betas (N,).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.joint_sets import J24, JOINT_SETS
from deformer_core.data.photos import PhotoFile
from deformer_core.data.readers.common import Fields, Named, Records, add_joints, add_smpl, label, merge
from deformer_core.data.readers.pickles import Table

_SETS = {"extra": J24[:19], "body": JOINT_SETS["openpose25"]}


def read(path: Path, topology: BodyTopology, images: Path | None = None, unit: float = 1.0) -> Sequence[Annotation]:
    """images: what `imgname` counts from, by default the file's folder. unit: pixels in one of `scale`."""
    table = Table(path, "imgname")
    return Records(len(table), partial(_person, table, topology, images or path.parent, unit))


def _person(table: Table, topology: BodyTopology, images: Path, unit: float, index: int) -> Annotation:
    row = table.row(index)
    window = (*row.array("center", 2), unit * float(row.array("scale", -1).max()))
    photo = PhotoFile(images / row.text("imgname"))
    person = label(topology, row.where, photo, window, _keypoints(row, "2d", 3))
    person = add_joints(person, topology, _keypoints(row, "3d", 4))
    if "body_pose" in row and all(flag not in row or row.number(flag) for flag in ("has_body_pose", "has_betas")):
        person = add_smpl(person, row.array("body_pose", 72), row.array("betas", 10))
    return person


def _keypoints(row: Fields, kind: str, size: int) -> Named:
    sets: list[Named] = [
        (names, row.array(f"{name}_keypoints_{kind}", len(names), size))
        for name, names in _SETS.items()
        if f"{name}_keypoints_{kind}" in row
    ]
    return merge(*sets) if sets else ((), np.zeros((0, size)))
