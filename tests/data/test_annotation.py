"""A person in a drawn full image: whatever the change of the crop, image, 2D and 3D labels stay true to each other."""

import math

import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation, CropChange, crop
from deformer_core.data.sample import collate, pose_labels
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.geometry.camera import Intrinsics, project_crop

CHANGES = [
    CropChange(),
    CropChange(scale=1.2, shift=(0.1, -0.05)),
    CropChange(roll=math.radians(35)),
    CropChange(mirror=True, roll=-0.4, scale=0.8, shift=(-0.02, 0.03)),
]


@pytest.fixture
def person(body: BodyTopology, rng: np.random.Generator) -> Annotation:
    """Far from the middle of the image; a red dot marks the nose."""
    lens = Intrinsics(600, 600, 330, 250, 640, 480)
    rotations, shape, _ = PoseSampler(body).sample(rng, 1)
    posed = ParametricBody(body)(torch.from_numpy(rotations), torch.from_numpy(shape))["joints"][0].numpy()
    translation = np.array([1.1, 0.3, 4.0], np.float32)
    seen = (posed + translation) @ lens.matrix.T
    uv = (seen[:, :2] / seen[:, 2:]).astype(np.float32)
    image = np.zeros((480, 640, 3), np.uint8)
    rows, columns = np.mgrid[:480, :640] + 0.5
    image[..., 0] = 255 * np.exp(-((columns - uv[0, 0]) ** 2 + (rows - uv[0, 1]) ** 2) / 18)
    return Annotation(
        source="drawn",
        load_image=lambda: image,
        center=(float(uv[:, 0].mean()), float(uv[:, 1].mean())),
        side=float(np.ptp(uv, axis=0).max()) * 1.3,
        intrinsics=lens,
        uv=uv,
        uv_weight=np.ones(23, np.float32),
        joints=posed,
        body="anny",
        rotations=rotations[0],
        shape=shape[0],
        translation=translation,
    )


@pytest.mark.parametrize("change", CHANGES)
def test_labels_and_image_agree(person: Annotation, body: BodyTopology, change: CropChange) -> None:
    sample = crop(person, body, 192, change)
    batch = collate([sample], body)
    projected = project_crop(batch["joints"], batch["camera"], batch["box"])
    torch.testing.assert_close(projected, batch["uv"], atol=2e-4, rtol=0)
    posed = pose_labels(batch, ParametricBody(body))["joints"]
    assert float((posed - batch["joints"]).norm(dim=-1).max()) < 0.004  # the body is symmetric to millimetres
    assert sample.image is not None
    red = sample.image[..., 0].astype(float)
    rows, columns = np.mgrid[:192, :192] + 0.5
    dot = np.array([(red * columns).sum(), (red * rows).sum()]) / red.sum()
    np.testing.assert_allclose(dot / 96 - 1, sample.uv[0], atol=0.01)


def test_a_pose_of_another_body_is_left_out(person: Annotation, body: BodyTopology) -> None:
    other = Annotation(**{**person.__dict__, "body": "smpl", "joints_weight": np.eye(23, dtype=np.float32)[5]})
    sample = crop(other, body, 64, CropChange(mirror=True))
    assert sample.rotations is None and sample.shape is None
    assert sample.joints_weight is not None and sample.joints_weight.argmax() == body.joint_mirror[5]
