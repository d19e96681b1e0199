"""SMPL as a `BodyTopology`, made of the user's own files (see `smpl_files`).

Loper et al. 2015, "SMPL: A Skinned Multi-Person Linear Model": 24 bones, 10 shape coefficients, blend shapes driven by
the pose. Its levels of 1723 and 431 vertices, kept vertices of the full one, are those of Kolotouros et al. 2019
(GraphCMR), which METRO and its successors train on.

Our choices: the joints of the coarser levels are fitted on random bodies, so that they lie where those of the full
level do; and the rows of the upsampling that do not sum to 1 are made so with the same vertices, because otherwise
a body that stands elsewhere than the template comes out with spikes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.smpl_files import SmplArrays
from deformer_core.body.topology import (
    COCO_23,
    COCO_23_PARENTS,
    LEVELS,
    PART_NAMES,
    BodyTopology,
    Level,
    Rig,
    RowBlend,
    mirror_names,
)
from deformer_core.errors import InputError
from deformer_core.geometry.rotations import rotation_from_axis_angle

VERSION = 1
"""Of how the body is made; part of its content hash."""

SMPL_BONES = (
    "pelvis", "left_hip", "right_hip", "spine_1", "left_knee", "right_knee", "spine_2", "left_ankle", "right_ankle",
    "spine_3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hand", "right_hand",
)  # fmt: skip
_PART_OF_BONE = {
    "pelvis": "hips", "hip": "upper_leg", "spine": "torso", "knee": "lower_leg", "ankle": "foot", "foot": "foot",
    "neck": "neck", "collar": "torso", "head": "head", "shoulder": "upper_arm", "elbow": "lower_arm", "wrist": "hand",
    "hand": "hand",
}  # fmt: skip
_VERTEX_OF_JOINT = {
    "nose": 332, "left_eye": 2800, "right_eye": 6260, "left_ear": 583, "right_ear": 4071, "left_big_toe": 3216,
    "left_small_toe": 3226, "left_heel": 3387, "right_big_toe": 6617, "right_small_toe": 6624, "right_heel": 6787,
}  # fmt: skip
"""Landmarks of the face and the feet that everybody takes from SMPL's surface."""
_H36M_ROW = {
    "right_hip": 1, "right_knee": 2, "right_ankle": 3, "left_hip": 4, "left_knee": 5, "left_ankle": 6,
    "left_shoulder": 11, "left_elbow": 12, "left_wrist": 13, "right_shoulder": 14, "right_elbow": 15, "right_wrist": 16,
}  # fmt: skip

_AXES = np.array([1.0, -1.0, -1.0])
"""SMPL's axes (x to the body's left, y up, z to its front) to the template's (x right, y down, z forward)."""
_NEIGHBOURS = 32
"""Vertices that a joint of a coarser level is fitted to."""
_POPULATION = 1000
_RIDGE = 1e-3


def build_smpl(name: str, arrays: SmplArrays) -> BodyTopology:
    """The body of SMPL's files, in a second or two.

    Its `extra_regressors` are "h36m", the 17 joints of Human3.6M (pelvis, the right leg from the hip, the left leg,
    spine, neck, jaw, head, left arm, right arm) whatever the order in the file, and "smpl24", the heads of the bones.
    Errors: `InputError` if the vertices are not in SMPL's order.
    """
    _check_sides(arrays.vertices)
    regressor = _joint_regressor(arrays.h36m_regressor)
    vertices = arrays.vertices * _AXES
    joints = regressor.apply(vertices)
    pelvis = joints[[COCO_23.index("left_hip"), COCO_23.index("right_hip")]].mean(0)
    vertices = vertices - pelvis
    shape_basis = arrays.shape_basis.transpose(2, 0, 1) * _AXES
    # M - I in SMPL's axes is the same with signs: those of its row and of its column.
    signs = np.tile(np.outer(_AXES, _AXES).ravel(), len(SMPL_BONES) - 1)
    pose_basis = (arrays.pose_basis * signs).transpose(2, 0, 1) * _AXES
    skin = _entries(arrays.skin_weights)
    parts = _parts(arrays.skin_weights)

    levels = {}
    for level, kept in arrays.selection.items():
        nearest = np.linalg.norm((joints - pelvis)[:, None] - vertices[kept], axis=2).argmin(1)
        stand_in = RowBlend(nearest[:, None].astype(np.int32), np.ones((len(COCO_23), 1), np.float32), len(kept))
        levels[level] = Level(
            vertices=vertices[kept].astype(np.float32),
            faces=arrays.faces[level],
            joint_regressor=regressor if level == "full" else stand_in,
            skin_indices=skin.indices[kept],
            skin_weights=skin.weights[kept],
            shape_basis=shape_basis[:, kept].astype(np.float32),
            parts=parts[kept],
            pose_basis=pose_basis[:, kept].astype(np.float32),
        )
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((_POPULATION, len(shape_basis))).clip(-3, 3)
    draft = BodyTopology(
        name=name,
        version=VERSION,
        content_hash=f"{VERSION}{arrays.digest()}"[:16],
        joint_names=COCO_23,
        joint_parents=COCO_23_PARENTS,
        part_names=PART_NAMES,
        levels={level: levels[level] for level in LEVELS},
        upsample={
            target: _affine(arrays.upsample[target], levels[source].vertices, levels[target].vertices)
            for target, source in (("middle", "coarse"), ("full", "middle"))
        },
        rig=Rig(
            bone_names=SMPL_BONES,
            bone_parents=arrays.bone_parents,
            bone_heads=(arrays.bone_regressor @ arrays.vertices * _AXES - pelvis).astype(np.float32),
            head_basis=(arrays.bone_regressor @ shape_basis).astype(np.float32),
            shape_samples=(samples / samples.std(0)).astype(np.float32),
            mirror=np.array(mirror_names(SMPL_BONES), np.int32),
        ),
        extra_regressors={"h36m": _entries(arrays.h36m_regressor), "smpl24": _entries(arrays.bone_regressor)},
    )
    return _fit_joints(draft)


