"""3DPW's own sequenceFiles (one pkl a sequence).

SMPL poses lie in the world and are turned by `cam_poses`; the fits are of gendered models, so their body is
"smpl_male" or "smpl_female". Frame i is image_0000i.jpg of the sequence. As in SPIN (protocol 3dpw-spin), frames
without `campose_valid` are left out, the box is that of `poses2d`, and `jointPositions`, which belong to other
regressors, are not read. Tags: sequence, person, frame, gender, valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.joint_sets import OPENPOSE18
from deformer_core.data.photos import PhotoFile
from deformer_core.data.readers.common import Fields, Records, Tags, add_smpl, label, points_window
from deformer_core.data.readers.pickles import read_fields
from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics


def read(path: Path, topology: BodyTopology, images: Path | None = None, split: str = "test") -> Sequence[Annotation]:
    """path: the folder that holds sequenceFiles/<split>, or one pkl. images: by default imageFiles beside those."""
    folder = path / "sequenceFiles" / split
    files = [path] if path.is_file() else sorted(folder.glob("*.pkl"))
    if not files:
        raise InputError(f"{folder} has no pkl files: give the folder of 3DPW, or one of its pkl files")
    root = files[0].resolve().parents[2]
    sequences = [read_fields(file) for file in files]
    people = [
        (number, person, frame)
        for number, sequence in enumerate(sequences)
        for person in range(len(sequence["poses"]))
        for frame in _valid_frames(sequence, person)
    ]
    return Records(len(people), partial(_person, sequences, people, topology, images or root / "imageFiles"))


def _of(sequence: Fields, name: str, person: int) -> Any:
    values = sequence[name]
    if not 0 <= person < len(values):
        raise InputError(f"{sequence.where}, field '{name}' has nothing for person {person}")
    return values[person]


def _valid_frames(sequence: Fields, person: int) -> list[int]:
    where = f"{sequence.where}: person {person}"
    poses = np.asarray(_of(sequence, "poses", person))
    fields = Fields(where, {name: _of(sequence, name, person) for name in ("campose_valid", "poses2d")})
    valid = fields.array("campose_valid", len(poses))
    seen = (fields.array("poses2d", len(poses), 3, 18)[:, 2] > 0).sum(1)
    return np.flatnonzero((valid > 0) & (seen > 1)).tolist()


def _person(
    sequences: Sequence[Fields],
    people: Sequence[tuple[int, int, int]],
    topology: BodyTopology,
    images: Path,
    index: int,
) -> Annotation:
    number, person, frame = people[index]
    sequence = sequences[number]
    where = f"{sequence.where}: person {person}, frame {frame}"
    row = Fields(
        where,
        {name: _of(sequence, name, person)[frame] for name in ("poses", "poses2d")}
        | {"betas": _of(sequence, "betas", person)[:10], "gender": _of(sequence, "genders", person)}
        | {"cam_poses": sequence["cam_poses"][frame], "cam_intrinsics": sequence["cam_intrinsics"]}
        | {"sequence": sequence["sequence"]},
    )
    keypoints = row.array("poses2d", 3, 18).T
    name, gender = row.text("sequence"), row.text("gender")
    photo = PhotoFile(images / name / f"image_{frame:05d}.jpg")
    matrix = row.array("cam_intrinsics", 3, 3)
    lens = Intrinsics(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], *photo.size())
    tags: Tags = {"sequence": name, "person": person, "frame": frame, "gender": gender, "valid": 1}
    labelled = label(topology, where, photo, points_window(keypoints), (OPENPOSE18, keypoints), lens, tags)
    turn = row.array("cam_poses", 4, 4)[:3, :3]
    return add_smpl(labelled, row.array("poses", 72), row.array("betas", 10), gender, to_camera=turn)
