"""What the renderer draws: the full mesh and a few loose pieces (skirt, long hair), all posed by the same rig.

The pieces are extra vertices of a level named "dressed", so that one pass of linear blend skinning moves them
with the body. Their skinning weights and shape are borrowed from the body's vertices nearby.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology, Level

FloatArray = NDArray[np.float32]

RINGS, SPOKES = 14, 40


@dataclass(frozen=True)
class Landmarks:
    """Places of the template that clothes and faces are cut by. Metres, template coordinates."""

    neck: FloatArray
    shoulder_y: float
    hip_y: float
    knee_y: float
    ankle_y: float
    eye: FloatArray
    """The left eye; x > 0."""
    ear: FloatArray
    """The left ear; x > 0."""
    nose: FloatArray
    top_y: float
    """Top of the head."""


@dataclass(frozen=True)
class DressedBody:
    """The topology with a "dressed" level, and what of it belongs to which piece."""

    topology: BodyTopology
    landmarks: Landmarks
    arm: FloatArray
    """(V,) place along the arm: 0 at the shoulder, 1 at the elbow, 2 at the wrist; minus the distance from the
    shoulder, in upper arms, on the trunk."""
    faces: dict[str, NDArray[np.int32]]
    """Faces of each piece: "body", "skirt", "hair"."""
    n_body: int
    """The first vertices are the full level's."""

    @property
    def level(self) -> Level:
        return self.topology.levels["dressed"]


def dress(topology: BodyTopology) -> DressedBody:
    """Add the loose pieces to a body."""
    full = topology.levels["full"]
    landmarks = _landmarks(topology)
    skirt, skirt_faces = _skirt(landmarks, full.vertices)
    hair, hair_faces = _long_hair(landmarks)
    n_body = len(full.vertices)
    legs = in_parts(topology, ("hips", "left_upper_leg", "right_upper_leg"))
    head = in_parts(topology, ("head", "neck", "torso"))
    level = _append(full, len(topology.rig.bone_names), [(skirt, legs, 24), (hair, head, 12)])
    return DressedBody(
        topology=replace(topology, levels={**topology.levels, "dressed": level}),
        landmarks=landmarks,
        arm=np.concatenate([_arm_coordinate(topology), np.full(len(skirt) + len(hair), -1, np.float32)]),
        faces={
            "body": full.faces,
            "skirt": skirt_faces + np.int32(n_body),
            "hair": hair_faces + np.int32(n_body + len(skirt)),
        },
        n_body=n_body,
    )


def _joint(topology: BodyTopology, name: str) -> FloatArray:
    full = topology.levels["full"]
    return full.joint_regressor.apply(full.vertices)[topology.joint_names.index(name)]


def _landmarks(topology: BodyTopology) -> Landmarks:
    head = topology.rig.bone_names.index("neck01")
    return Landmarks(
        neck=topology.rig.bone_heads[head],
        shoulder_y=float(_joint(topology, "left_shoulder")[1]),
        hip_y=float(_joint(topology, "left_hip")[1]),
        knee_y=float(_joint(topology, "left_knee")[1]),
        ankle_y=float(_joint(topology, "left_ankle")[1]),
        eye=_joint(topology, "left_eye"),
        ear=_joint(topology, "left_ear"),
        nose=_joint(topology, "nose"),
        top_y=float(topology.levels["full"].vertices[:, 1].min()),
    )


def in_parts(topology: BodyTopology, names: tuple[str, ...]) -> NDArray[np.bool_]:
    """(V,) which of the full level's vertices are of these parts."""
    return np.isin(topology.levels["full"].parts, [topology.part_names.index(name) for name in names])


def _arm_coordinate(topology: BodyTopology) -> FloatArray:
    vertices = topology.levels["full"].vertices
    arm = np.full(len(vertices), -1, np.float32)
    for side in ("left", "right"):
        shoulder, elbow, wrist = (_joint(topology, f"{side}_{name}") for name in ("shoulder", "elbow", "wrist"))
        upper, lower = elbow - shoulder, wrist - elbow
        along_upper = (vertices - shoulder) @ upper / (upper @ upper)
        along_lower = 1 + (vertices - elbow) @ lower / (lower @ lower)
        mine = np.sign(vertices[:, 0]) == np.sign(shoulder[0])
        torso = in_parts(topology, ("torso",)) & mine
        arm[torso] = -np.linalg.norm(vertices - shoulder, axis=1)[torso] / np.linalg.norm(upper)
        for part, value in (("upper_arm", along_upper), ("lower_arm", along_lower), ("hand", along_lower)):
            chosen = in_parts(topology, (f"{side}_{part}",))
            arm[chosen] = np.maximum(value[chosen], 0.9 if part == "lower_arm" else 0)
            if part == "hand":
                arm[chosen] = np.maximum(arm[chosen], 1.9)
    return arm