def _check_sides(vertices: NDArray[np.float64]) -> None:
    for joint, vertex in _VERTEX_OF_JOINT.items():
        other = _VERTEX_OF_JOINT.get(joint.replace("left_", "right_"), vertex)
        if vertices[vertex, 0] < vertices[other, 0]:
            raise InputError(
                f"SMPL's v_template has the {joint} on the body's right: its vertices are not in SMPL's order, give "
                "the model as it was downloaded"
            )


def _entries(matrix: NDArray[np.float64]) -> RowBlend:
    rows, columns = np.nonzero(matrix)
    return RowBlend.from_entries(rows, columns, matrix[rows, columns], (matrix.shape[0], matrix.shape[1]))


def _joint_regressor(h36m: NDArray[np.float64]) -> RowBlend:
    """Limbs by the Human3.6M regressor (its rows made to sum to 1), face and feet by single vertices."""
    matrix = np.zeros((len(COCO_23), h36m.shape[1]))
    for row, joint in enumerate(COCO_23):
        if joint in _VERTEX_OF_JOINT:
            matrix[row, _VERTEX_OF_JOINT[joint]] = 1
        else:
            matrix[row] = h36m[_H36M_ROW[joint]] / h36m[_H36M_ROW[joint]].sum()
    return _entries(matrix)


def _parts(skin_weights: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The part of each vertex' strongest bone."""
    part_of_bone = []
    for bone in SMPL_BONES:
        side, _, stem = bone.rpartition("_") if bone.startswith(("left_", "right_")) else ("", "", bone.split("_")[0])
        part = _PART_OF_BONE[stem]
        part_of_bone.append(PART_NAMES.index(part if part in PART_NAMES else f"{side}_{part}"))
    return np.array(part_of_bone, np.uint8)[skin_weights.argmax(1)]


def _affine(blend: RowBlend, source: NDArray[np.float32], target: NDArray[np.float32]) -> RowBlend:
    """The same, with new weights in the rows that do not sum to 1: the nearest point to the template's vertex."""
    rows = np.flatnonzero(np.abs(blend.weights.sum(1) - 1) > 1e-5)
    offsets = source[blend.indices[rows]].astype(np.float64) - target[rows, None]
    weights = blend.weights.copy()
    weights[rows] = _affine_weights(offsets)
    return replace(blend, weights=weights / weights.sum(1, keepdims=True))


def _fit_joints(draft: BodyTopology) -> BodyTopology:
    """The joints of the coarser levels, as affine sums of near vertices, on random bodies."""
    rng = np.random.default_rng(1)
    bends = torch.from_numpy(rng.normal(0, 0.4, (48, len(SMPL_BONES), 3)))
    shape = torch.from_numpy(draft.rig.shape_samples[:48])
    with torch.no_grad():
        posed = ParametricBody(draft, LEVELS)(rotation_from_axis_angle(bends).float(), shape)
    joints = draft.levels["full"].joint_regressor.apply(posed["full"].numpy())
    levels = dict(draft.levels)
    for name in ("middle", "coarse"):
        vertices = posed[name].numpy().astype(np.float64)
        indices, weights = [], []
        for joint in joints.transpose(1, 0, 2):
            offsets = vertices - joint[:, None]
            near = np.argsort(np.linalg.norm(offsets, axis=2).mean(0), kind="stable")[:_NEIGHBOURS]
            indices.append(near)
            weights.append(_affine_weights(offsets[:, near].transpose(1, 0, 2).reshape(1, _NEIGHBOURS, -1))[0])
        blend = RowBlend(np.array(indices, np.int32), np.array(weights, np.float32), vertices.shape[1])
        levels[name] = replace(levels[name], joint_regressor=blend)
    return replace(draft, levels=levels)


def _affine_weights(offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights that sum to 1 and bring the sum of (N, K, D) `offsets` nearest to zero, small where that is free: (N, K).

    Roweis and Saul 2000, "Locally Linear Embedding".
    """
    gram = offsets @ offsets.swapaxes(1, 2)
    size = np.trace(gram, axis1=1, axis2=2)[:, None, None] / gram.shape[1]
    gram = gram + _RIDGE * size * np.eye(gram.shape[1])
    weights = np.linalg.solve(gram, np.ones((*gram.shape[:2], 1)))[..., 0]
    return weights / weights.sum(1, keepdims=True)


def rig_rotations(pose: Tensor) -> Tensor:
    """SMPL's `pose` (..., 72) or (..., 24, 3), axis-angle, the first of them in the camera's axes, to our rig's.

    Returns (..., 24, 3, 3), as of `ParametricBody.forward`: relative to the parent in the template's axes, so that the
    identity faces the camera.
    """
    matrices = rotation_from_axis_angle(pose.unflatten(-1, (-1, 3)) if pose.shape[-1] == 72 else pose)
    axes = torch.as_tensor(_AXES).to(matrices)
    turned = matrices * axes  # M F: the root takes our template's axes to the camera's
    return torch.cat([turned[..., :1, :, :], turned[..., 1:, :, :] * axes[:, None]], -3)
