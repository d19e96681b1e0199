"""Human3.6M in the json files of Pose2Mesh.

Human36M_subjectN_data.json (COCO's `images` and `annotations`), _camera.json (camera: R, t in mm, f, c), _joint_3d.json
(action > subaction > frame: 17 joints, world, mm), and _smpl_param.json where there is one (the same keys: pose,
shape, in the world's axes). Tags: subject, action, camera, frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

SUBJECTS = {"train": (1, 5, 6, 7, 8), "test": (9, 11)}
CAMERAS = {1: "54138969", 2: "55011271", 3: "58860488", 4: "60457274"}
"""`cam_idx` and the number on the camera; the last stands in front and is that of protocol 2."""
FIRST_ACTION = 2
ACTIONS = (
    "Directions", "Discussion", "Eating", "Greeting", "Phoning", "Posing", "Purchases", "Sitting", "SittingDown",
    "Smoking", "Photo", "Waiting", "Walking", "WalkDog", "WalkTogether",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """The files of one subject."""

    cameras: Fields
    joints: Fields
    smpl: Fields | None


def read(
    path: Path,
    topology: BodyTopology,
    images: Path | None = None,
    split: str = "train",
    every: int = 5,
    camera: str | None = None,
) -> Sequence[Annotation]:
    """path: the folder of the json files. images: by default `images` beside it. split: "train" (subjects 1, 5, 6, 7,
    8), "test" (9, 11) or a subject's number. every: of how many frames one is taken. camera: the number of one camera,
    60457274 for protocol 2; by default all.
    """
    if camera not in (None, *CAMERAS.values()):
        raise InputError(f"there is no camera {camera}: the cameras are {', '.join(CAMERAS.values())}")
    if split not in SUBJECTS and not split.isdigit():
        raise InputError(f"there is no split '{split}': give train, test or the number of a subject")
    subjects: dict[int, Subject] = {}
    people: list[tuple[Fields, Fields]] = []
    for number in SUBJECTS.get(split) or (int(split),):
        stem = path / f"Human36M_subject{number}"
        subjects[number] = _read_subject(stem)
        file = stem.with_name(f"{stem.name}_data.json")
        content = read_json(file)
        photos = {
            photo["id"]: photo
            for photo in records_of(file, content, "images")
            if photo.number("frame_idx") % every == 0 and camera in (None, CAMERAS.get(int(photo.number("cam_idx"))))
        }
        rows = records_of(file, content, "annotations")
        people += [(row, photos[row["image_id"]]) for row in rows if row["image_id"] in photos]
    return Records(len(people), partial(_person, subjects, people, topology, images or path.parent / "images"))


def _read_subject(stem: Path) -> Subject:
    files = {name: stem.with_name(f"{stem.name}_{name}.json") for name in ("camera", "joint_3d", "smpl_param")}
    smpl = files["smpl_param"]
    return Subject(
        cameras=Fields(str(files["camera"]), read_json(files["camera"])),
        joints=Fields(str(files["joint_3d"]), read_json(files["joint_3d"])),
        smpl=Fields(str(smpl), read_json(smpl)) if smpl.is_file() else None,
    )


def _person(
    subjects: dict[int, Subject],
    people: Sequence[tuple[Fields, Fields]],
    topology: BodyTopology,
    images: Path,
    index: int,
) -> Annotation:
    row, photo = people[index]
    number, action, part, frame, place = (
        int(photo.number(name)) for name in ("subject", "action_idx", "subaction_idx", "frame_idx", "cam_idx")
    )
    if number not in subjects:
        raise InputError(f"{photo.where}, field 'subject' is {number}, which is not that of the file")
    if not 0 <= action - FIRST_ACTION < len(ACTIONS) or place not in CAMERAS:
        raise InputError(f"{photo.where}, field 'action_idx' or 'cam_idx' names none that Human3.6M has")
    subject = subjects[number]
    camera = subject.cameras.within("", place)
    turn, shift = camera.array("R", 3, 3), camera.array("t", 3)
    (fx, fy), (cx, cy) = camera.array("f", 2), camera.array("c", 2)
    where = f"{subject.joints.where}: action {action}, subaction {part}"
    frames = subject.joints.within("", action, part)
    world = Fields(where, {f"frame {frame}": frames[str(frame)]}).array(f"frame {frame}", 17, 3)
    seen = (world @ turn.T + shift) / 1000
    uv = seen[:, :2] / seen[:, 2:] * (fx, fy) + (cx, cy)
    lens = Intrinsics(fx, fy, cx, cy, int(photo.number("width")), int(photo.number("height")))
    person = label(
        topology,
        row.where,
        PhotoFile(images / photo.text("file_name")),
        box_window(*row.array("bbox", 4)),
        (JOINT_SETS["h36m17"], with_weight(uv)),
        lens,
        {"subject": number, "action": ACTIONS[action - FIRST_ACTION], "camera": CAMERAS[place], "frame": frame},
    )
    person = add_joints(person, topology, (JOINT_SETS["h36m17"], with_weight(seen)), in_camera=True)
    fits = subject.smpl.within("", action, part) if subject.smpl and _has(subject.smpl, action, part) else None
    if fits is not None and str(frame) in fits:
        fit = fits.within("", frame)
        person = add_smpl(person, fit.array("pose", 72), fit.array("shape", 10), to_camera=turn)
    return person


def _has(fits: Fields, action: int, part: int) -> bool:
    return str(action) in fits and str(part) in fits[str(action)]