def _tube(rings: list[NDArray], closed: bool) -> tuple[FloatArray, NDArray[np.int32]]:
    """Rings of equally many points joined into a surface; faces counter-clockwise seen from outside."""
    count = len(rings[0])
    faces = []
    for ring in range(len(rings) - 1):
        for spoke in range(count if closed else count - 1):
            a, b = ring * count + spoke, ring * count + (spoke + 1) % count
            faces += [(a, b, a + count), (b, b + count, a + count)]
    return np.concatenate(rings).astype(np.float32), np.array(faces, np.int32)


def _skirt(landmarks: Landmarks, vertices: FloatArray) -> tuple[FloatArray, NDArray[np.int32]]:
    """A tube around hips and legs, from the waist to the ankles; a shorter one is cut when it is drawn."""
    top, bottom = landmarks.hip_y - 0.16, landmarks.ankle_y
    angles = np.linspace(0, 2 * np.pi, SPOKES, endpoint=False)
    rings = []
    width, depth, middle = 0.0, 0.0, 0.0
    for y in np.linspace(top, bottom, RINGS):
        near = vertices[(np.abs(vertices[:, 1] - y) < 0.03) & (np.abs(vertices[:, 0]) < 0.3)]
        # Hangs from the widest place above: the hips, or the calves of the template's spread legs.
        width = max(width, float(np.abs(near[:, 0]).max()))
        depth = max(depth, float(np.ptp(near[:, 2])) / 2)
        middle = middle or float(near[:, 2].max() + near[:, 2].min()) / 2
        ring = np.stack([np.sin(angles) * width, np.full(SPOKES, y), middle - np.cos(angles) * depth], -1)
        rings.append(ring + 0.012 * np.stack([np.sin(angles), 0 * angles, -np.cos(angles)], -1))
    return _tube(rings, closed=True)


def _long_hair(landmarks: Landmarks) -> tuple[FloatArray, NDArray[np.int32]]:
    """A curtain around the back of the head from above the ears to the shoulder blades."""
    top, bottom = landmarks.ear[1] - 0.07, landmarks.shoulder_y + 0.14
    angles = np.linspace(-0.62 * np.pi, 0.62 * np.pi, SPOKES)
    middle, width = landmarks.ear[2] + 0.012, landmarks.ear[0] + 0.012
    rings = []
    for t in np.linspace(0, 1, RINGS):
        y = top + (bottom - top) * t
        flare = 1 + 0.25 * t
        ring = np.stack([np.sin(angles) * width * flare, np.full(SPOKES, y), middle + np.cos(angles) * 0.115], -1)
        rings.append(ring + [0, 0, 0.02 * t])
    return _tube(rings, closed=False)


def dense_skin(level: Level, n_bones: int) -> FloatArray:
    """(V, R) skinning weights of all bones."""
    skin = np.zeros((len(level.vertices), n_bones), np.float32)
    np.add.at(skin, (np.arange(len(skin))[:, None], level.skin_indices), level.skin_weights)
    return skin


def strongest_bones(skin: FloatArray) -> tuple[NDArray[np.int32], FloatArray]:
    """`Level.skin_indices` and `skin_weights` of at most eight bones a vertex. skin: (V, R)."""
    order = np.argsort(-skin, axis=1, kind="stable")[:, :8]
    weights = np.take_along_axis(skin, order, 1)
    return order.astype(np.int32), (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _append(level: Level, n_bones: int, pieces: list[tuple[FloatArray, NDArray[np.bool_], int]]) -> Level:
    """The level with more vertices, each skinned like the mean of its `count` nearest vertices of a mask."""
    from scipy.spatial import cKDTree

    skin = dense_skin(level, n_bones)
    vertices, basis, skins = [level.vertices], [level.shape_basis], [skin]
    for points, mask, count in pieces:
        source = np.flatnonzero(mask)
        near = source[cKDTree(level.vertices[source]).query(points, count)[1]]
        vertices.append(points)
        basis.append(level.shape_basis[:, near].mean(2))
        skins.append(skin[near].mean(1))
    indices, weights = strongest_bones(np.concatenate(skins))
    return replace(
        level,
        vertices=np.concatenate(vertices),
        skin_indices=indices,
        skin_weights=weights,
        shape_basis=np.concatenate(basis, 1),
        parts=np.concatenate([level.parts, np.zeros(sum(len(p[0]) for p in pieces), np.uint8)]),
    )
