"""People in pictures of their own, with exact labels: a data set for tests that need images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.geometry.camera import Intrinsics

LENS = Intrinsics(300, 300, 170, 110, 320, 240)


def draw_people(topology: BodyTopology, count: int, seed: int) -> Sequence[Annotation]:
    """Every third has 2D labels alone. The picture is noise with a bright dot at every joint."""
    rng = np.random.default_rng(seed)
    rotations, shapes, _ = PoseSampler(topology).sample(rng, count)
    joints = ParametricBody(topology)(torch.from_numpy(rotations), torch.from_numpy(shapes))["joints"].numpy()
    people = []
    for number in range(count):
        translation = rng.normal([0, 0, 4], [0.4, 0.2, 0.4]).astype(np.float32)
        seen = (joints[number] + translation) @ LENS.matrix.T
        uv = (seen[:, :2] / seen[:, 2:]).astype(np.float32)
        center = (uv.min(0) + uv.max(0)) / 2
        person = Annotation(
            source=f"drawn:{number}",
            load_image=partial(picture, uv, seed + number),
            center=(float(center[0]), float(center[1])),
            side=float(np.ptp(uv, axis=0).max()) * 1.3,
            intrinsics=LENS,
            uv=uv,
            uv_weight=np.ones(len(uv), np.float32),
            joints=joints[number],
            body=topology.name,
            rotations=rotations[number],
            shape=shapes[number],
            translation=translation,
        )
        flat = {"joints": None, "rotations": None, "shape": None, "translation": None, "body": ""}
        people.append(replace(person, **flat) if number % 3 == 2 else person)  # type: ignore[arg-type]
    return people


def picture(uv: NDArray[np.float32], seed: int) -> NDArray[np.uint8]:
    import cv2

    noise = np.random.default_rng(seed).normal(90, 30, (15, 20, 3)).clip(0, 160)
    image = cv2.resize(noise.astype(np.uint8), (LENS.width, LENS.height), interpolation=cv2.INTER_CUBIC)
    for x, y in uv:
        cv2.circle(image, (round(float(x)), round(float(y))), 3, (255, 255, 255), -1)
    return image  # type: ignore[return-value]
