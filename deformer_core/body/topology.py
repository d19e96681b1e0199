"""What a body is to the rest of the code: meshes at named levels, joints, a rig; nothing hard-codes their sizes.

All coordinates are in model space: metres, x right, y down, z forward, the template facing the camera with
the middle of its hips at the origin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]
ArrayOrTensor = TypeVar("ArrayOrTensor", FloatArray, Tensor)

LEVELS = ("coarse", "middle", "full")

COCO_23 = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle", "left_big_toe", "right_big_toe", "left_small_toe", "right_small_toe", "left_heel", "right_heel",
)  # fmt: skip
"""The joints of every body: COCO's 17 and six points of the feet."""
COCO_23_PARENTS = (-1, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14, 15, 16, 15, 16, 15, 16)
PART_NAMES = ("head", "neck", "torso", "hips") + tuple(
    f"{side}_{part}"
    for side in ("left", "right")
    for part in ("upper_arm", "lower_arm", "hand", "upper_leg", "lower_leg", "foot")
)


@dataclass(frozen=True)
class RowBlend:
    """A sparse matrix whose every row is a weighted sum of at most K of `n_input` rows.

    indices: (N, K) int32, weights: (N, K) float32; unused places have weight 0.
    """

    indices: IntArray
    weights: FloatArray
    n_input: int

    @classmethod
    def from_entries(cls, rows: NDArray, columns: NDArray, values: NDArray, shape: tuple[int, int]) -> RowBlend:
        """From the non-zero elements of a matrix of that shape, in any order."""
        order = np.lexsort((columns, rows))
        rows = rows[order]
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        width = int(place.max(initial=0)) + 1
        indices, weights = np.zeros((shape[0], width), np.int32), np.zeros((shape[0], width), np.float32)
        indices[rows, place], weights[rows, place] = columns[order], values[order]
        return cls(indices, weights, shape[1])

    def apply(self, values: ArrayOrTensor) -> ArrayOrTensor:
        """(..., n_input, C) to (..., N, C), numpy or torch alike."""
        if isinstance(values, Tensor):
            indices = torch.from_numpy(self.indices).to(values.device, torch.int64)
            weights = torch.from_numpy(self.weights).to(values)
            return (values[..., indices, :] * weights[..., None]).sum(-2)
        return (values[..., self.indices, :] * self.weights[..., None]).sum(-2)

    def dense(self) -> FloatArray:
        """(N, n_input) float32."""
        matrix = np.zeros((len(self.indices), self.n_input), np.float32)
        np.add.at(matrix, (np.arange(len(self.indices))[:, None], self.indices), self.weights)
        return matrix


@dataclass(frozen=True)
class Level:
    """The body's mesh at one resolution."""

    vertices: FloatArray
    """(V, 3) template, metres, model space."""
    faces: IntArray
    """(F, 3), counter-clockwise seen from outside."""
    joint_regressor: RowBlend
    """The 23 joints from the vertices."""
    skin_indices: IntArray
    """(V, K) bones of the rig."""
    skin_weights: FloatArray
    """(V, K), rows sum to 1."""
    shape_basis: FloatArray
    """(S, V, 3) displacement of the template for one standard deviation of each shape coefficient."""
    parts: NDArray[np.uint8]
    """(V,) index into `BodyTopology.part_names`."""
    pose_basis: FloatArray | None = None
    """((R - 1) * 9, V, 3) displacement of the template for each element of the bones' rotations minus the identity,
    the root's left out; None for a body that bends by skinning alone."""

    @cached_property
    def edges(self) -> IntArray:
        """(E, 2) undirected edges, each once, smaller index first."""
        pairs = np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])
        return np.unique(np.sort(pairs, axis=1), axis=0).astype(np.int32)


@dataclass(frozen=True)
class Rig:
    """Bones that turn. A bone's rotation is given in the template's frame, relative to its parent."""

    bone_names: tuple[str, ...]
    bone_parents: tuple[int, ...]
    """Parents come before children; -1 for the root."""
    bone_heads: FloatArray
    """(R, 3) template, metres, model space."""
    head_basis: FloatArray
    """(S, R, 3) displacement of the heads by the shape coefficients."""
    shape_samples: FloatArray
    """(N, S) shape coefficients of a population, each coefficient of unit variance over it."""
    mirror: IntArray
    """(R,) the bone on the other side of the body, itself for bones of the middle."""


@dataclass(frozen=True)
class BodyTopology:
    """A body model's fixed part: everything that does not depend on the person."""

    name: str
    version: int
    content_hash: str
    joint_names: tuple[str, ...]
    joint_parents: tuple[int, ...]
    """A tree for drawing and for attention links; -1 at its root."""
    part_names: tuple[str, ...]
    levels: dict[str, Level]
    upsample: dict[str, RowBlend]
    """"middle" from coarse vertices, "full" from middle ones."""
    rig: Rig
    extra_regressors: dict[str, RowBlend] = field(default_factory=dict)
    """Further joints from the full level's vertices, by name of the set, as the field's protocols define them. Rows
    need not sum to 1."""

    @cached_property
    def joint_mirror(self) -> tuple[int, ...]:
        """For each joint, the one on the other side of the body."""
        return mirror_names(self.joint_names)

    @cached_property
    def hips(self) -> tuple[int, int]:
        """Indices of the left and right hip joints, whose middle is the pelvis (model space's origin)."""
        return self.joint_names.index("left_hip"), self.joint_names.index("right_hip")


def mirror_names(names: tuple[str, ...]) -> tuple[int, ...]:
    """Pairs `left_x` with `right_x` and `x.L` with `x.R`; every other name with itself."""

    def other(name: str) -> str:
        for ours, theirs in (("left_", "right_"), ("right_", "left_")):
            if name.startswith(ours):
                return theirs + name[len(ours) :]
        for ours, theirs in ((".L", ".R"), (".R", ".L")):
            if name.endswith(ours):
                return name[: -len(ours)] + theirs
        return name

    return tuple(names.index(other(name)) for name in names)
