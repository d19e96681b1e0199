"""Bone rotations of a body from its vertices, in closed form, and the transforms that tell them to a robot.

Linear blend skinning says y_v = sum_b w_vb (s_b R_b x_v + t_b) for the template's vertices x_v. With the stacked
4x3 blocks T_b = [s_b R_b, t_b]^T and the matrix A of rows w_vb [x_v, 1] that is y = A T, linear but for R_b being
rotations. Holding the other bones, the best R_b, s_b, t_b are a weighted Procrustes problem with weights w_vb^2,
whose sums are blocks of A^T A, the same for everybody, and of A^T y. So the vertices are touched once per image, and
a few sweeps over the bones cost no more than their 3x3 SVDs. Terms that hold each bone's head to its parent
join the body, and the scales s_b take up that people differ from the template.

Frames of bones follow REP-155: in the template's pose all have x to the front, y to the left, z to the head.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.errors import InputError
from deformer_core.geometry.procrustes import align_rotation

FloatArray = NDArray[np.float64]

SWEEPS = 2
"""Further ones change less than 0.1 degrees."""
JOINT_WEIGHT = 3.0
"""Of a bone's hold on its parent, in vertices, on a mesh of 615."""
PRIOR = 1e-4
"""Square metres, of a mesh of 615 vertices. A bone turns with its parent unless its own vertices say more than this;
where they leave an axis open, it makes the smallest turn about the others."""
SCALES = (0.7, 1.4)
TEMPLATE_TO_BODY = np.array([[0.0, 1, 0], [0, 0, -1], [-1, 0, 0]])
"""Columns: the body's x (front), y (left) and z (head) in the template's axes, which face the camera, y down."""

_JOINT_OF_BONE = {
    "root": "pelvis",
    "upperleg01": "hip",
    "lowerleg01": "knee",
    "foot": "ankle",
    "upperarm01": "shoulder",
    "lowerarm01": "elbow",
    "neck01": "neck",
}
"""A bone turns about the joint at its head, whose name people know."""
_SIDES = {".L": "left_", ".R": "right_"}


class BonePoses(NamedTuple):
    """Axes as the vertices' (the optical frame's), origin at the pelvis, metres."""

    rotations: FloatArray
    """(P, R, 3, 3) from the template's pose to this one."""
    heads: FloatArray
    """(P, R, 3) where the bones begin."""

    def quaternions(self) -> FloatArray:
        """(P, R, 4) x, y, z, w of the rotations."""
        return quaternions(self.rotations)


class BodyFrames:
    """Measures the bones of one mesh level of a body. Frames are named after joints, parents first."""

    names: tuple[str, ...]
    """"body", then one a bone."""
    parents: tuple[int, ...]
    """Of the frames; -1, the camera, for the body."""

    def __init__(self, topology: BodyTopology, level: str) -> None:
        rig, mesh = topology.rig, topology.levels[level]
        self.names = ("body", *(frame_name(bone) for bone in rig.bone_names))
        self.parents = (-1, *(parent + 1 for parent in rig.bone_parents))
        self._bone_parents = np.array(rig.bone_parents)
        self._heads = np.insert(rig.bone_heads.astype(np.float64), 3, 1, axis=1)
        n_vertices, n_bones = len(mesh.vertices), len(rig.bone_names)
        weights = np.zeros((n_vertices, n_bones))
        np.add.at(weights, (np.arange(n_vertices)[:, None], mesh.skin_indices), mesh.skin_weights)
        points = np.insert(mesh.vertices.astype(np.float64), 3, 1, axis=1)
        rows = weights[:, :, None] * points[:, None]
        matrix = rows.reshape(n_vertices, 4 * n_bones)
        self._matrix = matrix.T.astype(np.float32)
        unit = n_vertices / 615
        self._alone = _Alignment(np.einsum("vbi,vj->bij", rows, points), unit * PRIOR)
        normal = (matrix.T @ matrix).reshape(n_bones, 4, n_bones, 4) + unit * JOINT_WEIGHT * self._joint_terms()
        own = np.arange(n_bones)
        self._jointly = _Alignment(normal[own, :, own], unit * PRIOR)
        normal[own, :, own] = 0
        self._others = normal
        depth = np.zeros(n_bones, np.int64)
        for bone in np.flatnonzero(self._bone_parents >= 0):
            depth[bone] = depth[self._bone_parents[bone]] + 1
        # Neighbours of one kind are of the other: each half is solved at once, with the newest of the other half.
        self._halves = [np.flatnonzero(depth % 2 == parity) for parity in (0, 1)]

    def _joint_terms(self) -> FloatArray:
        """(R, 4, R, 4) of the squared distances between the bones' heads as moved by themselves and their parents."""
        n_bones = len(self._heads)
        terms = np.zeros((n_bones, 4, n_bones, 4))
        for bone in np.flatnonzero(self._bone_parents >= 0):
            parent, square = self._bone_parents[bone], np.outer(self._heads[bone], self._heads[bone])
            terms[bone, :, bone] += square
            terms[parent, :, parent] += square
            terms[bone, :, parent] -= square
            terms[parent, :, bone] -= square
        return terms

    def __call__(self, vertices: NDArray) -> BonePoses:
        """vertices: (P, V, 3) metres, origin at the pelvis. Errors: `InputError` for vertices that are not finite."""
        sums = (self._matrix @ np.asarray(vertices, np.float32)).astype(np.float64)
        if not np.isfinite(sums).all():
            raise InputError("the body's vertices are not finite numbers: use another checkpoint or engine")
        bones = np.arange(len(self._heads))
        sums = sums.reshape(len(sums), len(bones), 4, 3)
        parents = np.where(self._bone_parents < 0, bones, self._bone_parents)
        rotations, blocks = self._alone.solve(sums, bones, np.eye(3))
        for _ in range(SWEEPS):
            for half in self._halves:
                others = np.tensordot(blocks, self._others[half], ([1, 2], [2, 3])).transpose(0, 2, 3, 1)
                towards = rotations[:, parents[half]]
                rotations[:, half], blocks[:, half] = self._jointly.solve(sums[:, half] - others, half, towards)
        heads = (self._heads[:, None] @ blocks)[:, :, 0]
        return BonePoses(rotations, heads)

    def transforms(self, poses: BonePoses, translations: NDArray) -> tuple[FloatArray, FloatArray]:
        """Every frame in its parent's: positions (P, R + 1, 3) metres and quaternions (P, R + 1, 4) x, y, z, w.

        translations: (P, 3) the pelvis in the optical frame, which is the body's parent. The body has its origin
        there and the axes of the root bone.
        """
        axes = poses.rotations @ TEMPLATE_TO_BODY
        axes = np.concatenate([axes[:, :1], axes], 1)
        origins = np.concatenate([np.zeros_like(poses.heads[:, :1]), poses.heads], 1)
        parents = np.array(self.parents[1:])
        inverse = axes[:, parents].swapaxes(2, 3)
        local = inverse @ axes[:, 1:]
        moved = (inverse @ (origins[:, 1:] - origins[:, parents])[..., None])[..., 0]
        positions = np.concatenate([np.asarray(translations, np.float64)[:, None], moved], 1)
        return positions, quaternions(np.concatenate([axes[:, :1], local], 1))


