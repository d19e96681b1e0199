"""UP-3D (up-3d/): NNNNN_image.png, NNNNN_joints.npy (3 x 14: x, y, weight in LSP's order), NNNNN_body.pkl (pose, betas,
and rt, the camera's rotation), NNNNN_render_light.png (the fitted body on white), and lists such as trainval.txt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.joint_sets import LSP14
from deformer_core.data.photos import PhotoFile, read_photo
from deformer_core.data.readers.common import (
    Fields,
    Records,
    Window,
    add_smpl,
    box_window,
    label,
    points_window,
)
from deformer_core.data.readers.pickles import read_fields
from deformer_core.errors import InputError
from deformer_core.geometry.rotations import rotation_from_axis_angle

_IMAGE = "_image.png"
JOINTS_AIR = 1.5
"""Side of the square over the extent of the joints, where there is no picture of the whole body."""


def read(path: Path, topology: BodyTopology, split: str | None = None) -> Sequence[Annotation]:
    """path: the folder. split: "trainval", "test" or another list there; by default all people."""
    listing = path / f"{split}.txt"
    if split is None:
        names = sorted(file.name for file in path.glob(f"*{_IMAGE}"))
    elif listing.is_file():
        names = [line.strip().lstrip("/") for line in listing.read_text(encoding="utf-8").split()]
    else:
        raise InputError(f"{listing} does not exist: give a split of which the folder has a list")
    if not names:
        raise InputError(f"{path} has no *{_IMAGE}: give the folder up-3d of UP-3D")
    return Records(len(names), partial(_person, path, names, topology))


def _person(folder: Path, names: Sequence[str], topology: BodyTopology, index: int) -> Annotation:
    stem = names[index].removesuffix(_IMAGE)
    path = folder / f"{stem}_joints.npy"
    try:
        joints = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"record {index}: {path} cannot be read ({error}): is the folder whole?") from error
    keypoints = Fields(str(path), {"joints": joints}).array("joints", 3, 14).T
    body = read_fields(folder / f"{stem}_body.pkl")
    turn = rotation_from_axis_angle(torch.from_numpy(body.array("rt", 3))).numpy() if "rt" in body else None
    source = str(folder / names[index])
    window = _rendered_window(folder / f"{stem}_render_light.png") or points_window(keypoints, JOINTS_AIR)
    person = label(topology, source, PhotoFile(folder / names[index]), window, (LSP14, keypoints))
    return add_smpl(person, body.array("pose", 72), body.array("betas", -1), to_camera=turn)


def _rendered_window(path: Path) -> Window | None:
    """The square around what is not white."""
    if not path.is_file():
        return None
    rows, columns = np.nonzero(read_photo(path).min(2) < 255)
    if not len(rows):
        return None
    left, top = columns.min(), rows.min()
    return box_window(left, top, columns.max() + 1 - left, rows.max() + 1 - top)
