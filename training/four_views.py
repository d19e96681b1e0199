"""The real recording of the package pose2sim, run through detector and model, for `evaluate.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from deformer_core.body.topology import BodyTopology
from deformer_core.data.pose2sim import find_demo, open_recording
from deformer_core.errors import InputError
from deformer_core.geometry.camera import CropWindow, crop_rotation
from deformer_core.runtime.crops import Image, cut_crop
from deformer_core.runtime.detector import PersonDetector
from deformer_core.runtime.engines import Engine
from deformer_core.training.multiview import measure_views
from deformer_core.training.progress import progress

EVERY = 4
"""Frames from one measured moment to the next: 15 a second, of 60; neighbours differ too little to tell more."""


def measure_recording(
    model: Engine, topology: BodyTopology, folder: Path | None, limit: int | None = None
) -> dict[str, float]:
    """`multiview.measure_views` of the demo; the keypoints are the model's backbone's. limit: moments at most.

    A view in which nobody is found keeps the window of the moment before. Errors: `InputError` if the recording is not
    there, or some view never shows anybody.
    """
    recording = open_recording(find_demo(folder))
    detect = PersonDetector()
    moments = range(0, recording.count, EVERY)[:limit]
    joints, seen, scores = [], [], []
    windows: list[CropWindow | None] = [None] * len(recording.cameras)
    with progress(0, len(moments), "moments") as bar:
        for images, _ in zip(recording.frames(EVERY), moments):
            bar.update()
            windows = [_window(detect, image) or last for image, last in zip(images, windows)]
            lenses = [camera.intrinsics for camera in recording.cameras]
            views = [(image, window, lens) for image, window, lens in zip(images, windows, lenses) if window]
            if len(views) < len(images):
                continue  # not yet found in every view
            crops = np.stack([cut_crop(*view, model.image_size) for view in views])
            box = np.stack([window.box(lens) for _, window, lens in views]).astype(np.float32)
            out = model(crops, box)
            joints.append(out["joints"] @ crop_rotation(torch.from_numpy(box)).numpy().transpose(0, 2, 1))
            seen.append(box[:, None, :2] + out["keypoints"][..., :2] * box[:, None, 2:])
            scores.append(out["keypoints"][..., 2])
    if not joints:
        raise InputError(f"the detector found nobody in some view of {recording.folder}")
    cameras = np.stack([camera.world_to_camera for camera in recording.cameras])
    focal = float(np.mean([camera.intrinsics.fx for camera in recording.cameras]))
    return measure_views(np.stack(joints), np.stack(seen), np.stack(scores), cameras, focal, topology.joint_names)


def _window(detect: PersonDetector, image: Image) -> CropWindow | None:
    """Around the largest person, since others in the room stand far behind; None where nobody is found."""
    boxes, _ = detect(image)
    extent = boxes[:, 2:] - boxes[:, :2]
    return CropWindow.from_bbox(boxes[extent.prod(1).argmax()]) if len(boxes) else None
