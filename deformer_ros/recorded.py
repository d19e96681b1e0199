"""A bag that this package's node has reconstructed people in, as a dataset: record, correct, retrain.

Every person of every HumanMeshArray becomes an annotation of the image with the same stamp. The labels are the model's
own, so they teach it nothing until somebody has looked at them. What was found wrong is written beside the bag, in
corrections.json in its folder (or NAME.corrections.json beside a single file): a list of
{"stamp": nanoseconds, "id": 3} with either "drop": true, or "keypoints": {"left_wrist": [x, y], "right_knee": null},
pixels of the undistorted image, null for a joint that cannot be seen. A person with corrected keypoints keeps no mesh,
and no 3D for those joints, since these contradict what was seen. Tags: track, stamp.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.readers.common import Records, box_window
from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics
from deformer_core.geometry.rotations import rotation_from_quaternion
from deformer_core.runtime.tracker import Track, TrackState
from deformer_ros.bag_cameras import IMAGES, INFO, Camera, find_cameras, of_topics
from deformer_ros.bag_io import BagReader, BagTypes
from deformer_ros.camera_info import Rectifier, effective_intrinsics
from deformer_ros.human_messages import topology_name, track_from_message
from deformer_ros.images import image_to_rgb

ARRAY = "deformer_ros/msg/HumanMeshArray"
FIT_LIMIT = 0.03
"""Metres. A mesh that the rig, posed as the message says, cannot follow more closely gives joints alone."""
DEFAULT_FOV = 55.0
"""The node's own, degrees."""
PRIOR = 1e-6
"""Square metres: how far vertices may be off, all alike, as easily as a shape coefficient is 1."""
_bodies: dict[tuple[str, str], ParametricBody] = {}

Corrections = Mapping[tuple[int, int], Mapping[str, Any]]
"""By stamp and id."""


class _Bag(BagReader):
    """Finds single messages again."""

    def at(self, topic: str, time: int, stamp: int) -> bytes:
        """The message of a topic recorded at a time, nanoseconds, whose header has the stamp."""
        with self._explained():
            for _, _, raw in self._reader.messages(of_topics(self, [topic]), start=time, stop=time + 1):
                if _stamp(raw) == stamp:
                    return bytes(raw)
        raise InputError(f"the bag {self.path} has changed: a message of {topic} is gone")


@lru_cache(maxsize=4)
def _open(path: Path) -> _Bag:
    """By path, so that annotations can be pickled: open bags cannot."""
    return _Bag(path)


@cache
def _types() -> BagTypes:
    return BagTypes()


@dataclass(frozen=True)
class _Place:
    """Where a person is: record times of image and meshes, the stamp of both (nanoseconds), the place in the array."""

    image: int
    meshes: int
    stamp: int
    human: int


def read(
    path: Path,
    topology: BodyTopology,
    images: str | None = None,
    meshes: str | None = None,
    corrections: Path | None = None,
    every: int = 1,
) -> Sequence[Annotation]:
    """The people of a bag, whose messages are read when asked for.

    images, meshes: topics, by default the only ones of their types. corrections: see above. every: of how many arrays
    one is taken, since neighbours in time teach the same.

    Raises:
        InputError: a bag or topic that cannot be used, or a correction that fits nobody.
    """
    bag = _open(path)
    camera = find_cameras(bag, [images or _only(bag, IMAGES, "image", "images")])[0]
    topic = meshes or _only(bag, (ARRAY,), "HumanMeshArray", "meshes")
    times = {_stamp(raw): time for _, time, raw in bag.messages(of_topics(bag, [camera.image]))}
    file = corrections or (path / "corrections.json" if path.is_dir() else path.with_suffix(".corrections.json"))
    known = _read_corrections(file) if corrections or file.is_file() else {}
    places, met = [], set()
    for number, (_, time, raw) in enumerate(bag.messages(of_topics(bag, [topic]))):
        stamp = _stamp(raw)
        for place, human in enumerate(_types().deserialize(bytes(raw), ARRAY).humans):
            fix = known.get((stamp, human.id), {})
            met.add((stamp, human.id))
            lost = human.tracking_state == int(TrackState.LOST)
            if (number % every == 0 or fix) and not (lost or fix.get("drop")) and stamp in times:
                places.append(_Place(times[stamp], time, stamp, place))
    if unmet := set(known) - met:
        stamp, person = min(unmet)
        raise InputError(f"{file} corrects person {person} at stamp {stamp}, whom {topic} in {path} does not have")
    if not places:
        raise InputError(f"nobody in {topic} of {path} belongs to an image of {camera.image}: give its `images`")
    return Records(len(places), partial(_person, path, camera, topic, known, places, topology))


