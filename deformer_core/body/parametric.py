"""Posing the body: shape coefficients and bone rotations to vertices, by linear blend skinning.

Used to make training data and inside the model's initial regressor. Anny's shape space is a PCA of its phenotypes and
its rig keeps the bones that a camera can see turn (no fingers, toes, eyes, twist bones). SMPL has shape and rig of its
own, and blend shapes driven by the pose (Loper et al. 2015, "SMPL: A Skinned Multi-Person Linear Model").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from deformer_core.body.topology import BodyTopology


class ParametricBody(nn.Module):
    """Poses a topology's levels. Holds constants only: no parameters, nothing in the state dict."""

    heads: Tensor
    head_basis: Tensor
    regressor: Tensor

    def __init__(self, topology: BodyTopology, levels: Sequence[str] = ("coarse",)) -> None:
        super().__init__()
        rig = topology.rig
        self.levels = tuple(levels)
        self.parents = rig.bone_parents
        self.hips = topology.hips
        self._constant("heads", rig.bone_heads)
        self._constant("head_basis", rig.head_basis)
        for name in dict.fromkeys((*self.levels, "coarse")):
            level = topology.levels[name]
            skin = np.zeros((len(level.vertices), len(rig.bone_names)), np.float32)
            np.add.at(skin, (np.arange(len(skin))[:, None], level.skin_indices), level.skin_weights)
            self._constant(f"{name}_vertices", level.vertices)
            self._constant(f"{name}_basis", level.shape_basis)
            self._constant(f"{name}_skin", skin)
            if level.pose_basis is not None:
                self._constant(f"{name}_pose_basis", level.pose_basis)
        self._constant("regressor", topology.levels["coarse"].joint_regressor.dense())

    def _constant(self, name: str, value: np.ndarray) -> None:
        self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)

    @property
    def n_bones(self) -> int:
        return len(self.parents)

    @property
    def n_shape(self) -> int:
        return int(self.head_basis.shape[0])

    def forward(self, rotations: Tensor, shape: Tensor) -> dict[str, Tensor]:
        """Pose a batch of bodies.

        rotations: (B, R, 3, 3), each bone relative to its parent, in the template's axes (so the identity
        is the template's pose and the root's rotation turns the whole body); shape: (B, S), in standard
        deviations. Returns {level: (B, V, 3), "joints": (B, 23, 3)}, metres, the middle of the hips at the
        origin. The joints are those of the coarse mesh.
        """
        transforms = self._bone_transforms(rotations, shape)
        coarse = self._skin("coarse", transforms, rotations, shape)
        joints = self.regressor @ coarse
        pelvis = (joints[:, self.hips[0]] + joints[:, self.hips[1]])[:, None] / 2
        posed = {"joints": joints - pelvis}
        for name in self.levels:
            vertices = coarse if name == "coarse" else self._skin(name, transforms, rotations, shape)
            posed[name] = vertices - pelvis
        return posed

    def _bone_transforms(self, rotations: Tensor, shape: Tensor) -> Tensor:
        """(B, R, 3, 4) maps from the unposed to the posed body, one a bone."""
        heads = self.heads + torch.einsum("bs,src->brc", shape, self.head_basis)
        world: list[Tensor] = []
        position: list[Tensor] = []
        for bone, parent in enumerate(self.parents):
            if parent < 0:
                world.append(rotations[:, bone])
                position.append(heads[:, bone])
                continue
            offset = heads[:, bone] - heads[:, parent]
            world.append(world[parent] @ rotations[:, bone])
            position.append(position[parent] + (world[parent] @ offset[:, :, None])[:, :, 0])
        rotation = torch.stack(world, 1)
        shift = torch.stack(position, 1) - (rotation @ heads[..., None])[..., 0]
        return torch.cat([rotation, shift[..., None]], -1)

    def _skin(self, level: str, transforms: Tensor, rotations: Tensor, shape: Tensor) -> Tensor:
        skin = getattr(self, f"{level}_skin")
        rest = getattr(self, f"{level}_vertices") + _combine(shape, getattr(self, f"{level}_basis"))
        if hasattr(self, f"{level}_pose_basis"):
            bends = rotations[:, 1:] - torch.eye(3, dtype=rotations.dtype, device=rotations.device)
            rest = rest + _combine(bends.flatten(1), getattr(self, f"{level}_pose_basis"))
        blended = (skin @ transforms.flatten(2)).unflatten(2, (3, 4))
        return (blended[..., :3] @ rest[..., None])[..., 0] + blended[..., 3]


def _combine(coefficients: Tensor, basis: Tensor) -> Tensor:
    """(B, N), (N, V, 3) to (B, V, 3)."""
    return (coefficients @ basis.flatten(1)).unflatten(1, basis.shape[1:])
