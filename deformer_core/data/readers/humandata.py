"""HumanData, the npz of mmhuman3d.

image_path (N,), bbox_xywh (N, 5), keypoints2d (N, 190, 3) and keypoints3d (N, 190, 4, metres), their masks (190,), smpl
(body_pose (N, 23, 3), global_orient (N, 3), betas (N, 10)) and meta (gender). Where `__keypoints_compressed__` is true,
keypoints hold the joints of the mask alone. Some sets name them keypoints2d_x; `keypoints` says which to take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.joint_sets import FEET, J24, JOINT_SETS
from deformer_core.data.photos import PhotoFile
from deformer_core.data.readers.common import Fields, Named, Records, add_joints, add_smpl, box_window, label, merge
from deformer_core.data.readers.pickles import Table

TOTAL = 190
_FACE = ("nose", "right_eye", "left_eye", "right_ear", "left_ear")
_REGRESSED = ("right_hip", "left_hip", *J24[12:19])
# First place and names of the runs of HumanData's joints that bodies have, those marked on photos before SMPL's own.
_RUNS = (
    (55, (*_FACE, *FEET)),
    (144, _REGRESSED),
    (0, JOINT_SETS["smpl24"][:22]),
    (153, JOINT_SETS["openpose25"]),
)


def read(path: Path, topology: BodyTopology, images: Path | None = None, keypoints: str = "") -> Sequence[Annotation]:
    """images: what `image_path` counts from, by default the file's folder. keypoints: what follows keypoints2d_."""
    table = Table(path, "image_path")
    suffix = f"_{keypoints}" if keypoints else ""
    masks = {kind: _columns(table, f"keypoints{kind}{suffix}") for kind in ("2d", "3d")}
    return Records(len(table), partial(_person, table, masks, suffix, topology, images or path.parent))


def _columns(table: Table, name: str) -> NDArray[np.intp]:
    """Which of HumanData's joints are known."""
    header = table.header()
    if name not in header:
        return np.arange(0)
    mask = header.array(f"{name}_mask", TOTAL) if f"{name}_mask" in header else np.ones(TOTAL)
    return np.flatnonzero(mask > 0)


def _person(
    table: Table,
    masks: Mapping[str, NDArray[np.intp]],
    suffix: str,
    topology: BodyTopology,
    images: Path,
    index: int,
) -> Annotation:
    row, header = table.row(index), table.header()
    gender = _gender(header, index)
    window = box_window(*row.array("bbox_xywh", 5)[:4])
    packed = "__keypoints_compressed__" in header and bool(np.all(header["__keypoints_compressed__"]))
    keypoints = {
        kind: _keypoints(row, f"keypoints{kind}{suffix}", columns, size, packed)
        for (kind, columns), size in zip(masks.items(), (3, 4))
    }
    photo = PhotoFile(images / row.text("image_path"))
    person = label(topology, row.where, photo, window, keypoints["2d"], tags={"gender": gender})
    person = add_joints(person, topology, keypoints["3d"])
    if "smpl" in header:
        fits = _inner(header, "smpl")
        own = {name: values[index] for name, values in fits.items() if len(values) > index}
        fit = Fields(f"{row.where}, field 'smpl'", own)
        pose = np.concatenate([fit.array("global_orient", 3), fit.array("body_pose", 69)])
        person = add_smpl(person, pose, fit.array("betas", -1), gender)
    return person


def _keypoints(row: Fields, name: str, columns: NDArray[np.intp], size: int, packed: bool) -> Named:
    if not len(columns):
        return (), np.zeros((0, size))
    values = np.zeros((TOTAL, size))
    if packed:
        values[columns] = row.array(name, len(columns), size)
    else:
        values[columns] = row.array(name, TOTAL, size)[columns]
    return merge(*((names, values[first : first + len(names)]) for first, names in _RUNS))


def _inner(header: Fields, name: str) -> dict[str, NDArray]:
    """A dict that numpy has wrapped in an array of no dimensions."""
    value = header[name]
    content = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    return dict(Fields(f"{header.where}, field '{name}'", content).values())


def _gender(header: Fields, index: int) -> str:
    genders = _inner(header, "meta").get("gender") if "meta" in header else None
    return str(genders[index]) if genders is not None and len(genders) > index else ""
