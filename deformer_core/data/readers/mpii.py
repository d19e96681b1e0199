"""MPII: the json lists of the HRNet line (train.json, valid.json), or train.h5 of the stacked hourglass.

center, scale (height over 200 pixels), and 16 joints that count pixels from 1: `joints` with `joints_vis` and `image`
in the json; `part`, (0, 0) where unknown, with `imgname` in the h5, which takes h5py.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.joint_sets import JOINT_SETS
from deformer_core.data.photos import PhotoFile
from deformer_core.data.readers.common import Fields, Records, label, read_json, with_weight
from deformer_core.errors import InputError


def read(path: Path, topology: BodyTopology, images: Path | None = None) -> Sequence[Annotation]:
    """images: the folder of the images, by default the file's."""
    rows = _read_h5(path) if path.suffix in (".h5", ".hdf5") else _read_json(path)
    return Records(len(rows), partial(_person, rows, topology, images or path.parent))


def _read_json(path: Path) -> list[Fields]:
    content = read_json(path)
    if not isinstance(content, list):
        raise InputError(f"{path} is not a list of people: give MPII's train.json or valid.json of the HRNet line")
    return [Fields(f"{path}: record {number}", record) for number, record in enumerate(content)]


def _read_h5(path: Path) -> list[Fields]:
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise InputError(f"{path} is read with h5py, which is not installed: pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            columns = {name: np.asarray(file[name]) for name in ("imgname", "center", "scale", "part")}
    except (OSError, KeyError) as error:
        raise InputError(f"{path} is not MPII's train.h5 ({error}): check the path") from error
    return [
        Fields(f"{path}: record {number}", {"image": image, "center": center, "scale": scale, "joints": part})
        for number, (image, center, scale, part) in enumerate(zip(*columns.values()))
    ]


def _person(rows: Sequence[Fields], topology: BodyTopology, images: Path, index: int) -> Annotation:
    row = rows[index]
    joints = row.array("joints", 16, 2)
    visible = row.array("joints_vis", 16) if "joints_vis" in row else np.all(joints > 0, axis=1)
    x, y = row.array("center", 2) - 0.5
    scale = row.number("scale")
    # As the HRNet line frames MPII's people, whose centre lies above that of the whole body.
    window = (x, y + 15 * scale, 1.25 * 200 * scale)
    photo = PhotoFile(images / row.text("image"))
    return label(topology, row.where, photo, window, (JOINT_SETS["mpii16"], with_weight(joints - 0.5, visible)))
