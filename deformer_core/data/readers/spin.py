"""The npz files of SPIN and PyMAF (`dataset_extras`).

Fields: imgname, center (N, 2), scale (N,) of 200 pixels; where the set has them part (N, 24, 3) in J24, openpose
(N, 25, 3), S (N, 24, 4) metres, pose (N, 72), shape (N, 10), has_smpl (N,), gender (N,) "m" or "f".
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
from deformer_core.data.readers.common import Named, Records, add_joints, add_smpl, label, merge
from deformer_core.data.readers.pickles import Table


def read(path: Path, topology: BodyTopology, images: Path | None = None) -> Sequence[Annotation]:
    """images: the dataset's root that `imgname` counts from, by default the file's folder."""
    table = Table(path, "imgname")
    return Records(len(table), partial(_person, table, topology, images or path.parent))


def _person(table: Table, topology: BodyTopology, images: Path, index: int) -> Annotation:
    row = table.row(index)
    center, scale = row.array("center", 2), row.number("scale")
    sets: list[Named] = []
    if "part" in row:
        sets.append((J24, row.array("part", 24, 3)))
    if "openpose" in row:
        sets.append((JOINT_SETS["openpose25"], row.array("openpose", 25, 3)))
    if not sets:
        sets.append((J24, np.zeros((24, 3))))
    gender = row.text("gender") if "gender" in row else ""
    photo = PhotoFile(images / row.text("imgname"))
    person = label(topology, row.where, photo, (*center, 200 * scale), merge(*sets), tags={"gender": gender})
    if "S" in row:
        person = add_joints(person, topology, (J24, row.array("S", 24, 4)))
    if "pose" in row and ("has_smpl" not in row or row.number("has_smpl")):
        person = add_smpl(person, row.array("pose", 72), row.array("shape", 10), gender)
    return person
