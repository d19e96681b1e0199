"""A drawn person to write in every dataset's format: joints in a camera, and a picture with a dot on some of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.geometry.camera import Intrinsics

LENS = Intrinsics(500.0, 510.0, 310.0, 250.0, 640, 480)
COLORS = {
    "left_wrist": (255, 0, 0),
    "right_wrist": (0, 255, 0),
    "left_knee": (0, 0, 255),
    "right_knee": (255, 255, 0),
}
UPRIGHT = (np.pi, 0.0, 0.0)
"""SMPL's root pose of a body that faces the camera: its own axes are y up, z to its front."""


def published(names: str) -> list[str]:
    """Names as datasets publish them, "R_Ankle L_Hip Neck", in ours."""
    sides = {"R": "right_", "L": "left_"}
    words = []
    for name in names.split():
        side, _, rest = name.rpartition("_") if name[:2] in ("R_", "L_") else ("", "", name)
        words.append((sides.get(name[0], "") + name[2:] if side else name).lower())
    return words


class Drawn:
    """Points by name, metres in the camera; whatever a name stands for, every person has a place for it."""

    def __init__(self, rng: np.random.Generator, folder: Path, name: str = "photo.png") -> None:
        self._rng, self.folder, self.name = rng, folder, name
        self._points: dict[str, NDArray] = {}
        self.pose = rng.normal(0, 0.6, (24, 3))
        self.betas = rng.normal(0, 1, 10)
        for row, joint in enumerate(COLORS):
            # Apart from each other, so that no dot hides another.
            self._points[joint] = np.array([0.5 * (row - 1.5), 0.3 * (row % 2), 3]) + rng.uniform(-0.1, 0.1, 3)
        image = np.zeros((LENS.height, LENS.width, 3), np.uint8)
        for joint, color in COLORS.items():
            center = [round(value - 0.5) for value in self.uv([joint])[0]]
            cv2.circle(image, center, 5, color[::-1], -1)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)

    def points(self, names: Sequence[str]) -> NDArray:
        """(K, 3) metres."""
        for name in names:
            if name not in self._points:
                self._points[name] = np.array([0, 0, 3]) + self._rng.uniform(-0.8, 0.8, 3)
        return np.stack([self._points[name] for name in names])

    def uv(self, names: Sequence[str]) -> NDArray:
        """(K, 2) pixels."""
        seen = self.points(names) @ LENS.matrix.T
        return seen[:, :2] / seen[:, 2:]

    def keypoints(self, names: Sequence[str], weight: float = 1.0) -> NDArray:
        """(K, 3) pixels and weight."""
        return np.column_stack([self.uv(names), np.full(len(names), weight)])

    def points4(self, names: Sequence[str], root: Sequence[float] = (0, 0, 0)) -> NDArray:
        """(K, 4) metres from `root`, and weight."""
        return np.column_stack([self.points(names) - root, np.ones(len(names))])

    @property
    def pelvis(self) -> NDArray:
        return self.points(["left_hip", "right_hip"]).mean(0)

    @property
    def box(self) -> list[float]:
        """x, y, width, height."""
        seen = self.uv(list(self._points))
        return [*seen.min(0), *(seen.max(0) - seen.min(0))]

    def check_2d(self, person: Annotation, body: BodyTopology) -> None:
        """The colours of wrists and knees lie under the labels of those names."""
        image = person.load_image()
        assert image.shape == (480, 640, 3)
        for joint, color in COLORS.items():
            row = body.joint_names.index(joint)
            assert person.uv_weight[row] > 0, joint
            x, y = person.uv[row].astype(int)
            np.testing.assert_array_equal(image[y, x], color, err_msg=joint)
        assert person.uv.shape == (len(body.joint_names), 2) and person.uv.dtype == np.float32
        assert np.abs(person.uv[person.uv_weight == 0]).sum() == 0

    def check_3d(self, person: Annotation, body: BodyTopology) -> None:
        assert person.joints is not None and person.joints_weight is not None
        known = [name for name, weight in zip(body.joint_names, person.joints_weight) if weight > 0]
        assert set(COLORS) <= set(known)
        rows = [body.joint_names.index(name) for name in known]
        np.testing.assert_allclose(person.joints[rows], self.points(known) - self.pelvis, atol=1e-5)
        for name, place in person.named_joints.items():
            np.testing.assert_allclose(place, self.points([name])[0] - self.pelvis, atol=1e-5)

    def check_smpl(self, person: Annotation, turn: NDArray | None = None) -> None:
        """turn: from the axes of the written pose to the camera's."""
        assert person.rotations is not None and person.shape is not None
        flip = np.diag([1, -1, -1])
        matrices = [cv2.Rodrigues(axis_angle)[0] for axis_angle in self.pose]
        root = (np.eye(3) if turn is None else turn) @ matrices[0] @ flip
        np.testing.assert_allclose(person.rotations[0], root, atol=1e-5)
        for bone in range(1, 24):
            np.testing.assert_allclose(person.rotations[bone], flip @ matrices[bone] @ flip, atol=1e-5)
        np.testing.assert_allclose(person.shape, self.betas, atol=1e-5)