class _Alignment:
    """Weighted Procrustes of every bone: moments of the template, (R, 4, 4) sums of w [x, 1] [x, 1]^T."""

    def __init__(self, moments: FloatArray, prior: float) -> None:
        self._count, self._prior = np.maximum(moments[:, 3, 3], 1e-9), prior  # a bone may have no skin
        self._mean = moments[:, :3, 3] / self._count[:, None]
        self._variance = np.trace(moments[:, :3, :3], axis1=1, axis2=2) - self._count * (self._mean**2).sum(1)

    def solve(self, sums: FloatArray, bones: NDArray[np.int64], towards: FloatArray) -> tuple[FloatArray, FloatArray]:
        """sums: (P, n, 4, 3) of w [x, 1] y^T for n `bones`; towards: (..., 3, 3) what they turn like if in doubt.

        Returns rotations (P, n, 3, 3) and blocks (P, n, 4, 3) that map [x, 1] to y.
        """
        count, mean = self._count[bones][:, None], self._mean[bones]
        covariance = sums[:, :, :3].swapaxes(2, 3) - sums[:, :, 3, :, None] * mean[:, None]
        rotations, gain = align_rotation(covariance + self._prior * towards)
        scale = np.clip(gain / (self._variance[bones] + 3 * self._prior), *SCALES)
        linear = scale[..., None, None] * rotations
        shift = sums[:, :, 3] / count - (linear @ mean[..., None])[..., 0]
        return rotations, np.concatenate([linear.swapaxes(2, 3), shift[:, :, None]], 2)


def frame_name(bone: str) -> str:
    """`upperleg01.L` to `left_hip`: the joint where a bone begins, in characters that frame names may have."""
    stem, side = (bone[:-2], _SIDES[bone[-2:]]) if bone[-2:] in _SIDES else (bone, "")
    return side + re.sub(r"\W", "_", _JOINT_OF_BONE.get(stem, stem)).lower()


def quaternions(rotations: NDArray) -> FloatArray:
    """(..., 3, 3) rotations to (..., 4) unit quaternions x, y, z, w with w >= 0.

    The rows of 4 q q^T are all parallel to q; the longest is free of cancellation (Shepperd 1978).
    """
    m = np.asarray(rotations, np.float64)
    x, y, z = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    diagonal = np.stack([1 + x - y - z, 1 - x + y - z, 1 - x - y + z, 1 + x + y + z], -1)
    square = np.zeros((*m.shape[:-2], 4, 4))
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        square[..., i, j] = square[..., j, i] = m[..., i, j] + m[..., j, i]
        square[..., k, 3] = square[..., 3, k] = m[..., j, i] - m[..., i, j]
    square[..., range(4), range(4)] = diagonal
    row = np.take_along_axis(square, diagonal.argmax(-1)[..., None, None], -2)[..., 0, :]
    row = row * np.where(row[..., 3:] < 0, -1, 1)
    return row / np.linalg.norm(row, axis=-1, keepdims=True)
