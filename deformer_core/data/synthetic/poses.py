"""Poses and shapes to render: recordings where there are some, drawn poses always.

A third of a photo collection stands, much of the rest walks, sits or reaches, a tenth is extreme; wilder
priors were measured to give standing people bent knees. Recordings (`deformer_core.data.mocap`) are
recombined (arms of one pose, legs of another), mirrored and disturbed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.data.mocap import PoseBank, yaw
from deformer_core.geometry.rotations import rotation_between, rotation_from_axis_angle

FloatArray = NDArray[np.float32]

KINDS = ("stand", "sit", "crouch", "lie", "wild", "recorded")

# Upper-arm directions (x away from the body, y down, z forward of the template is -z), and how often.
_ARM_DIRECTIONS = np.array(
    [[0.2, 1, 0], [0.15, 0.9, -0.35], [0.3, 0.7, -0.7], [0.2, 0.1, -1], [1, 0, 0], [0.6, -0.8, -0.2],
     [0.7, 0.8, 0.2], [0.1, 0.9, 0.45], [0.1, -0.5, -0.9], [0.5, 0.6, -0.1]]
)  # fmt: skip
_ARM_WEIGHTS = np.array([0.27, 0.13, 0.15, 0.08, 0.07, 0.07, 0.08, 0.04, 0.05, 0.06])


@dataclass(frozen=True)
class PoseConfig:
    """How often each kind is drawn. `recorded` falls to `stand` where there are no recordings."""

    stand: float = 0.2
    sit: float = 0.13
    crouch: float = 0.04
    lie: float = 0.03
    wild: float = 0.06
    recorded: float = 0.54
    recombine: float = 0.35
    """Of the recorded: arms and trunk of one pose on the legs of another."""

    def weights(self, has_recordings: bool) -> NDArray[np.float64]:
        values = np.array([getattr(self, kind) for kind in KINDS], dtype=np.float64)
        if not has_recordings:
            values[KINDS.index("stand")] += values[KINDS.index("recorded")]
            values[KINDS.index("recorded")] = 0
        return values / values.sum()


class PoseSampler:
    """Draws poses and shapes; what it draws depends on the generator it is given and on nothing else."""

    def __init__(self, topology: BodyTopology, bank: PoseBank | None = None, config: PoseConfig | None = None) -> None:
        self.config = config or PoseConfig()
        self.bank = bank
        self.rig = topology.rig
        self._weights = self.config.weights(bank is not None)
        self._index = {name: bone for bone, name in enumerate(self.rig.bone_names)}
        self._legs = np.array(["leg" in name or "foot" in name for name in self.rig.bone_names])

    def sample(self, rng: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray, list[str]]:
        """Draw `count` bodies.

        Returns rotations (N, R, 3, 3) relative to the parents in the template's axes, upright in a world whose
        y axis points down, heading towards -z (the camera) up to each kind's scatter; shape (N, S); kinds.
        """
        kinds = rng.choice(len(KINDS), size=count, p=self._weights)
        rotations = np.tile(np.eye(3, dtype=np.float64), (count, len(self.rig.bone_names), 1, 1))
        for kind in np.unique(kinds):
            rows = np.flatnonzero(kinds == kind)
            recorded = KINDS[kind] == "recorded"
            rotations[rows] = self._recorded(rng, len(rows)) if recorded else self._drawn(rng, len(rows), KINDS[kind])
        swap = rng.random(count) < 0.5
        rotations[swap] = mirror_pose(rotations[swap], self.rig.mirror)
        return rotations.astype(np.float32), self._shapes(rng, count), [KINDS[kind] for kind in kinds]

    def _shapes(self, rng: np.random.Generator, count: int) -> FloatArray:
        """Blends of two people of the baked population, so that no shape is seen exactly twice."""
        population = self.rig.shape_samples
        pairs = rng.integers(len(population), size=(count, 2))
        share = rng.beta(0.5, 0.5, size=(count, 1))
        return (share * population[pairs[:, 0]] + (1 - share) * population[pairs[:, 1]]).astype(np.float32)

    def _recorded(self, rng: np.random.Generator, count: int) -> NDArray:
        assert self.bank is not None
        # A clip first, then a frame of it: long clips of one action must not crowd out the others. The
        # root of the clip's length tempers that, since single poses would otherwise recur too often.
        sizes = np.bincount(self.bank.clip, minlength=len(self.bank.clips)) ** 0.5
        starts = np.searchsorted(self.bank.clip, np.arange(len(self.bank.clips) + 1))
        clips = rng.choice(len(sizes), size=(count, 2), p=sizes / sizes.sum())
        frames = starts[clips] + (rng.random((count, 2)) * (starts[clips + 1] - starts[clips])).astype(int)
        poses = self.bank.rotations[frames].astype(np.float64)
        legs_from_other = rng.random(count) < self.config.recombine
        other = legs_from_other[:, None] & self._legs[None]
        mixed = np.where(other[..., None, None], poses[:, 1], poses[:, 0])
        return mixed @ _random_rotations(rng, mixed.shape[:2], 0.06)

    def _drawn(self, rng: np.random.Generator, count: int, kind: str) -> NDArray:
        """Joint by joint, within human limits; `wild` widens everything."""
        wide = 1.7 if kind == "wild" else 1.0
        local = _random_rotations(rng, (count, len(self.rig.bone_names)), 0.04 * wide)
        bend = np.abs(rng.normal(0, {"crouch": 0.12, "wild": 0.15, "sit": 0.08}.get(kind, 0.035), count))
        for spine in ("spine05", "spine04", "spine03", "spine02", "spine01"):
            turn = rng.normal(0, 0.05 * wide, (count, 3))
            turn[:, 0] += bend
            local[:, self._index[spine]] = _rotations(turn)
        for bone in ("neck01", "head"):
            local[:, self._index[bone]] = _rotations(rng.normal(0, 0.16, (count, 3)) * [1.3, 1.2, 0.7])
        for side, sign in ((".L", 1.0), (".R", -1.0)):
            self._draw_arm(rng, local, side, sign, wide)
        self._draw_legs(rng, local, kind, wide)
        local[:, 0] = self._draw_root(rng, count, kind)
        return local

    def _draw_arm(self, rng: np.random.Generator, local: NDArray, side: str, sign: float, wide: float) -> None:
        count = len(local)
        upper, fore = self._segment("upperarm01", "lowerarm01", side), self._segment("lowerarm01", "wrist", side)
        target = _ARM_DIRECTIONS[rng.choice(len(_ARM_DIRECTIONS), size=count, p=_ARM_WEIGHTS)]
        target = target / np.linalg.norm(target, axis=1, keepdims=True) + rng.normal(0, 0.2 * wide, (count, 3))
        swing = _between(np.tile(upper, (count, 1)), target * [sign, 1, 1])
        twist = _rotations(upper * rng.normal(0, 0.5, (count, 1)))
        local[:, self._index[f"upperarm01{side}"]] = swing @ twist
        # The elbow's hinge: it brings the hand forward and up.
        hinge = np.cross(fore, [0, 0, -1.0])
        flexion = np.minimum(np.abs(rng.normal(0.1, 0.85, (count, 1))), 2.4)
        pronation = _rotations(fore * rng.normal(0, 0.4, (count, 1)))
        local[:, self._index[f"lowerarm01{side}"]] = _rotations(hinge / np.linalg.norm(hinge) * flexion) @ pronation
        local[:, self._index[f"wrist{side}"]] = _rotations(rng.normal(0, 0.2, (count, 3)))

    def _draw_legs(self, rng: np.random.Generator, local: NDArray, kind: str, wide: float) -> None:
        count = len(local)
        # Both legs share a part of the flexion: people mostly sit with two legs bent.
        shared = {"sit": rng.uniform(1.1, 1.8, count), "crouch": rng.uniform(1.2, 2.2, count)}.get(
            kind, rng.normal(0.03, 0.06 * wide, count)
        )
        for side, sign in ((".L", 1.0), (".R", -1.0)):
            thigh = self._segment("upperleg01", "lowerleg01", side)
            shin = self._segment("lowerleg01", "foot", side)
            own = {"sit": 0.12, "crouch": 0.3, "wild": 0.7, "lie": 0.3}.get(kind, 0.1)
            flexion = np.clip(shared + rng.normal(0, own, count), -0.5, 2.3)
            knee = {
                "sit": np.clip(rng.normal(1.5, 0.4, count), 0, 2.4),
                "crouch": np.clip(flexion + rng.normal(0.3, 0.3, count), 0, 2.5),
                "wild": np.minimum(np.abs(rng.normal(0.2, 0.8, count)), 2.4),
            }.get(kind, np.abs(rng.normal(0, 0.12, count)) + np.maximum(flexion, 0) * rng.uniform(0.5, 1.5, count))
            spread = np.clip(rng.normal(0.08, 0.13 * wide, count), -0.15, 0.9)
            if kind == "sit":
                spread += np.abs(rng.normal(0, 0.2, count))
            target = np.stack(
                [sign * np.sin(spread), np.cos(spread) * np.cos(flexion), -np.cos(spread) * np.sin(flexion)], 1
            )
            swing = _between(np.tile(thigh, (count, 1)), target)
            twist = _rotations(thigh * rng.normal(0, 0.15 * wide, (count, 1)))
            local[:, self._index[f"upperleg01{side}"]] = swing @ twist
            hinge = np.cross(shin, [0, 0, 1.0])
            local[:, self._index[f"lowerleg01{side}"]] = _rotations(hinge / np.linalg.norm(hinge) * knee[:, None])
            local[:, self._index[f"foot{side}"]] = _rotations(rng.normal(0, 0.13, (count, 3)) * [1.5, 1, 0.7])

    def _draw_root(self, rng: np.random.Generator, count: int, kind: str) -> NDArray:
        lean = rng.normal(0, {"stand": 0.05, "sit": 0.14, "wild": 0.4}.get(kind, 0.2), (count, 3)) * [1, 0, 1]
        upright = _rotations(lean)
        if kind != "lie":
            return upright
        # On the back, the front or a side, in any direction of the floor.
        fall = rng.choice([-1.0, 1.0], count) * np.pi / 2
        axis = np.where(rng.random((count, 1)) < 0.75, [[1.0, 0, 0]], [[0, 0, 1.0]])
        return yaw(rng.uniform(-np.pi, np.pi, count)) @ upright @ _rotations(axis * fall[:, None])

    def _segment(self, bone: str, tip: str, side: str) -> NDArray:
        """Unit direction of a bone of the template."""
        heads = self.rig.bone_heads.astype(np.float64)
        direction = heads[self._index[tip + side]] - heads[self._index[bone + side]]
        return direction / np.linalg.norm(direction)


def mirror_pose(rotations: NDArray, mirror: NDArray[np.int32]) -> NDArray:
    """The pose seen in a mirror whose plane is x = 0. rotations: (N, R, 3, 3)."""
    flip = np.diag([-1.0, 1.0, 1.0]).astype(rotations.dtype)
    return flip @ rotations[:, mirror] @ flip


def _rotations(axis_angles: NDArray) -> NDArray:
    return rotation_from_axis_angle(torch.from_numpy(np.ascontiguousarray(axis_angles, dtype=np.float64))).numpy()


def _random_rotations(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> NDArray:
    return _rotations(rng.normal(0, sigma, (*shape, 3)))


def _between(source: NDArray, target: NDArray) -> NDArray:
    return rotation_between(torch.from_numpy(source), torch.from_numpy(target)).numpy()
