"""EMDB's own files: P0 to P9, each with sequences of images/00000.jpg and one *_data.pkl.

gender, name, emdb1, emdb2, good_frames_mask (F,), camera (intrinsics (3, 3), extrinsics (F, 4, 4) world to camera,
width, height), smpl (poses_root (F, 3) in the world, poses_body (F, 69), betas (10)), kp2d (F, 24, 2), bboxes > bboxes
(F, 4) corners. As in 3DPW, fits are of gendered bodies. Frames that are not good are left out. Tags: sequence, frame,
gender, valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.joint_sets import JOINT_SETS
from deformer_core.data.photos import PhotoFile
from deformer_core.data.readers.common import Fields, Records, Tags, add_smpl, box_window, label, with_weight
from deformer_core.data.readers.pickles import read_fields
from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics

PARTS = ("emdb1", "emdb2", "all")


def read(path: Path, topology: BodyTopology, split: str = "emdb1") -> Sequence[Annotation]:
    """path: the folder of P0 to P9. split: "emdb1" or "emdb2", the sequences so marked, or "all"."""
    if split not in PARTS:
        raise InputError(f"there is no split '{split}' of EMDB: give {', '.join(PARTS)}")
    files = sorted(path.glob("P*/*/*_data.pkl"))
    if not files:
        raise InputError(f"{path} has no P*/*/*_data.pkl: give EMDB's folder, which holds P0 to P9")
    sequences = [(file, read_fields(file)) for file in files]
    if split != "all":
        sequences = [(file, sequence) for file, sequence in sequences if sequence.number(split)]
    people = [
        (number, frame)
        for number, (_, sequence) in enumerate(sequences)
        for frame in np.flatnonzero(sequence.array("good_frames_mask", -1)).tolist()
    ]
    return Records(len(people), partial(_person, sequences, people, topology))


def _person(
    sequences: Sequence[tuple[Path, Fields]], people: Sequence[tuple[int, int]], topology: BodyTopology, index: int
) -> Annotation:
    number, frame = people[index]
    file, sequence = sequences[number]
    camera, smpl = sequence.within("camera"), sequence.within("smpl")
    row = Fields(
        f"{file}: frame {frame}",
        {
            "kp2d": _at(sequence, "kp2d", frame),
            "poses_root": _at(smpl, "poses_root", frame),
            "poses_body": _at(smpl, "poses_body", frame),
            "extrinsics": _at(camera, "extrinsics", frame),
            "bbox": _at(sequence.within("bboxes"), "bboxes", frame),
        },
    )
    matrix = camera.array("intrinsics", 3, 3)
    width, height = int(camera.number("width")), int(camera.number("height"))
    lens = Intrinsics(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], width, height)
    uv = row.array("kp2d", 24, 2)
    inside = np.abs(uv / (width, height) - 0.5).max(1) <= 0.5
    left, top, right, bottom = row.array("bbox", 4)
    gender = sequence.text("gender")
    tags: Tags = {"sequence": sequence.text("name"), "frame": frame, "gender": gender, "valid": 1}
    photo = PhotoFile(file.parent / "images" / f"{frame:05d}.jpg")
    window = box_window(left, top, right - left, bottom - top)
    labels = (JOINT_SETS["smpl24"], with_weight(uv, inside))
    person = label(topology, row.where, photo, window, labels, lens, tags)
    pose = np.concatenate([row.array("poses_root", 3), row.array("poses_body", 69)])
    return add_smpl(person, pose, smpl.array("betas", -1), gender, to_camera=row.array("extrinsics", 4, 4)[:3, :3])


def _at(fields: Fields, name: str, frame: int) -> object:
    values = fields[name]
    if len(values) <= frame:
        raise InputError(f"{fields.where}, field '{name}' has nothing for frame {frame}")
    return values[frame]