def _only(bag: BagReader, types: Sequence[str], what: str, option: str) -> str:
    found = sorted({connection.topic for connection in bag.connections if connection.msgtype in types})
    if len(found) == 1:
        return found[0]
    none = "record images and meshes, or use `deformer bag`"
    choice = f"give one of {', '.join(found)} as `{option}`" if found else none
    raise InputError(f"the bag {bag.path} has {len(found)} topics of type {what}: {choice}")


def _stamp(raw: bytes | memoryview) -> int:
    """Nanoseconds; in CDR a header's stamp comes first, after four bytes of which the second tells the byte order."""
    seconds, rest = struct.unpack_from("<iI" if raw[1] & 1 else ">iI", raw, 4)
    return int(seconds) * 10**9 + int(rest)


def _read_corrections(path: Path) -> Corrections:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as json ({error})") from error
    known = {}
    for number, record in enumerate(content if isinstance(content, list) else [content]):
        try:
            known[int(record["stamp"]), int(record["id"])] = record
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: record {number} has a missing or wrong field ({error})") from error
    return known


def _person(
    path: Path,
    camera: Camera,
    topic: str,
    known: Corrections,
    places: Sequence[_Place],
    topology: BodyTopology,
    index: int,
) -> Annotation:
    place = places[index]
    humans = _types().deserialize(_open(path).at(topic, place.meshes, place.stamp), ARRAY).humans
    human = humans[place.human]
    track = track_from_message(human)
    person = track.person
    source = f"{path}: person {human.id} at stamp {place.stamp}"
    if len(person.joints) != len(topology.joint_names):
        raise InputError(f"{source}, field 'joints' has {len(person.joints)}, but '{topology.name}' has others")
    left, top, right, bottom = (float(value) for value in person.box)
    center_x, center_y, side = box_window(left, top, right - left, bottom - top)
    image = partial(_image, path, camera, place, float(person.intrinsics[0, 0]))
    size = image().shape
    matrix = person.intrinsics.astype(float)
    lens = Intrinsics(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], size[1], size[0])
    far = np.abs(person.keypoints_2d / (size[1], size[0]) - 0.5).max(1)
    inside = (far <= 0.5).astype(np.float32)
    annotation = Annotation(
        source=source,
        load_image=image,
        center=(center_x, center_y),
        side=side,
        intrinsics=lens,
        uv=person.keypoints_2d.astype(np.float32) * inside[:, None],
        uv_weight=inside,
        joints=person.joints,
        joints_weight=np.ones(len(person.joints), np.float32),
        translation=person.translation,
        tags={"track": int(human.id), "stamp": place.stamp},
    )
    fix = known.get((place.stamp, human.id))
    if fix is not None and fix.get("keypoints"):
        return _corrected(annotation, topology, fix["keypoints"])
    return _posed(annotation, topology, human, track) if human.topology == topology_name(topology) else annotation


def _image(path: Path, camera: Camera, place: _Place, focal: float) -> NDArray[np.uint8]:
    """The image as the node saw it: without its lens' distortion."""
    raw = _open(path).at(camera.image, place.image, place.stamp)
    image = image_to_rgb(_types().deserialize(raw, camera.type))
    model = effective_intrinsics(_info(path, camera), image.shape[1], image.shape[0], camera.is_rectified, DEFAULT_FOV)
    if model.distortion is None:
        return image
    rectifier = Rectifier(model.intrinsics, model.distortion)
    if abs(rectifier.intrinsics.fx / focal - 1) > 0.01:
        raise InputError(f"{path}: {camera.info} is not the calibration that people were reconstructed with")
    return rectifier(image)


