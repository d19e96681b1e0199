"""Changes of a sample or a batch that keep image and labels true to each other.

All randomness comes from the generator that is given, so a batch depends on its seed alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from deformer_core.body.topology import BodyTopology
from deformer_core.data.sample import Batch, Sample
from deformer_core.geometry.camera import FLIP, CropWindow, camera_from_translation, camera_translation, crop_rotation

# COCO-17: nose, then eyes, ears, shoulders, elbows, wrists, hips, knees, ankles, left before right.
KEYPOINT_MIRROR = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


def mirror_sample(sample: Sample, topology: BodyTopology) -> Sample:
    """The sample as seen in a mirror beside the camera: left is right, for image, 2D, 3D, rig and crop alike."""
    joints, bones = list(topology.joint_mirror), topology.rig.mirror
    turn = FLIP[:, None] * FLIP
    return replace(
        sample,
        box=sample.box * FLIP,
        uv=sample.uv[joints] * FLIP[:2],
        uv_weight=sample.uv_weight[joints],
        image=None if sample.image is None else np.ascontiguousarray(sample.image[:, ::-1]),
        joints=None if sample.joints is None else sample.joints[joints] * FLIP,
        joints_weight=None if sample.joints_weight is None else sample.joints_weight[joints],
        rotations=None if sample.rotations is None else sample.rotations[bones] * turn,
        camera=None if sample.camera is None else sample.camera * np.array([1, -1, 1], np.float32),
        keypoints=None if sample.keypoints is None else sample.keypoints[list(KEYPOINT_MIRROR)] * FLIP,
    )


def jitter_window(rng: np.random.Generator, window: CropWindow, scale: float, shift: float) -> CropWindow:
    """A window up to `scale` times larger or smaller, its centre moved by about `shift` sides (one sigma)."""
    side = window.side * float(np.exp(rng.uniform(-1, 1) * np.log1p(scale)))
    dx, dy = rng.normal(0, shift, 2) * window.side
    return CropWindow(window.center_x + float(dx), window.center_y + float(dy), side)


def jitter_box(rng: np.random.Generator, box: Tensor, scale: float, shift: float) -> Tensor:
    """`jitter_window` for a batch of crops given by their boxes. (B, 3) to (B, 3)."""
    factor = np.exp(rng.uniform(-1, 1, (len(box), 1)) * np.log1p(scale))
    step = rng.normal(0, 2 * shift, (len(box), 2))
    change = torch.from_numpy(np.concatenate([step, factor], 1).astype(np.float32))
    return torch.cat([box[:, :2] + change[:, :2] * box[:, 2:], box[:, 2:] * change[:, 2:]], 1)


def reframe(batch: Batch, box: Tensor) -> Batch:
    """The same people seen through other crops of the same full images: exact for every label and for keypoints.

    Images and feature maps cannot follow and must not be in the batch. box: (B, 3).
    """
    old = batch["box"]
    turn = crop_rotation(box).transpose(1, 2) @ crop_rotation(old)  # old virtual camera to the new one

    def place(uv: Tensor) -> Tensor:
        return (old[:, None, :2] + uv * old[:, None, 2:] - box[:, None, :2]) / box[:, None, 2:]

    has_camera = batch["has_camera"][:, None] > 0
    known = torch.where(has_camera, batch["camera"], torch.ones_like(batch["camera"]))
    translation = (turn @ camera_translation(known, old)[:, :, None])[:, :, 0]
    camera = camera_from_translation(translation, box)
    rotations = batch["rotations"].clone()
    rotations[:, 0] = turn @ rotations[:, 0]
    keypoints = batch["keypoints"]
    return batch | {
        "box": box,
        "uv": place(batch["uv"]),
        "keypoints": torch.cat([place(keypoints[..., :2]), keypoints[..., 2:]], -1),
        "joints": batch["joints"] @ turn.transpose(1, 2),
        "rotations": rotations,
        "camera": torch.where(has_camera, camera, torch.zeros_like(camera)),
    }


def perturb_keypoints(rng: np.random.Generator, keypoints: Tensor, sigma: float, dropped: float) -> Tensor:
    """Keypoints moved by normal noise of `sigma` half crop sides; a share `dropped` also gets a score near 0."""
    noise = torch.from_numpy(rng.normal(0, sigma, (*keypoints.shape[:-1], 2)).astype(np.float32))
    keep = torch.from_numpy((rng.random(keypoints.shape[:-1]) >= dropped).astype(np.float32))
    score = keypoints[..., 2] * keep + 0.03 * (1 - keep)
    return torch.cat([keypoints[..., :2] + noise, score[..., None]], -1)
