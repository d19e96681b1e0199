"""What the readers share: a sequence that makes its annotations when asked, fields that are checked as they are read,
and the steps by which labels in a dataset's own joints become an `Annotation`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from deformer_core.body.smpl import rig_rotations
from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.joint_sets import to_topology
from deformer_core.data.photos import Photo
from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics

Array = NDArray[np.floating]
Tags = dict[str, str | int]
Named = tuple[Sequence[str], Array]
"""Names of joints, and one row a name whose last number is its weight, 0 for none."""
Window = tuple[float, float, float]
"""Centre x, y and side of the square around a person, pixels."""

AIR = 1.2
"""Side of the square over the longer side of a tight box, as in the SPIN line."""
_BODIES = {"m": "smpl_male", "male": "smpl_male", "f": "smpl_female", "female": "smpl_female"}


class Records(Sequence[Annotation]):
    """Annotations made one by one. make: from an index; a `partial` of a plain function, so that it can be pickled."""

    def __init__(self, count: int, make: Callable[[int], Annotation]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Annotation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Annotation]: ...
    def __getitem__(self, index: int | slice) -> Annotation | list[Annotation]:
        if isinstance(index, slice):
            return [self._make(place) for place in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"{index} of {self._count} records")
        return self._make(index % self._count)


class Fields:
    """The fields of one record. Errors of its methods: `InputError` naming file, record and field."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self.where, self._values = where, values
        if not isinstance(values, Mapping):
            raise InputError(f"{where} is not a record with named fields: is this another format?")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Any:
        try:
            return self._values[name]
        except (KeyError, IndexError):
            raise InputError(f"{self.where} has no field '{name}': is this another format?") from None

    def values(self) -> Mapping[str, Any]:
        return self._values

    def array(self, name: str, *shape: int) -> NDArray[np.float64]:
        """Finite numbers of that shape, -1 for any length. A flat array is folded where `shape` says how."""
        given = self[name]
        try:
            values = np.array(given, np.float64)
        except (TypeError, ValueError):
            raise InputError(f"{self.where}, field '{name}' does not hold numbers") from None
        try:
            folded = values.reshape(shape) if values.ndim <= 1 or values.ndim > len(shape) else values
        except ValueError:
            folded = values
        if len(folded.shape) != len(shape) or any(b not in (-1, a) for a, b in zip(folded.shape, shape)):
            expected = "x".join("any" if size < 0 else str(size) for size in shape) or "one number"
            raise InputError(f"{self.where}, field '{name}' has the shape {values.shape} instead of {expected}")
        if not np.isfinite(folded).all():
            raise InputError(f"{self.where}, field '{name}' holds numbers that are not finite")
        return folded

    def number(self, name: str) -> float:
        return float(self.array(name))

    def text(self, name: str) -> str:
        value = self[name]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if not isinstance(value, str):
            raise InputError(f"{self.where}, field '{name}' is not a text but {value!r}")
        return str(value)

    def within(self, name: str, *keys: object) -> Fields:
        """The record in a field, or deeper, by keys as JSON writes them."""
        found = self[name] if name else self._values
        where = self.where + (f", field '{name}'" if name else "")
        for key in keys:
            if not isinstance(found, Mapping) or str(key) not in found:
                raise InputError(f"{where} has nothing for {'/'.join(map(str, keys))}")
            found = found[str(key)]
        return Fields(where, found)


def read_json(path: Path) -> Any:
    """Errors: `InputError` naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as json ({error}): check the path") from error


def records_of(path: Path, content: Any, name: str) -> Iterator[Fields]:
    """The records of one list of a COCO-style file."""
    listed = content.get(name) if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise InputError(f"{path} has no list '{name}': is this another format?")
    return (Fields(f"{path}: record {number} of '{name}'", record) for number, record in enumerate(listed))


def label(
    topology: BodyTopology,
    source: str,
    photo: Photo,
    window: Window,
    labels: Named,
    lens: Intrinsics | None = None,
    tags: Tags | None = None,
) -> Annotation:
    """A person with 2D labels, (K, 3) pixels and weight. lens: by default an assumed one for the size of the photo."""
    names, keypoints = labels
    placed, _ = to_topology(keypoints, names, topology)
    weight = np.maximum(placed[:, 2], 0)
    center_x, center_y, side = (float(value) for value in window)
    if side <= 0:
        raise InputError(f"{source} has a box without size: leave the record out")
    return Annotation(
        source=source,
        load_image=photo.load,
        center=(center_x, center_y),
        side=side,
        intrinsics=lens or Intrinsics.from_fov(*photo.size()),
        uv=placed[:, :2] * (weight > 0)[:, None],
        uv_weight=weight,
        tags=tags or {},
    )


def merge(*sets: Named) -> Named:
    """Several sets as one: where they share a joint, the first that has a weight (the last column) counts."""
    merged: dict[str, NDArray[np.floating]] = {}
    for names, values in sets:
        for name, value in zip(names, values):
            if name not in merged or merged[name][-1] <= 0 < value[-1]:
                merged[name] = value
    return tuple(merged), np.array(list(merged.values()))


def add_joints(person: Annotation, topology: BodyTopology, labels: Named, in_camera: bool = False) -> Annotation:
    """Add 3D joints; the person as it is where a hip is missing, since nothing else says where the pelvis is.

    labels: (K, 4) metres in the full camera's axes, and weight. in_camera: about the camera, not some root.
    """
    names, points = labels
    placed, _ = to_topology(points, names, topology)
    known = placed[:, 3] > 0
    hips = list(topology.hips)
    if not known[hips].all():
        return person
    pelvis = placed[hips, :3].mean(0)
    others = {
        name: (point[:3] - pelvis).astype(np.float32)
        for name, point in zip(names, points)
        if name not in topology.joint_names and point[3] > 0
    }
    return replace(
        person,
        joints=(placed[:, :3] - pelvis) * known[:, None],
        joints_weight=np.maximum(placed[:, 3], 0),
        named_joints=others,
        translation=pelvis if in_camera else None,
    )


def add_smpl(
    person: Annotation, pose: Array, betas: Array, gender: str = "", to_camera: Array | None = None
) -> Annotation:
    """Add SMPL's pose (72,) as axis-angle and its first ten betas, in the axes of our template.

    gender: of the model that was fitted, neutral unless "m", "male", "f" or "female". to_camera: (3, 3) from the axes
    in which the pose is given.
    """
    rotations = rig_rotations(torch.from_numpy(np.asarray(pose, np.float64))).numpy()
    if to_camera is not None:
        rotations[0] = to_camera @ rotations[0]
    body = _BODIES.get(gender.lower(), "smpl")
    return replace(person, body=body, rotations=rotations.astype(np.float32), shape=np.asarray(betas[:10], np.float32))


def box_window(x: float, y: float, width: float, height: float) -> Window:
    """The square around a box with its corner at (x, y)."""
    return x + width / 2, y + height / 2, AIR * max(width, height)


def points_window(keypoints: Array, air: float = AIR) -> Window:
    """The square around the labelled ones of (K, 3) keypoints; of side 0 where there are none."""
    seen = keypoints[keypoints[:, 2] > 0, :2]
    if not len(seen):
        return 0.0, 0.0, 0.0
    low, high = seen.min(0), seen.max(0)
    center = (low + high) / 2
    return float(center[0]), float(center[1]), air * float((high - low).max())


def with_weight(points: Array, weight: ArrayLike = 1.0) -> NDArray[np.float64]:
    """(K, n) points and their weight as (K, n + 1)."""
    return np.column_stack([points, np.broadcast_to(np.asarray(weight, np.float64), len(points))])