@lru_cache(maxsize=64)
def _info(path: Path, camera: Camera) -> Any:
    """The first CameraInfo, None without one."""
    if camera.info is None:
        return None
    bag = _open(path)
    messages = bag.messages(of_topics(bag, [camera.info]))
    return next((_types().deserialize(bytes(raw), INFO) for _, _, raw in messages), None)


def _posed(annotation: Annotation, topology: BodyTopology, human: Any, track: Track) -> Annotation:
    """With the rig posed as the message says, and the shape that brings it closest to the message's mesh."""
    quaternions = np.asarray(human.joint_rotations, np.float32).reshape(-1, 4)
    vertices = track.person.vertices
    if len(quaternions) != len(topology.rig.bone_names) or len(vertices) != len(topology.levels[human.level].vertices):
        raise InputError(f"{annotation.source}, fields 'joint_rotations' or 'vertices' have the wrong length")
    rotations = local_rotations(rotation_from_quaternion(torch.from_numpy(np.roll(quaternions, 1, axis=1))), topology)
    shape, error = fit_shape(topology, human.level, rotations, torch.tensor(vertices))
    if error > FIT_LIMIT:
        return annotation
    return replace(annotation, body=topology.name, rotations=rotations.numpy(), shape=shape)


def local_rotations(turns: Tensor, topology: BodyTopology) -> Tensor:
    """(R, 3, 3) rotations from the template's pose to those relative to the parent."""
    parents = torch.tensor(topology.rig.bone_parents)
    child = parents >= 0
    rotations = turns.clone()
    rotations[child] = turns[parents[child]].transpose(1, 2) @ turns[child]
    return rotations


def fit_shape(topology: BodyTopology, level: str, rotations: Tensor, vertices: Tensor) -> tuple[NDArray, float]:
    """The shape (S,) of a body in a known pose, and the mean distance that is left, metres.

    rotations: (R, 3, 3), vertices: (V, 3) about the pelvis. With the rotations given, a vertex is affine in the shape.
    """
    key = (topology.content_hash, level)
    if key not in _bodies:
        _bodies[key] = ParametricBody(topology, (level,))
    body = _bodies[key]
    shapes = torch.cat([torch.zeros(1, body.n_shape), torch.eye(body.n_shape)])
    with torch.no_grad():
        posed = body(rotations.expand(len(shapes), -1, -1, -1), shapes)[level].flatten(1)
    rest, basis = posed[0], (posed[1:] - posed[0]).T
    wanted = vertices.flatten() - rest
    # Rotations are off by a degree or two: without a prior, shapes would bend to make up for it.
    gram = basis.T @ basis + len(vertices) * PRIOR * torch.eye(body.n_shape)
    shape = torch.linalg.solve(gram, basis.T @ wanted)
    left = (basis @ shape - wanted).unflatten(0, (-1, 3)).norm(dim=-1)
    return shape.numpy(), float(left.mean())


def _corrected(annotation: Annotation, topology: BodyTopology, keypoints: Mapping[str, Any]) -> Annotation:
    """With the given joints moved, or hidden."""
    uv, weight = annotation.uv.copy(), annotation.uv_weight.copy()
    joints_weight = np.ones(len(uv), np.float32)
    for name, point in keypoints.items():
        if name not in topology.joint_names:
            raise InputError(f"the correction of {annotation.source} names the joint '{name}', which there is not")
        row = topology.joint_names.index(name)
        uv[row], weight[row], joints_weight[row] = ((0, 0), 0, 0) if point is None else (point, 1, 0)
    return replace(annotation, uv=uv, uv_weight=weight, joints_weight=joints_weight)
