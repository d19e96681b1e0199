"""Poses of Anny's rig, drawn or recorded, on the rig of another body.

As with motion capture (`data.mocap`), what is copied is how each bone is turned from its own rest direction; so an arm
that points somewhere points there on both bodies, though one rests with its arms out and the other with them lowered.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.assets import load_body
from deformer_core.body.smpl import SMPL_BONES
from deformer_core.body.topology import BodyTopology
from deformer_core.data.mocap import load_pose_bank, to_local
from deformer_core.data.synthetic.poses import PoseConfig, PoseSampler
from deformer_core.errors import InputError
from deformer_core.geometry.rotations import rotation_between

FloatArray = NDArray[np.float32]

_ANNY_BONE = {
    "pelvis": "root", "spine_1": "spine04", "spine_2": "spine02", "spine_3": "spine01", "neck": "neck01",
    "head": "head", "hip": "upperleg01", "knee": "lowerleg01", "ankle": "foot", "foot": "foot",
    "collar": "clavicle", "shoulder": "upperarm01", "elbow": "lowerarm01", "wrist": "wrist", "hand": "wrist",
}  # fmt: skip
# The limbs' bones have a rest direction: that of these two bones' heads, in SMPL's names. A hand continues its forearm.
_SEGMENT = {
    "hip": ("hip", "knee"), "knee": ("knee", "ankle"), "shoulder": ("shoulder", "elbow"), "elbow": ("elbow", "wrist"),
    "wrist": ("elbow", "wrist"), "hand": ("elbow", "wrist"),
}  # fmt: skip


def pose_sampler(
    topology: BodyTopology, folder: Path | None = None, held_out: bool = False, config: PoseConfig | None = None
) -> PoseSampler:
    """A sampler of poses of the body's rig, with the recordings of a folder, see `load_pose_bank`.

    Errors: `InputError` for a folder without recordings, and for a rig that is neither Anny's nor SMPL's.
    """
    anny = load_body("anny")
    bank = load_pose_bank(folder, anny).split(held_out) if folder else None
    if topology.rig.bone_names == anny.rig.bone_names:
        return PoseSampler(topology, bank, config)
    if topology.rig.bone_names != SMPL_BONES:
        raise InputError(f"poses can be drawn for the rigs of Anny and SMPL, not for that of body '{topology.name}'")
    return RetargetedSampler(PoseSampler(anny, bank, config), anny, topology)


class RetargetedSampler(PoseSampler):
    """The poses of a sampler for Anny, with the bones and shapes of SMPL."""

    def __init__(self, source: PoseSampler, anny: BodyTopology, smpl: BodyTopology) -> None:
        super().__init__(smpl, source.bank, source.config)
        self.source, self.anny, self.smpl = source, anny, smpl
        matches = [_match(bone, anny, smpl) for bone in smpl.rig.bone_names]
        self._bones = [bone for bone, _ in matches]
        self._turns = np.stack([turn for _, turn in matches])

    def sample(self, rng: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray, list[str]]:
        """As of `PoseSampler`."""
        rotations, _, kinds = self.source.sample(rng, count)
        world = rotations.astype(np.float64)
        for bone, parent in enumerate(self.anny.rig.bone_parents):
            if parent >= 0:
                world[:, bone] = world[:, parent] @ world[:, bone]
        local = to_local(world[:, self._bones] @ self._turns, self.smpl)
        return local.astype(np.float32), self._shapes(rng, count), kinds


def _match(bone: str, anny: BodyTopology, smpl: BodyTopology) -> tuple[int, NDArray[np.float64]]:
    """The bone of Anny that a bone of SMPL follows, and the turn from the one's rest direction to the other's."""
    side, _, stem = bone.partition("_") if bone.startswith(("left_", "right_")) else ("", "", bone)
    suffix = {"left": ".L", "right": ".R", "": ""}[side]
    turn = np.eye(3)
    if stem in _SEGMENT:
        ours = [smpl.rig.bone_heads[smpl.rig.bone_names.index(f"{side}_{end}")] for end in _SEGMENT[stem]]
        theirs = [anny.rig.bone_heads[anny.rig.bone_names.index(_ANNY_BONE[end] + suffix)] for end in _SEGMENT[stem]]
        directions = [torch.from_numpy(ends[1] - ends[0]).double() for ends in (ours, theirs)]
        turn = rotation_between(*directions).numpy()
    return anny.rig.bone_names.index(_ANNY_BONE[stem] + suffix), turn
